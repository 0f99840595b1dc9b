"""The probability from which a class is predicted, by what it should achieve.

    f1              best expected F1 of calibrated probabilities      (Lipton, Elkan & Naryanaswamy 2014)
    recall=r        highest precision among the thresholds with recall r or more
    precision=p     highest recall among those with precision p or more
    cost=FP:FN      FP / (FP + FN): acting costs (1-p)·FP, not acting p·FN                            (Elkan 2001)

Recall and precision are counted on held-out rows, by probabilities of fits that have not seen the row. They are no
promise for new rows, and optimistic still, as the threshold is chosen on the rows that measure it; the bootstrap
interval, with the threshold chosen anew in each resample, says how far it moves. Cost: a sort, a thousand times for the
interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from clsgen_dist.errors import DataError, SettingsError
from clsgen_dist.evaluation.bootstrap import bootstrap_interval
from clsgen_dist.evaluation.classification import best_f1_threshold
from clsgen_dist.evaluation.operating_points import point_at, precision_at_recall, recall_at_precision
from clsgen_dist.io.tables import markdown_table
from clsgen_dist.io.text import quoted

# N rows, C classes

_FORMS = "f1, recall=0.95, precision=0.9, or cost=FP:FN such as cost=1:20"


class Goal(StrEnum):
    """What a threshold should achieve."""

    F1 = "f1"
    RECALL = "recall"
    PRECISION = "precision"
    COST = "cost"


@dataclass(frozen=True)
class ThresholdRule:
    """A goal, and its number."""

    goal: Goal = Goal.F1
    value: float | None = None
    """Least recall or precision; of costs, the threshold FP / (FP + FN); F1 has none."""

    @classmethod
    def parse(cls, word: str) -> ThresholdRule:
        """The rule of ``f1``, ``recall=R``, ``precision=P`` or ``cost=FP:FN``; SettingsError for other words."""
        name, equals, number = word.partition("=")
        if name not in list(Goal) or bool(equals) == (name == Goal.F1):
            raise SettingsError(f"--threshold is {word!r}, expected {_FORMS}")
        goal = Goal(name)
        if goal is Goal.F1:
            return cls()
        if goal is Goal.COST:
            false_positive, _, false_negative = number.partition(":")
            costs = _number(false_positive), _number(false_negative)
            if not all(0 < cost < math.inf for cost in costs):
                raise SettingsError(
                    f"--threshold is {word!r}, expected two costs above 0, of a false positive and a false negative; "
                    "write cost=1:20 if a missed row costs as much as twenty false alarms"
                )
            return cls(goal, costs[0] / sum(costs))
        value = _number(number)
        if not 0 < value <= 1:
            raise SettingsError(
                f"--threshold is {word!r}, expected a share above 0, up to 1; write 95 % as {name}=0.95"
            )
        return cls(goal, value)

    @property
    def phrase(self) -> str:
        """The goal in words, after "threshold"."""
        match self.goal:
            case Goal.F1:
                return "with the best F1"
            case Goal.COST:
                return "of the least cost"
        return f"for a {self.goal} of {self.value:g} or more"


F1_RULE = ThresholdRule()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


@dataclass(frozen=True)
class FittedThreshold:
    """A threshold, its 95 % bootstrap interval, and what it achieves on the held-out rows.

    The interval is None if costs fix the threshold, or the rows are too few. Others None: not defined, as precision is
    if no row is predicted positive.
    """

    threshold: float
    low: float | None
    high: float | None
    precision: float | None
    recall: float | None
    share: float | None
    """Share of the rows that are predicted positive."""


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of a model: binary, one; multi-label, one a class."""

    rule: ThresholdRule
    fitted: list[FittedThreshold]

    @property
    def values(self) -> list[float]:
        """The thresholds alone."""
        return [one.threshold for one in self.fitted]

    def to_json(self) -> dict[str, Any]:
        """JSON values for ``clsgen.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Thresholds:
        """Inverse of :meth:`to_json`."""
        rule = ThresholdRule(Goal(fields["rule"]["goal"]), fields["rule"]["value"])
        return cls(rule, [FittedThreshold(**each) for each in fields["fitted"]])

    def text(self, names: Sequence[str]) -> str:
        """Each threshold and what it achieves; ``names`` of the classes that have one."""
        if len(self.fitted) == 1:
            [one] = self.fitted
            achieves = f"precision {_shown(one.precision)}, recall {_shown(one.recall)}"
            return (
                f"threshold {self.rule.phrase}: {one.threshold:.3f}{_interval(one)}\n"
                f"at it on the held-out rows: {achieves}, {_shown(one.share)} of them {names[0]}"
            )
        table = [["class", "threshold", "precision", "recall", "share"]]
        for name, one in zip(names, self.fitted, strict=True):
            shares = (one.precision, one.recall, one.share)
            table.append([name, f"{one.threshold:.3f}{_interval(one)}", *map(_shown, shares)])
        return f"thresholds {self.rule.phrase}, and what they achieve on the held-out rows\n{markdown_table(table)}"


def _shown(share: float | None) -> str:
    return "-" if share is None else f"{share:.3f}"


def _interval(one: FittedThreshold) -> str:
    return "" if one.low is None or one.high is None else f" [{one.low:.3f}, {one.high:.3f}]"


@dataclass(frozen=True)
class Answers:
    """Held-out rows as answers to one yes-no question."""

    name: str
    """Its class."""
    probability_N: np.ndarray
    """By the calibration that is stored."""
    unseen_N: np.ndarray
    """By fits that have not seen the row."""
    answer_N: np.ndarray
    """1 and 0; NaN: unknown."""
    weight_N: np.ndarray
    """How many rows of the population each one counts as, by its answer."""
    expected_weight_N: np.ndarray
    """The same by its probability, before the answer is known."""
    clusters_N: np.ndarray | None = None
    """An id for each row; None: all are independent."""


def fit_threshold(rule: ThresholdRule, rows: Answers) -> FittedThreshold:
    """The threshold that the rule asks for.

    F1 is that expected by the stored calibration. On synthetic rows, probabilities of fits that have not seen the row
    gave the same F1, within 0.0001.

    Raises:
        DataError: no threshold achieves it on these rows.
    """
    known_N = ~np.isnan(rows.answer_N)
    p_N, yes_N, weight_N = rows.unseen_N[known_N], rows.answer_N[known_N] >= 0.5, rows.weight_N[known_N]
    choose, count = _chooser(rule, rows, p_N, yes_N, weight_N)
    everything = np.arange(count)
    threshold = choose(everything)
    if math.isnan(threshold):
        raise DataError(_out_of_reach(rule, rows.name, p_N, yes_N, weight_N))
    low: float | None = None
    high: float | None = None
    if rule.goal is not Goal.COST:
        own_N = rows.clusters_N if rows.clusters_N is None or count == len(known_N) else rows.clusters_N[known_N]
        interval = bootstrap_interval(choose, count, clusters_N=own_N)
        if not math.isnan(interval.low):
            low, high = interval.low, interval.high
    at = point_at(p_N, yes_N, threshold, weight_N)
    precision, recall, share = (None if math.isnan(v) else v for v in (at.precision, at.recall, at.share))
    return FittedThreshold(threshold, low, high, precision, recall, share)


def _chooser(
    rule: ThresholdRule, rows: Answers, p_N: np.ndarray, yes_N: np.ndarray, weight_N: np.ndarray
) -> tuple[Callable[[np.ndarray], float], int]:
    """The threshold of given rows, NaN if none achieves it, and the number of rows."""
    value = rule.value
    if rule.goal is Goal.F1:
        all_N, expected_N = rows.probability_N, rows.expected_weight_N
        return lambda index: best_f1_threshold(all_N[index], expected_N[index]), len(all_N)
    assert value is not None
    if rule.goal is Goal.COST:
        return lambda index: value, len(p_N)
    find = precision_at_recall if rule.goal is Goal.RECALL else recall_at_precision
    return lambda index: find(p_N[index], yes_N[index], value, weight_N[index]).threshold, len(p_N)


def _out_of_reach(rule: ThresholdRule, name: str, p_N: np.ndarray, yes_N: np.ndarray, weight_N: np.ndarray) -> str:
    if not yes_N.any():
        return (
            f"no held-out row of class {quoted(name)}, expected some to reach a {rule.goal} of {rule.value:g}; add rows"
        )
    best = max(point_at(p_N, yes_N, t, weight_N).precision for t in np.unique(p_N))
    return (
        f"no threshold reaches a precision of {rule.value:g} for class {quoted(name)}, the highest on the held-out "
        f"rows is {best:.3f}; lower --threshold precision=…, or use f1, recall=… or cost=…"
    )
