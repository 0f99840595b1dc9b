"""What is fitted beside a calibration: thresholds, sets with a promised coverage, rows handed to a person, intervals.

    logits ─calibration─▶ probabilities ─prevalence─▶ corrected ─┬─▶ threshold ─▶ label ─confidence─▶ hand over
           │                                                     └─▶ conformal set
           └─Venn-Abers─▶ interval of the probability ─prevalence─▶ corrected

Threshold (but for F1), handing over and sets are fitted on probabilities of fits that have not seen the row
(cross-fitting): the calibration's own rows look better calibrated and more certain than new ones. Intervals need no
calibration. Where the deployed prevalence differs, each row counts as w = π'(y)/π(y) rows; sets are class-conditional,
and valid as they are, since within a class nothing moves.

Cost: ten fits of the calibration, and a thousand resamples for each interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from clsgen_dist.calibration.conformal import ConformalSets, fit_sets
from clsgen_dist.calibration.handing_over import HandOver, HandOverRule, confidence, fit_hand_over, wrong
from clsgen_dist.calibration.prevalence import Prevalence
from clsgen_dist.calibration.thresholds import F1_RULE, Answers, Goal, ThresholdRule, Thresholds, fit_threshold
from clsgen_dist.calibration.venn_abers import ProbabilityIntervals, fit_intervals, has_intervals
from clsgen_dist.errors import SettingsError
from clsgen_dist.evaluation.metrics import decide
from clsgen_dist.io.tables import markdown_table
from clsgen_dist.model.label_space import LabelSpace

# N rows, C classes


@dataclass(frozen=True, kw_only=True)
class DecisionRules:
    """What is to be fitted."""

    threshold: ThresholdRule = F1_RULE
    coverage: float | None = None
    """Promised share of sets that hold the true class; None: no sets."""
    class_conditional: bool = False
    """Whether it is promised for each class."""
    hand_over: HandOverRule | None = None
    intervals: bool = False
    """Whether probabilities get intervals."""

    @classmethod
    def parse(
        cls,
        *,
        threshold: str = "f1",
        coverage: float | None = None,
        class_conditional: bool | None = None,
        hand_over: str | None = None,
        intervals: bool = False,
        other_prevalence: bool = False,
    ) -> DecisionRules:
        """The rules of a command line; SettingsError for words and numbers that cannot be, alone or together.

        Args:
            threshold: see :meth:`ThresholdRule.parse`.
            coverage: above 0 and below 1.
            class_conditional: None: where the deployed prevalence is another.
            hand_over: see :meth:`HandOverRule.parse`.
            intervals: whether probabilities get intervals.
            other_prevalence: whether the deployed prevalence is another than that of the held-out rows.
        """
        if coverage is None and class_conditional is not None:
            raise SettingsError("--class_conditional is about sets, and there is no --coverage; add --coverage 0.9")
        if coverage is not None and not 0 < coverage < 1:
            raise SettingsError(f"--coverage is {coverage:g}, expected a share above 0 and below 1; write 90 % as 0.9")
        if other_prevalence and class_conditional is False:
            raise SettingsError(
                "--class_conditional is false with another prevalence, expected true: only sets whose coverage is "
                "promised for each class stay valid when the classes' shares change; leave it out"
            )
        return cls(
            threshold=ThresholdRule.parse(threshold),
            coverage=coverage,
            class_conditional=other_prevalence if class_conditional is None else class_conditional,
            hand_over=None if hand_over is None else HandOverRule.parse(hand_over),
            intervals=intervals,
        )

    def check(self, space: LabelSpace) -> None:
        """SettingsError if a threshold or intervals are asked for, and the label space has none."""
        if self.threshold.goal is not Goal.F1 and not has_thresholds(space):
            raise SettingsError(
                f"--threshold is {self.threshold.goal}, but {space.kind} labels of {len(space)} classes have no "
                "threshold: the class is the most probable one, or the median; leave --threshold out, or "
                "use --coverage or --hand_over"
            )
        if self.intervals and not has_intervals(space):
            raise SettingsError(
                f"--intervals is true with {space.kind} labels of {len(space)} classes, expected a binary or "
                "multi-label model: a Venn-Abers interval is of one yes-no question; leave it out, or use --coverage "
                "for sets of classes"
            )


def has_thresholds(space: LabelSpace) -> bool:
    """Whether classes are predicted by thresholds: binary and multi-label."""
    return space.kind == "multilabel" or (space.kind == "single" and space.is_binary)


@dataclass(frozen=True)
class Sets:
    """Conformal sets, and their size on the held-out rows."""

    cutoffs: ConformalSets
    mean_size: float
    """Classes in a set; multi-label: possible answers, from 0 to 2, of a class."""

    def named(self, probabilities_NC: np.ndarray, space: LabelSpace) -> list[list[str]] | list[dict[str, list[str]]]:
        """The set of each row: its classes; multi-label: those that ``may_apply``, and that ``need_not_apply``."""

        def names(inside_C: np.ndarray) -> list[str]:
            return [space.names[c] for c in np.flatnonzero(inside_C)]

        yes_NC = self.cutoffs.contains(probabilities_NC)
        if space.kind != "multilabel":
            return [names(inside_C) for inside_C in yes_NC]
        no_NC = self.cutoffs.contains_no(probabilities_NC)
        return [
            {"may_apply": names(yes_C), "need_not_apply": names(no_C)}
            for yes_C, no_C in zip(yes_NC, no_NC, strict=True)
        ]

    def text(self, space: LabelSpace) -> str:
        """Promise, cutoffs and size."""
        cutoffs, multilabel = self.cutoffs, space.kind == "multilabel"
        whose = {
            (False, False): "the true class of new rows",
            (False, True): "the true class of new rows of each class",
            (True, False): "the true answer of new rows, for each class",
            (True, True): "the true answer of new rows, for each class and for yes and no",
        }[multilabel, cutoffs.class_conditional]
        size = "possible answers for each class" if multilabel else "classes in a set"
        lines = [["class", "least probability", "rows"]]
        if multilabel:
            lines = [["class", "least probability of yes", "rows", "of no", "rows"]]
        for c, name in enumerate(space.names):
            line = [name, f"{cutoffs.cutoff_C[c]:.4f}", str(cutoffs.rows_C[c])]
            if cutoffs.no_cutoff_C and cutoffs.no_rows_C:
                line += [f"{cutoffs.no_cutoff_C[c]:.4f}", str(cutoffs.no_rows_C[c])]
            lines.append(line)
        return (
            f"sets hold {whose} with probability {cutoffs.coverage:g}, if these are like the held-out rows\n"
            f"{markdown_table(lines)}\non average {self.mean_size:.2f} {size}"
        )


@dataclass(frozen=True)
class Decisions:
    """What was fitted; None: not asked for, or the label space has none."""

    thresholds: Thresholds | None = None
    sets: Sets | None = None
    hand_over: HandOver | None = None
    intervals: ProbabilityIntervals | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values for ``clsgen.json``."""
        sets = self.sets and {**self.sets.cutoffs.to_json(), "mean_size": self.sets.mean_size}
        return {
            "thresholds": self.thresholds and self.thresholds.to_json(),
            "sets": sets,
            "hand_over": self.hand_over and self.hand_over.to_json(),
            "intervals": self.intervals and self.intervals.to_json(),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any] | None) -> Decisions:
        """Inverse of :meth:`to_json`; None: nothing was fitted."""
        if fields is None:
            return cls()
        sets, intervals = fields["sets"], fields.get("intervals")  # earlier versions had none
        return cls(
            fields["thresholds"] and Thresholds.from_json(fields["thresholds"]),
            sets and Sets(ConformalSets.from_json(sets), float(sets["mean_size"])),
            fields["hand_over"] and HandOver.from_json(fields["hand_over"]),
            intervals and ProbabilityIntervals.from_json(intervals),
        )

    def text(self, space: LabelSpace, prevalence: Prevalence | None) -> str:
        """Each decision and what it achieves on the held-out rows; empty without any."""
        names = space.names if space.kind == "multilabel" else (space.positive,)
        parts = [self.thresholds.text(names)] if self.thresholds else []
        if self.sets:
            parts.append(self.sets.text(space))
            if prevalence:
                parts.append("class-conditional sets are valid whatever the prevalence")
        if self.hand_over:
            parts.append(self.hand_over.text())
        if self.intervals:
            parts.append(self.intervals.text(space))
        if prevalence and (self.thresholds or self.hand_over):
            parts.append("held-out rows count as often as their class occurs where the model is used")
        return "\n".join(parts)


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows, with probabilities that are corrected for the deployed prevalence."""

    logits_NK: np.ndarray
    """Raw."""
    probabilities_NC: np.ndarray
    """By the calibration that is stored."""
    unseen_NC: np.ndarray
    """By fits that have not seen the row."""
    labels: np.ndarray
    """Classes ``[N]``; multi-label: answers ``[N, C]``, NaN where not known."""
    prevalence: Prevalence | None = None
    clusters_N: np.ndarray | None = None
    """An id for each row; None: all are independent."""


def fit_decisions(rules: DecisionRules, rows: HeldOut, space: LabelSpace) -> Decisions:
    """Fit what the rules ask for.

    Raises:
        SettingsError: a threshold or intervals of a label space that has none; a row would have several weights.
        DataError: the rows are too few for the coverage, or nothing achieves what is asked.
    """
    rules.check(space)
    thresholds: Thresholds | None = None
    if has_thresholds(space):
        questions = _questions(rows, space)
        thresholds = Thresholds(rules.threshold, [fit_threshold(rules.threshold, question) for question in questions])
    hand_over = _hand_over(rules.hand_over, rows, space, thresholds) if rules.hand_over else None
    intervals: ProbabilityIntervals | None = None
    if rules.intervals:
        intervals = fit_intervals(rows.logits_NK, rows.probabilities_NC, rows.labels, space, rows.prevalence)
    return Decisions(thresholds, _sets(rules, rows, space), hand_over, intervals)


def _questions(rows: HeldOut, space: LabelSpace) -> list[Answers]:
    """The yes-no question of each class that has a threshold."""
    prevalence, multilabel = rows.prevalence, space.kind == "multilabel"
    classes = range(len(space)) if multilabel else [space.positive_index]
    weights = np.ones(rows.labels.shape) if prevalence is None else prevalence.weights(rows.labels, space.kind)
    found = []
    for c in classes:
        p_N, unseen_N = rows.probabilities_NC[:, c], rows.unseen_NC[:, c]
        answer_N = rows.labels[:, c] if multilabel else (rows.labels == c).astype(float)
        weight_N = weights[:, c] if multilabel else weights
        changed = prevalence is not None and bool(prevalence.changed_C[c])
        expected_N = _expected_weights(p_N, prevalence, c) if changed and prevalence else np.ones(len(p_N))
        found.append(Answers(space.names[c], p_N, unseen_N, answer_N, weight_N, expected_N, rows.clusters_N))
    return found


def _expected_weights(corrected_N: np.ndarray, prevalence: Prevalence, c: int) -> np.ndarray:
    """Σ_y p(y) π'(y)/π(y) with p before the correction, from p' after it: 1 / Σ_y p'(y) π(y)/π'(y)."""
    fitted, deployed = prevalence.fitted_C[c], prevalence.deployed_C[c]
    return np.asarray(1 / (corrected_N * fitted / deployed + (1 - corrected_N) * (1 - fitted) / (1 - deployed)))


def _sets(rules: DecisionRules, rows: HeldOut, space: LabelSpace) -> Sets | None:
    if rules.coverage is None:
        return None
    p_NC, kind = rows.unseen_NC, space.kind
    cutoffs = fit_sets(
        p_NC, rows.labels, kind, coverage=rules.coverage, class_conditional=rules.class_conditional, names=space.names
    )
    size = cutoffs.contains(p_NC).astype(int)
    if kind == "multilabel":
        return Sets(cutoffs, float((size + cutoffs.contains_no(p_NC)).mean()))
    weight_N = None if rows.prevalence is None else rows.prevalence.weights(rows.labels, kind)
    return Sets(cutoffs, float(np.average(size.sum(axis=1), weights=weight_N)))


def _hand_over(rule: HandOverRule, rows: HeldOut, space: LabelSpace, thresholds: Thresholds | None) -> HandOver:
    p_NC, kind = rows.unseen_NC, space.kind
    decided = decide(p_NC, kind, space.positive_index, thresholds.values if thresholds else None)
    weight_N = rows.prevalence.row_weights(rows.labels, kind) if rows.prevalence else None
    return fit_hand_over(
        rule, confidence(p_NC, decided, kind), wrong(decided, rows.labels, kind), weight_N, rows.clusters_N
    )
