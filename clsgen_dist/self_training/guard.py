"""What held-out rows say before a model labels others: is it right where it is sure; is it worse than the last one.

    precision   share of the guard's decisions at the wanted confidence that are right. The kept rows have other shares
                of the classes than these decisions, so it is Σ_c share_c · precision_c, with the interval of a sum of
                independent estimates (``evaluation.interval``); for rows kept as they come it is the plain share, with
                Wilson's interval. Its lower end must reach --precision.
    no harm     NLL, AUROC and accuracy beside those of the last round's model, by paired tests, each at a third of 5 %
                (Bonferroni). A significant loss ends the rounds.

The interval is for rows like the guard's, and for one look: who tries confidences until one passes looks more often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clsgen_dist.evaluation.bootstrap import Difference
from clsgen_dist.evaluation.interval import (
    UNDEFINED,
    Estimate,
    Interval,
    normal_quantile,
    share_interval,
    weighted_sum_interval,
)
from clsgen_dist.evaluation.metrics import HIGHER_IS_BETTER, WORDS
from clsgen_dist.inference.compare import compared_metrics
from clsgen_dist.model.label_space import LabelSpace

# N guard rows, C classes

_TESTED = ("nll", "auroc", "accuracy")
_LEVEL = 0.05


@dataclass(frozen=True)
class ClassPrecision:
    """The guard's confident decisions for one class."""

    name: str
    confident: int
    right: int


@dataclass(frozen=True)
class GuardPrecision:
    """How often confident decisions are right."""

    rows: int
    classes: list[ClassPrecision]
    estimate: Estimate
    """NaN where too few rows of a class that is to be kept are confident."""
    unmeasured: list[str]
    """These classes."""
    is_weighted: bool
    """Whether the estimate is for other shares of the classes than the guard's confident decisions have."""

    @property
    def confident(self) -> int:
        """Rows that are decided with the wanted confidence."""
        return sum(c.confident for c in self.classes)

    @property
    def right(self) -> int:
        """Those decided as they are labelled."""
        return sum(c.right for c in self.classes)

    def fault(self, confidence: float, wanted: float) -> str | None:
        """Why the model may not label rows, with the remedy; None if it may."""
        if not self.confident:
            return (
                f"none of the {self.rows} guard rows is decided with a probability of {confidence:g} or more, so how "
                "often such decisions are right is not known; lower --confidence, or train longer"
            )
        if self.unmeasured:
            return (
                f"too few guard rows are confidently {self.unmeasured[0]!r} to know how often that is right; lower "
                "--confidence, add guard rows of this class, or keep rows as they come with --class_shares none"
            )
        if self.estimate.interval.low >= wanted:
            return None
        found = f"{self.text(confidence)}; wanted is {wanted:.1%} or more at the lower end of the interval"
        if self.estimate.value >= wanted:
            least = math.ceil(normal_quantile(0.95) ** 2 * wanted / (1 - wanted)) if wanted < 1 else 0
            enough = f" ({least} confident ones at the least, all right)" if least else ""
            return f"{found}. Add labelled guard rows{enough}, or raise --confidence"
        return f"{found}. Raise --confidence, or train and calibrate on more rows"

    def text(self, confidence: float) -> str:
        """What was measured."""
        interval = self.estimate.interval
        shares = " with the classes as in the kept rows" if self.is_weighted else ""
        return (
            f"{self.confident} of {self.rows} guard rows are decided with a probability of {confidence:g} or more, "
            f"{self.right} of them rightly: {self.estimate.value:.1%}{shares} "
            f"(95 %: {interval.low:.1%} to {interval.high:.1%})"
        )


def guard_precision(
    decided_N: np.ndarray,
    labels_N: np.ndarray,
    is_confident_N: np.ndarray,
    names: Sequence[str],
    shares_C: np.ndarray | None,
    clusters_N: np.ndarray | None = None,
) -> GuardPrecision:
    """Measure confident decisions on the guard.

    Args:
        decided_N: the model's class of each guard row.
        labels_N: the row's own.
        is_confident_N: which rows the model would keep.
        names: of the classes.
        shares_C: of the classes among the rows that will be kept; None: those of the guard's confident decisions.
        clusters_N: an id for each row; rows of the same id are alike. None: all are independent.
    """
    right_N = decided_N == labels_N

    def measured(rows_N: np.ndarray) -> Estimate:
        given = None if clusters_N is None else clusters_N[rows_N]
        share = float(right_N[rows_N].mean()) if rows_N.any() else math.nan
        return Estimate(share, share_interval(right_N[rows_N], clusters_N=given))

    of_class = [is_confident_N & (decided_N == c) for c in range(len(names))]
    classes = [
        ClassPrecision(name, int(rows_N.sum()), int(right_N[rows_N].sum()))
        for name, rows_N in zip(names, of_class, strict=True)
    ]
    if shares_C is None:
        return GuardPrecision(len(labels_N), classes, measured(is_confident_N), [], is_weighted=False)
    kept = np.flatnonzero(shares_C).tolist()
    parts = [measured(of_class[c]) for c in kept]
    unmeasured = [names[c] for c, part in zip(kept, parts, strict=True) if math.isnan(part.interval.low)]
    estimate = weighted_sum_interval(parts, shares_C[kept]) if not unmeasured else Estimate(math.nan, UNDEFINED)
    return GuardPrecision(len(labels_N), classes, estimate, unmeasured, is_weighted=True)


@dataclass(frozen=True)
class RoundComparison:
    """This round's model minus the last one's, on the guard."""

    previous: str
    differences: dict[str, Difference]

    @property
    def worse(self) -> list[str]:
        """The metrics on which this round's model is significantly worse."""
        tests = len(self.differences)
        return [name for name, difference in self.differences.items() if _is_worse(name, difference, tests)]

    def fault(self, model: str) -> str | None:
        """Why the rounds end here; None if they need not."""
        if not self.worse:
            return None
        measured = "; ".join(_difference_phrase(name, self.differences[name]) for name in self.worse)
        return (
            f"the last round did harm: on the guard rows {model} is significantly worse than {self.previous} "
            f"({measured}); go on from {self.previous}, with a higher --confidence or fewer rows, or stop there"
        )

    def text(self) -> str:
        """All that was compared."""
        phrases = "; ".join(_difference_phrase(name, difference) for name, difference in self.differences.items())
        return f"minus {self.previous}: {phrases}"


def compare_rounds(
    new_NC: np.ndarray,
    previous_NC: np.ndarray,
    labels_N: np.ndarray,
    space: LabelSpace,
    thresholds: tuple[Sequence[float] | None, Sequence[float] | None],
    previous: str,
    clusters_N: np.ndarray | None = None,
) -> RoundComparison:
    """Both models on the guard; arguments as for :func:`clsgen_dist.inference.compare.compared_metrics`."""
    _, differences = compared_metrics(new_NC, previous_NC, labels_N, space, thresholds, clusters_N=clusters_N)
    return RoundComparison(previous, {name: differences[name] for name in _TESTED if name in differences})


def _is_worse(name: str, difference: Difference, tests: int) -> bool:
    loss = -difference.value if name in HIGHER_IS_BETTER else difference.value
    return bool(loss > 0 and difference.p_value * tests < _LEVEL)  # an undefined p-value is no evidence


def _difference_phrase(name: str, difference: Difference) -> str:
    return f"{WORDS[name]} {difference.value:+.3f}, {_interval_phrase(difference.interval)}p = {difference.p_value:.2g}"


def _interval_phrase(interval: Interval) -> str:
    return "" if math.isnan(interval.low) else f"95 %: {interval.low:+.3f} to {interval.high:+.3f}, "
