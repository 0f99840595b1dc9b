"""How sure a figure on few rows is: percentile bootstrap over the rows (Efron & Tibshirani 1993).

    interval = quantiles of statistic(rows drawn with replacement)

Two models on the same rows are compared on the same resamples: what makes a row hard for both then cancels, and the
interval of the difference is narrower than two intervals laid side by side suggest. Price: ``resamples`` calls of each
statistic; AUROC takes about 2 ms a call on 400 rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], float]
"""Takes row indices, gives the figure on those rows."""


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval; ``dropped`` resamples had no value (one class only)."""

    low: float
    high: float
    dropped: int = 0


@dataclass(frozen=True)
class Comparison:
    """Two figures on the same rows, by ``a - b``."""

    difference: Interval
    share_not_greater: float
    """Share of the resamples in which a is no greater than b."""


def bootstrap_interval(
    statistic: Statistic, n_rows: int, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """The middle ``level`` of the statistic over resamples of the rows; NaN where none has a value."""
    return _middle(_resampled(statistic, n_rows, resamples, seed), level)


def paired_bootstrap(
    stat_a: Statistic, stat_b: Statistic, n_rows: int, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Comparison:
    """How surely ``stat_a`` exceeds ``stat_b``; resamples where either has no value are dropped and counted."""
    values = _resampled(lambda index_N: stat_a(index_N) - stat_b(index_N), n_rows, resamples, seed)
    kept = values[~np.isnan(values)]
    return Comparison(_middle(values, level), float((kept <= 0).mean()) if len(kept) else float("nan"))


def _resampled(statistic: Statistic, n_rows: int, resamples: int, seed: int) -> np.ndarray:
    if n_rows < 1 or resamples < 1:
        raise ValueError(f"{resamples} resamples of {n_rows} rows, expected at least one of each")
    rng = np.random.default_rng(seed)
    return np.array([statistic(rng.integers(0, n_rows, n_rows)) for _ in range(resamples)])


def _middle(values: np.ndarray, level: float) -> Interval:
    kept = values[~np.isnan(values)]
    if len(kept) == 0:
        return Interval(float("nan"), float("nan"), len(values))
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), len(values) - len(kept))
