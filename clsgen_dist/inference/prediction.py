"""What a model answers for a text, and how it follows from the head's logits: calibration, thresholds, decisions.

The weights are not needed: the logits may come from another engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clsgen_dist.calibration.decisions import Decisions
from clsgen_dist.calibration.methods import from_json
from clsgen_dist.calibration.prevalence import PriorCorrected
from clsgen_dist.evaluation.metrics import decide
from clsgen_dist.explanations.stated_class import ClassNames
from clsgen_dist.hf_export.artifact import ModelCard
from clsgen_dist.inference.raw_predictions import RawPrediction


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the classification head says at one position."""

    label: str | list[str]
    """The predicted class: binary by the fitted threshold, ordinal the median, else the most probable.

    Multi-label: the classes from their thresholds up, as a list.
    """
    probabilities: dict[str, float]
    """Calibrated probability of each class (uncalibrated if the model has no calibration)."""
    logits: tuple[float, ...]
    """Raw class logits, before calibration."""
    intervals: dict[str, tuple[float, float]] | None = None
    """Venn-Abers intervals: binary, of the positive class; multi-label, of each class; None if the model has none.

    Probabilities may lie outside, see :mod:`clsgen_dist.calibration.venn_abers`.
    """
    prediction_set: list[str] | dict[str, list[str]] | None = None
    """The classes of the conformal set; None if the model has none.

    Multi-label: ``may_apply``, the classes whose answer may be yes, and ``need_not_apply``, those whose answer may be
    no. A class in both is in doubt; one in neither is unlike the held-out rows.
    """
    hand_over: bool | None = None
    """Whether the answer is too uncertain and a person should decide; None if the model has no such confidence."""

    @property
    def decision(self) -> str:
        """The predicted class, or the classes, in words."""
        return self.label if isinstance(self.label, str) else ", ".join(self.label) or "none"

    def to_json(self) -> dict[str, object]:
        """Label and probabilities, and where they apply ``interval``, ``set`` and ``hand_over``."""
        fields: dict[str, object] = {
            "label": self.label,
            "probabilities": {name: round(p, 6) for name, p in self.probabilities.items()},
        }
        if self.intervals is not None:
            fields["interval"] = {name: [round(end, 6) for end in ends] for name, ends in self.intervals.items()}
        if self.prediction_set is not None:
            fields["set"] = self.prediction_set
        if self.hand_over is not None:
            fields["hand_over"] = self.hand_over
        return fields


@dataclass(frozen=True, kw_only=True)
class Prediction(Reading):
    """Prediction for one text. Of two readings, label, probabilities and logits are those before the explanation."""

    explanation: str | None
    """The generated explanation; None if not requested."""
    truncated: bool
    """Whether the text was truncated in the middle to fit."""
    after: Reading | None = None
    """The reading after the explanation, of a model that decides before and after; None if none was requested."""
    contradicts: bool = False
    """Whether the explanation states another class than ``label``: do not rely on it."""
    explanation_cut: bool = False
    """Whether the explanation reached its most tokens; it ends with its last whole sentence, if it has one."""
    redraws: int = 0
    """Explanations that contradicted, and were drawn anew."""
    others: tuple[str, ...] = ()
    """Other explanations, where several candidates were drawn, the best first."""

    def to_json(self) -> dict[str, object]:
        """Those of a reading, and where they apply the other fields."""
        fields = super().to_json()
        if self.after is not None:
            fields["after"] = self.after.to_json()
        if self.explanation is not None:
            fields["explanation"] = self.explanation
        if self.others:
            fields["others"] = list(self.others)
        for name in ("contradicts", "explanation_cut", "redraws", "truncated"):
            if value := getattr(self, name):
                fields[name] = value
        return fields


class AnswerReader:
    """Turns logits into predictions, as the card of an exported model says."""

    def __init__(self, card: ModelCard) -> None:
        self.card, self.space = card, card.space
        self.calibration = from_json(card.calibration, self.space.kind)
        self.calibration_after = from_json(card.calibration_after, self.space.kind)
        self.decisions = Decisions.from_json(card.decisions)
        self.decisions_after = Decisions.from_json(card.decisions_after)
        self.names = ClassNames(card.labels)

    def read(self, raw: RawPrediction) -> Prediction:
        """The prediction of logits that are finite."""
        if self.card.decide == "after":
            assert raw.after is not None
            reading, after = self._reading(raw.after), None
        else:
            reading = self.first(raw.first)
            after = None if raw.after is None else self._reading(raw.after, after=True)
        return Prediction(
            **vars(reading),
            explanation=raw.explanation,
            truncated=raw.truncated,
            after=after,
            contradicts=raw.explanation is not None and self.contradicts(raw.explanation, reading),
            explanation_cut=raw.cut,
            redraws=raw.redraws,
            others=raw.others,
        )

    def first(self, logits: Sequence[float]) -> Reading:
        """The reading before the explanation."""
        return self._reading(logits)

    def contradicts(self, explanation: str, reading: Reading) -> bool:
        """Whether the explanation states another class than was decided."""
        index = self.card.labels.index
        decided = index(reading.label) if isinstance(reading.label, str) else [index(name) for name in reading.label]
        return self.names.contradicts(explanation, decided)

    def _reading(self, logits: Sequence[float], *, after: bool = False) -> Reading:
        """The head's answer; ``after``: of the second of two readings."""
        space, names = self.space, self.card.labels
        calibration = self.calibration_after if after else self.calibration
        thresholds = self.card.thresholds_after if after else self.card.thresholds
        decisions = self.decisions_after if after else self.decisions
        probabilities_1C = calibration.probabilities(np.array([logits], dtype=np.float64))
        decided_1 = decide(probabilities_1C, space.kind, space.positive_index, thresholds)
        prevalence = calibration.prevalence if isinstance(calibration, PriorCorrected) else None
        [intervals] = (
            decisions.intervals.named(np.array([logits]), space, prevalence) if decisions.intervals else [None]
        )
        [prediction_set] = decisions.sets.named(probabilities_1C, space) if decisions.sets else [None]
        [hand_over] = (
            decisions.hand_over.applies(probabilities_1C, decided_1, space.kind) if decisions.hand_over else [None]
        )
        [decided] = decided_1
        return Reading(
            label=[names[c] for c in np.flatnonzero(decided)] if space.kind == "multilabel" else names[int(decided)],
            intervals=intervals,
            prediction_set=prediction_set,
            hand_over=hand_over,
            probabilities=dict(zip(names, probabilities_1C[0].tolist(), strict=True)),
            logits=tuple(logits),
        )
