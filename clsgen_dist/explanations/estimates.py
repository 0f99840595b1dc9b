"""A measure's result: a value for each row with their mean, or one number for all rows; each with its interval.

NaN stands for undefined: a row without number has no share of true numbers. Means leave such rows out and count them.
Intervals are percentile bootstraps over all rows (:mod:`clsgen_dist.evaluation.bootstrap`), undefined ones included,
so that their number varies as well. Shares that are 0 or 1 have Wilson's interval, which says what 7 rows of 7 are
worth; so have equal shares, as none vary more than yes and no do. Other values that are all alike, or fewer than 6,
have none. Rows are independent, or in clusters (:func:`in_clusters`), which are then what is drawn and counted. Cost:
0.2 s for 10,000 rows, when the interval is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from clsgen_dist.errors import DataError
from clsgen_dist.evaluation.bootstrap import Statistic, bootstrap_interval, too_few
from clsgen_dist.evaluation.interval import Interval, share_interval

# N rows

UNDEFINED = float("nan")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class RowScores:
    """A measure that has a value for each row."""

    values_N: np.ndarray
    """NaN where undefined."""
    is_share: bool = False
    """Values lie between 0 and 1."""
    clusters_N: np.ndarray | None = None
    """An id for each row; None: all are independent."""
    resamples: int = 1000

    @cached_property
    def mean(self) -> float:
        """Over the rows where it is defined; NaN without any."""
        return float(self.values_N[self._is_defined_N].mean()) if self.defined else UNDEFINED

    @cached_property
    def defined(self) -> int:
        """Rows that the mean is of."""
        return int(np.count_nonzero(self._is_defined_N))

    @cached_property
    def interval(self) -> Interval:
        """Of the mean."""
        is_defined_N, clusters_N = self._is_defined_N, self.clusters_N
        kept = self.values_N[is_defined_N]
        own = None if clusters_N is None else clusters_N[is_defined_N]
        if self.is_share and len(kept) and (np.isin(kept, (0, 1)).all() or (kept == kept[0]).all()):
            return share_interval(kept, clusters_N=own)
        if too_few(len(kept) if own is None else len(np.unique(own))) or (kept == kept[0]).all():
            return Interval(UNDEFINED, UNDEFINED)
        filled_N = np.where(is_defined_N, self.values_N, 0.0)

        def mean(index: np.ndarray) -> float:
            count = np.count_nonzero(is_defined_N[index])
            return float(filled_N[index].sum() / count) if count else UNDEFINED

        return bootstrap_interval(mean, len(filled_N), resamples=self.resamples, clusters_N=clusters_N)

    @property
    def _is_defined_N(self) -> np.ndarray:
        return ~np.isnan(self.values_N)


@dataclass(frozen=True)
class PooledScore:
    """A measure of all rows together, such as κ."""

    value: float
    interval: Interval
    rows: int
    """Rows that the value is of."""


def row_scores(values: Iterable[float], *, is_share: bool = False, resamples: int = 1000) -> RowScores:
    """A value for each row; ``is_share``: they lie between 0 and 1."""
    return RowScores(np.array(list(values), dtype=np.float64), is_share, resamples=resamples)


def in_clusters(measure: T, clusters_N: np.ndarray | None) -> T:
    """The measure, its scores and those in its fields with intervals for rows of these clusters; None: as it is.

    Scores must have a value for each of the N rows; scores of no rows stay.
    """
    if clusters_N is None or measure is None:
        return measure
    if isinstance(measure, RowScores):
        return replace(measure, clusters_N=clusters_N) if len(measure.values_N) else measure
    changed = {
        field.name: in_clusters(value, clusters_N)
        for field in fields(measure)  # type: ignore[arg-type]
        if isinstance(value := getattr(measure, field.name), RowScores) or is_dataclass(value)
    }
    return replace(measure, **changed)  # type: ignore[type-var]


def estimate(
    statistic: Statistic, n_rows: int, *, resamples: int = 1000, clusters_N: np.ndarray | None = None
) -> PooledScore:
    """A statistic of row indices, with its interval; NaN without rows, and an interval without width."""
    if not n_rows:
        return PooledScore(UNDEFINED, Interval(UNDEFINED, UNDEFINED), 0)
    interval = bootstrap_interval(statistic, n_rows, resamples=resamples, clusters_N=clusters_N)
    if interval.low == interval.high:
        interval = Interval(UNDEFINED, UNDEFINED)
    return PooledScore(statistic(np.arange(n_rows)), interval, n_rows)


def check_same_rows(**columns: object) -> None:
    """DataError if the columns differ in length."""
    lengths = {name: len(column) for name, column in columns.items()}  # type: ignore[arg-type]
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise DataError(f"{listed}, expected one of each for every row; pass the columns of the same rows")
