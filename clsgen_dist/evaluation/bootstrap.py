"""Confidence intervals of metrics: percentile bootstrap over the rows (Efron & Tibshirani 1993).

    interval = quantiles of statistic(rows drawn with replacement)

Two models on the same rows are compared by the interval of their paired difference, on the same resamples: effects of
rows that are hard for both cancel, so it is narrower than two separate intervals suggest. Cost: ``resamples`` calls
of the statistic; AUROC takes about 2 ms a call on 400 rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], float]
"""Takes row indices, returns the metric on those rows."""


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval; on ``dropped`` resamples the metric is undefined (one class only)."""

    low: float
    high: float
    dropped: int = 0


def bootstrap_interval(
    statistic: Statistic, n_rows: int, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile interval of the statistic over resamples of the rows; NaN if it is undefined on all of them."""
    if n_rows < 1 or resamples < 1:
        raise ValueError(
            f"{resamples} resamples of {n_rows} rows, expected at least one of each; add rows, or raise resamples"
        )
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(0, n_rows, n_rows)) for _ in range(resamples)])
    kept = values[~np.isnan(values)]
    if len(kept) == 0:
        return Interval(float("nan"), float("nan"), resamples)
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), resamples - len(kept))
