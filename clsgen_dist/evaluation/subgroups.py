"""Metrics of subgroups: a model that is good on average can be wrong for one hospital, language or product.

Each group has AUROC (DeLong), recall at the decision threshold (Wilson), calibration in the large (mean probability
minus frequency, Student's interval) and ECE (``ece_interval``). A group with fewer than 30 rows, or 5 of either class,
is listed as too small and not measured: its intervals would span nearly everything. Of clusters, each interval is the
one for clusters, and either class must be in 5 of them.

The worst group is the one whose interval is worst at its *better* end: with the lowest upper end of AUROC or recall,
the largest lower end of ECE, the interval of calibration in the large farthest from 0. So a small group does not win by
noise alone. Of G groups, one in twenty intervals misses the truth even if all groups are alike; name groups before you
look. Cost: about 30 ms a group, for the ECE's interval.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from clsgen_dist.evaluation.calibration_error import binned_ece, ece_interval
from clsgen_dist.evaluation.delong import auroc_interval
from clsgen_dist.evaluation.interval import Estimate, Interval, mean_interval, share_interval

# N rows, G groups

Criterion = Literal["auroc", "recall", "calibration_in_the_large", "ece"]

MIN_ROWS = 30
MIN_OF_CLASS = 5
NO_GROUP = "(none)"
"""Name of the rows whose group is None or NaN."""


@dataclass(frozen=True)
class Group:
    """Metrics of one group."""

    name: str
    rows: int
    positives: int
    auroc: Estimate
    recall: Estimate
    """Share of the positives at the threshold and above."""
    calibration_in_the_large: Estimate
    """Mean probability minus frequency: above 0, the group's risk is overstated."""
    ece: Estimate


@dataclass(frozen=True)
class SmallGroup:
    """A group too small to judge."""

    name: str
    rows: int
    positives: int


@dataclass(frozen=True)
class Subgroups:
    """Groups by name."""

    measured: list[Group]
    too_small: list[SmallGroup]

    def worst(self, criterion: Criterion) -> Group | None:
        """The group whose interval is worst at its better end.

        None if no group has an interval, or for calibration in the large and ECE if every interval reaches 0.
        """
        judged = [group for group in self.measured if not math.isnan(_badness(group, criterion))]
        if not judged:
            return None
        group = max(judged, key=lambda group: _badness(group, criterion))
        if criterion in ("calibration_in_the_large", "ece") and _badness(group, criterion) <= 0:
            return None
        return group


def subgroups(
    probability_N: np.ndarray,
    positive_N: np.ndarray,
    group_N: Sequence[str | tuple[str, ...] | None] | np.ndarray,
    *,
    threshold: float = 0.5,
    level: float = 0.95,
    min_rows: int = MIN_ROWS,
    min_of_class: int = MIN_OF_CLASS,
    resamples: int = 1000,
    seed: int = 0,
    clusters_N: np.ndarray | None = None,
) -> Subgroups:
    """Metrics of a yes-no question in each group of rows.

    Args:
        probability_N: of yes.
        positive_N: boolean outcomes.
        group_N: name of each row's group, or the names of all groups that it is in; rows whose name is None form the
            group ``(none)``.
        threshold: of the decision; a row is positive at this probability and above.
        level: of the intervals.
        min_rows: a group with fewer rows is too small.
        min_of_class: so is one with fewer rows of either outcome, or with fewer clusters that have such a row.
        resamples: for the ECE's interval.
        seed: for it too.
        clusters_N: an id for each row; rows of the same id are alike.

    Raises:
        ValueError: not one group name a row.
    """
    if len(group_N) != len(probability_N):
        raise ValueError(f"{len(group_N)} group names for {len(probability_N)} rows, expected one a row")
    positive_N = positive_N.astype(bool)
    measured, too_small = [], []
    for name, members in rows_by_group(group_N).items():
        p_N, is_N = probability_N[members], positive_N[members]
        own_N = None if clusters_N is None else clusters_N[members]
        rows = len(is_N)
        independent_N = np.arange(rows) if own_N is None else own_N
        if rows < min_rows or min(len(np.unique(independent_N[is_N == answer])) for answer in (0, 1)) < min_of_class:
            too_small.append(SmallGroup(name, rows, int(is_N.sum())))
        else:
            of_ece = ece_interval(
                p_N, is_N, binning="mass", level=level, resamples=resamples, seed=seed, clusters_N=own_N
            )
            measured.append(_measure(name, p_N, is_N, threshold, level, of_ece, own_N))
    return Subgroups(measured, too_small)


def rows_by_group(group_N: Sequence[str | tuple[str, ...] | None] | np.ndarray) -> dict[str, np.ndarray]:
    """The rows of each group by its name, in the order of names; argument as for :func:`subgroups`."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(group_N):
        for name in group if isinstance(group, tuple) else (group,):
            rows[NO_GROUP if name is None or name != name else str(name)].append(row)
    return {name: np.array(rows[name]) for name in sorted(rows)}


def _measure(
    name: str,
    probability_N: np.ndarray,
    positive_N: np.ndarray,
    threshold: float,
    level: float,
    of_ece: Interval,
    clusters_N: np.ndarray | None,
) -> Group:
    found_P = probability_N[positive_N] >= threshold
    clusters_P = None if clusters_N is None else clusters_N[positive_N]
    auroc = auroc_interval(probability_N, positive_N, level, clusters_N=clusters_N)
    excess_N = probability_N - positive_N
    return Group(
        name,
        len(positive_N),
        len(found_P),
        auroc=Estimate(auroc.value, auroc.interval),
        recall=Estimate(
            float(found_P.mean()) if len(found_P) else float("nan"),
            share_interval(found_P, level, clusters_N=clusters_P),
        ),
        calibration_in_the_large=Estimate(
            float(excess_N.mean()), mean_interval(excess_N, level, clusters_N=clusters_N)
        ),
        ece=Estimate(binned_ece(probability_N, positive_N, binning="mass"), of_ece),
    )


def _badness(group: Group, criterion: Criterion) -> float:
    """How bad the group is at the better end of its interval; larger is worse."""
    interval: Interval = getattr(group, criterion).interval
    if criterion in ("auroc", "recall"):
        return -interval.high
    return max(interval.low, -interval.high) if criterion == "calibration_in_the_large" else interval.low
