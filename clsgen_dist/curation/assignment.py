"""Which split each component of rows goes to: stratified by class, or by time.

A component is what must stay together (copies, near duplicates, a group's rows). Split s should have q_sc rows of
class c and has a_sc; components are placed one by one, the largest first, where they least increase

    sum over s, c of (a_sc - q_sc)² / (q_sc + 1/2)

so that splits fill in proportion, and large groups are shared out like small ones. Quotas are whole numbers: a class's
shares rounded down, and each row left over to the split that has too few of all classes so far; so rare classes do not
all go to the largest split. Rows that stand alone meet the quotas exactly.

Cost: O(K S) for K components, about 3 s for a million of one row. Source: Sechidis, Tsoumakas, Vlahavas 2011, "On the
stratification of multi-label data", whose order (rarest class first) several classes a row have here.

Shapes: K components, S splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from clsgen_dist.errors import DataError, SettingsError

SPLITS = ("train", "dev", "calibration", "test")
"""In the order of time."""
DEFAULT_FRACTIONS = "train=0.8,dev=0.1,calibration=0.05,test=0.05"
_ROWS = -1
"""In the place of a class: every row counts."""


def fractions_of(text: str) -> dict[str, float]:
    """The splits and their shares from ``train=0.8,dev=0.1,test=0.1``, in the order of :data:`SPLITS`.

    Raises:
        SettingsError: an unknown or repeated name, no number, or shares that do not sum to 1.
    """
    found: dict[str, float] = {}
    for item in text.replace(",", " ").split():
        name, _, number = item.partition("=")
        if name not in SPLITS or name in found:
            raise SettingsError(
                f"--fractions has {item!r}, expected NAME=SHARE with each of {', '.join(SPLITS)} at most once"
            )
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = -1.0
        if not 0 < found[name] <= 1:
            raise SettingsError(f"--fractions has {item!r}, expected a share above 0, up to 1, like {name}=0.1")
    if len(found) < 2 or abs(sum(found.values()) - 1) > 1e-6:
        raise SettingsError(
            f"--fractions is {text!r}, whose shares sum to {sum(found.values()):g}; expected two or more splits whose "
            f"shares sum to 1, like {DEFAULT_FRACTIONS}"
        )
    return {name: found[name] for name in SPLITS if name in found}


def assign_stratified(
    classes_K: Sequence[Mapping[int, int]],
    size_K: NDArray[np.int64],
    order_K: NDArray[np.uint64],
    fractions: Sequence[float],
) -> NDArray[np.int8]:
    """``[K]`` the split of each component.

    Args:
        classes_K: rows of each class in each component; with several classes a row they sum to more than its size.
        size_K: rows of each component.
        order_K: random numbers: the order among equals.
        fractions: shares of the splits, which sum to 1.
    """
    totals: dict[int, int] = {}
    for counts in classes_K:
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
    rows = int(size_K.sum())
    is_one_class_a_row = sum(totals.values()) == rows and all(
        sum(counts.values()) == size for counts, size in zip(classes_K, size_K.tolist(), strict=True)
    )
    quotas: Mapping[int, Sequence[float]]
    if is_one_class_a_row:
        quotas = _whole_quotas(totals, fractions)
    else:
        totals[_ROWS] = rows
        quotas = {name: [share * total for share in fractions] for name, total in totals.items()}
    rarest_K = np.array([min((totals[name] for name in counts), default=rows) for counts in classes_K])
    filled = {name: [0] * len(fractions) for name in totals}
    split_K = np.zeros(len(size_K), dtype=np.int8)
    for component in np.lexsort((order_K, rarest_K, -size_K)).tolist():
        counts = classes_K[component]
        if not is_one_class_a_row:
            counts = {**counts, _ROWS: int(size_K[component])}
        best, best_cost = 0, np.inf
        for split in range(len(fractions)):
            cost = 0.0
            for name, count in counts.items():
                quota = quotas[name][split]
                cost += count * (count + 2 * (filled[name][split] - quota)) / (quota + 0.5)
            if cost < best_cost:
                best, best_cost = split, cost
        split_K[component] = best
        for name, count in counts.items():
            filled[name][best] += count
    return split_K


def _whole_quotas(totals: Mapping[int, int], fractions: Sequence[float]) -> dict[int, list[int]]:
    """Rows of each class for each split: each class in proportion, and all classes together."""
    given = [0] * len(fractions)
    quotas: dict[int, list[int]] = {}
    for name in sorted(totals):
        quota = [int(share * totals[name]) for share in fractions]
        given = [a + b for a, b in zip(given, quota, strict=True)]
        for _ in range(totals[name] - sum(quota)):
            # What each split should have of all classes so far, less what it has; none gets two rows left over.
            behind = [
                share * (sum(given) + 1) - has if share * totals[name] > quota[s] else -np.inf
                for s, (share, has) in enumerate(zip(fractions, given, strict=True))
            ]
            split = int(np.argmax(behind))
            given[split] += 1
            quota[split] += 1
        quotas[name] = quota
    return quotas


def assign_by_time(
    time_K: NDArray[np.float64], size_K: NDArray[np.int64], order_K: NDArray[np.uint64], fractions: Sequence[float]
) -> NDArray[np.int8]:
    """``[K]`` the split of each component, the earliest in the first; a component is as late as its latest row.

    So no row of a split is later than the latest row of any component in a later split.
    """
    order = np.lexsort((order_K, time_K))
    ends = np.cumsum(size_K[order])
    middles = ends - size_K[order] / 2
    bounds = np.cumsum(fractions)[:-1] * (ends[-1] if len(ends) else 0)
    split_K = np.zeros(len(size_K), dtype=np.int8)
    split_K[order] = np.searchsorted(bounds, middles, side="right")
    return split_K


def require_rows_everywhere(sizes: Mapping[str, int], components: int, largest: int) -> None:
    """DataError if a split has no row."""
    if empty := [name for name, size in sizes.items() if not size]:
        raise DataError(
            f"{empty[0]} would have no row: {sum(sizes.values())} rows are {components} "
            f"component{'s' * (components != 1)} that must stay together, the largest of {largest} rows; give "
            f"{empty[0]} a larger share, leave it out of --fractions, or let fewer rows stay together (groups, --near)"
        )
