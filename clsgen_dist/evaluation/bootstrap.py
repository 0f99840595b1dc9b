"""How sure a figure on few rows is: percentile bootstrap over the rows (Efron & Tibshirani 1993).

    interval = quantiles of statistic(rows drawn with replacement)

Two models on the same rows are compared by the interval of their difference, on the same resamples: what makes a row
hard for both then cancels, and it is narrower than two intervals laid side by side suggest. Cost: ``resamples`` calls
of the statistic; AUROC takes about 2 ms a call on 400 rows.
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


def bootstrap_interval(
    statistic: Statistic, n_rows: int, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """The middle ``level`` of the statistic over resamples of the rows; NaN where none has a value."""
    if n_rows < 1 or resamples < 1:
        raise ValueError(f"{resamples} resamples of {n_rows} rows, expected at least one of each")
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(0, n_rows, n_rows)) for _ in range(resamples)])
    kept = values[~np.isnan(values)]
    if len(kept) == 0:
        return Interval(float("nan"), float("nan"), resamples)
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), resamples - len(kept))
