"""Which rows are handed to a person: those whose decided class is less probable than a fitted confidence.

    confidence    probability of the decided class; multi-label: of the least certain of the answers
    risk=r        least confidence at which r or fewer of the answered rows are wrong (multi-label: in any known answer)
    workload=w    the confidence below which a share w of the rows lies

Fitted on held-out rows, so neither is a promise; see :mod:`clsgen_dist.evaluation.selective` for what the intervals
say. Cost: a sort, a thousand times for the intervals.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from clsgen_dist.errors import DataError, SettingsError
from clsgen_dist.evaluation.selective import threshold_for_risk, threshold_for_workload
from clsgen_dist.model.label_space import Kind

# N rows, C classes

Target = Literal["risk", "workload"]


@dataclass(frozen=True)
class HandOverRule:
    """What to keep to."""

    target: Target
    value: float
    """Largest share of wrong answers among those given, or least share of rows handed over."""

    @classmethod
    def parse(cls, word: str) -> HandOverRule:
        """The rule of ``risk=R`` or ``workload=W``; SettingsError for other words."""
        name, _, number = word.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if name not in get_args(Target) or not 0 < value < 1:
            raise SettingsError(
                f"--hand_over is {word!r}, expected risk=R or workload=W with a share above 0 and below 1; write 5 % "
                "of wrong answers as risk=0.05"
            )
        return cls("risk" if name == "risk" else "workload", value)


@dataclass(frozen=True)
class HandOver:
    """The least confidence of an answer, and what it achieves on the held-out rows, with 95 % intervals of new ones."""

    rule: HandOverRule
    least_confidence: float
    coverage: float
    """Share of the rows answered."""
    risk: float
    """Share of them answered wrong."""
    intervals: dict[str, tuple[float, float]]
    """Of ``threshold`` (the least confidence), ``coverage`` and ``risk``; those that the rows can give."""

    def applies(self, probabilities_NC: np.ndarray, decided: np.ndarray, kind: Kind) -> list[bool]:
        """Whether each row is handed over; arguments as for :func:`confidence`."""
        return list((confidence(probabilities_NC, decided, kind) < self.least_confidence).tolist())

    def to_json(self) -> dict[str, Any]:
        """JSON values for ``clsgen.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> HandOver:
        """Inverse of :meth:`to_json`."""
        intervals = {name: (low, high) for name, (low, high) in fields["intervals"].items()}
        return cls(**{**fields, "rule": HandOverRule(**fields["rule"]), "intervals": intervals})

    def text(self) -> str:
        """One line on the confidence, one on what it achieves."""

        def shown(name: str, value: float) -> str:
            low, high = self.intervals.get(name, (math.nan, math.nan))
            return f"{value:.3f}" if math.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"

        least, coverage = shown("threshold", self.least_confidence), shown("coverage", self.coverage)
        return (
            f"handed to a person below a confidence of {least}, for a {self.rule.target} of {self.rule.value:g}\n"
            f"on the held-out rows: {coverage} of them answered, {shown('risk', self.risk)} of these wrong; brackets "
            "hold what to expect of new rows"
        )


def confidence(probabilities_NC: np.ndarray, decided: np.ndarray, kind: Kind) -> np.ndarray:
    """``[N]`` probability of the decided class; multi-label (sets ``[N, C]``): of the least certain answer."""
    if kind == "multilabel":
        return np.asarray(np.where(decided, probabilities_NC, 1 - probabilities_NC).min(axis=1))
    return np.asarray(probabilities_NC[np.arange(len(decided)), decided])


def wrong(decided: np.ndarray, labels: np.ndarray, kind: Kind) -> np.ndarray:
    """``[N]`` whether a row is decided wrong; multi-label: in any known answer."""
    if kind == "multilabel":
        return np.asarray((~np.isnan(labels) & (decided != (labels >= 0.5))).any(axis=1))
    return np.asarray(decided != labels)


def fit_hand_over(
    rule: HandOverRule,
    confidence_N: np.ndarray,
    wrong_N: np.ndarray,
    weight_N: np.ndarray | None = None,
    clusters_N: np.ndarray | None = None,
) -> HandOver:
    """The least confidence that keeps to the rule.

    Args:
        rule: what to keep to.
        confidence_N: of decisions by fits that have not seen the row.
        wrong_N: whether they are wrong.
        weight_N: how many rows of the population each one counts as; None: 1.
        clusters_N: an id for each row; None: all are independent.

    Raises:
        DataError: no confidence does.
    """
    fit = threshold_for_risk if rule.target == "risk" else threshold_for_workload
    found = fit(confidence_N, wrong_N, rule.value, weight_N=weight_N, clusters_N=clusters_N)
    if math.isnan(found.threshold):
        raise DataError(_out_of_reach(rule, confidence_N, wrong_N, weight_N))
    intervals = {name: (i.low, i.high) for name, i in found.intervals.items() if not math.isnan(i.low)}
    return HandOver(rule, found.threshold, found.coverage, found.risk, intervals)


def _out_of_reach(
    rule: HandOverRule, confidence_N: np.ndarray, wrong_N: np.ndarray, weight_N: np.ndarray | None
) -> str:
    weight_N = np.ones(len(wrong_N)) if weight_N is None else weight_N
    if rule.target == "risk":
        answered = (confidence_N >= least for least in np.unique(confidence_N))
        risk = min(np.average(wrong_N[of_N], weights=weight_N[of_N]) for of_N in answered)
        return (
            f"no confidence keeps the risk at {rule.value:g} on the held-out rows, the least is {risk:.3f}; "
            "raise --hand_over risk=…, or use workload=…"
        )
    highest = np.average(confidence_N == confidence_N.max(), weights=weight_N)
    return (
        f"--hand_over workload={rule.value:g} hands over every row, since {highest:.3f} of them share the highest "
        "confidence; lower the workload, or use a --method that makes no steps"
    )
