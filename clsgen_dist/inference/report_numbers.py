"""Numbers of a report as text; "n/a" for an undefined one."""

from __future__ import annotations

import math

from clsgen_dist.evaluation.interval import Interval
from clsgen_dist.explanations.estimates import RowScores


def number(value: float) -> str:
    """Three decimals; large numbers without."""
    return "n/a" if math.isnan(value) else f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def with_interval(value: float, interval: Interval, sign: str = "") -> str:
    """A value with its interval in brackets, if it has one; ``sign="+"`` writes the sign of positive numbers."""
    if math.isnan(value):
        return "n/a"
    if math.isnan(interval.low):
        return f"{value:{sign}.3f}"
    return f"{value:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def percent(share: float) -> str:
    """A share in per cent."""
    return "n/a" if math.isnan(share) else f"{100 * share:.1f} %"


def mean(scores: RowScores) -> str:
    """The mean over rows with its interval."""
    return with_interval(scores.mean, scores.interval)


def share(scores: RowScores) -> str:
    """The mean over rows in per cent, with its interval."""
    return percent_with_interval(scores.mean, scores.interval)


def percent_with_interval(value: float, interval: Interval) -> str:
    """A share in per cent, with its interval in brackets, if it has one."""
    if math.isnan(value) or math.isnan(interval.low):
        return percent(value)
    return f"{percent(value)} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def or_else(value: float | None, other: float) -> float:
    """``other`` for an undefined value."""
    return other if value is None or math.isnan(value) else value
