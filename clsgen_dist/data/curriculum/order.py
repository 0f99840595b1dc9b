"""The row at each position of the stream: a pure function of (seed, stage, position).

A stage has P positions, drawn from N rows. It consists of segments; a segment gives each band of difficulty a share of
its positions, so that a row in band b of n_b rows is visited at the rate share_b / n_b per position. With balanced
classes a band's share is divided first among the classes that have rows in it, then among their rows. A row's rate
summed up to position t is Λ(t). The k-th visit of row i is at the t where Λ_i reaches k + φ, with φ uniform in [0, 1)
and drawn again for each k (systematic sampling):

    visits of row i up to t  =  floor(Λ_i(t))  or  ceil(Λ_i(t)),    at random by seed, never more, never fewer

and the stream is all visits in the order of their t. For their number at the stage's end to be exactly P, and not P on
average, the last, fractional visit is drawn without replacement: of the n_g rows with the same rate, whose Λ ends with
the fraction f, n_g·f rows (randomly rounded, so that the total is P) have their φ below f. With one segment over all
rows, each epoch visits every row once, in an order of its own. Nothing here depends on ranks, batches or earlier
visits.

Cost: two bytes of memory per row, and temporarily eight where a stage ends in the middle of an epoch. Positions are
computed in windows of about 262,000; a window costs a pass over the rows (half a second for ten million) and a sort of
the window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# N rows, C classes, I intervals of difficulty, G groups of rows that always share their rate (C x I), J segments,
# p positions of a window

_WINDOW = 2**18
_BLOCK = 2**18
_LAST = 2**31
"""Larger than the number of any visit: gives the draw of the last visits its own random stream."""
EDGE = 1e-7
"""Quantiles are single precision: one this close to a band's edge is on it."""
_DOMAIN = 0xC15
"""Gives the order its own random stream: numpy's seeds 0 and (0, 0, 0) are equal, and users often split with seed 0."""


@dataclass(frozen=True)
class Band:
    """Rows between two difficulty quantiles, and their share of a segment's positions."""

    low: float
    high: float
    """Rows with ``low <= quantile < high``; 1 includes the hardest."""
    share: float


@dataclass(frozen=True)
class Segment:
    """A stretch of a stage over which the rates do not change."""

    positions: float
    """Number of positions; may be fractional."""
    bands: tuple[Band, ...]


class StageOrder:
    """The order of one stage.

    Args:
        quantile_N: difficulty of each row as a quantile in [0, 1).
        segments: the rates over the stage; their positions add up to ``positions``.
        positions: length of the stage.
        key: (seed, stage), or any integers that identify the order.
        class_N: class of each row, by which visits are balanced, -1 without label; None: rows count alike.

    Raises:
        ValueError: a segment without rows.
    """

    def __init__(
        self,
        quantile_N: np.ndarray,
        segments: Sequence[Segment],
        positions: int,
        key: Sequence[int],
        class_N: np.ndarray | None = None,
    ) -> None:
        self.positions, self._key, self._rows = positions, [_DOMAIN, *map(int, key)], len(quantile_N)
        edges = sorted({0.0, 1.0, *(e for s in segments for b in s.bands for e in (b.low, b.high))})
        # A row on an edge belongs above it, regardless of rounding.
        above_N = np.searchsorted(np.array(edges) - EDGE, quantile_N, side="right") - 1
        interval_N, intervals = above_N.clip(0, len(edges) - 2), len(edges) - 1
        names_C = np.zeros(1, dtype=np.int64) if class_N is None else np.unique(class_N)
        of_class_N = 0 if class_N is None else np.searchsorted(names_C, class_N)
        group_N = of_class_N * intervals + interval_N
        self._group_N = group_N.astype(np.int16 if len(names_C) * intervals < 2**15 else np.int32)
        size_G = np.bincount(self._group_N, minlength=len(names_C) * intervals)
        size_CI = size_G.reshape(len(names_C), intervals)
        rate_JG = np.stack([_rates(segment, np.array(edges), size_CI, names_C).ravel() for segment in segments])
        lengths_J = np.array([s.positions for s in segments], dtype=np.float64)
        lengths_J *= positions / lengths_J.sum()
        # A tail at the last rates, so that rounding of a sum cannot drop the last visit.
        self._end_J = np.concatenate([[0.0], np.cumsum([*lengths_J, 1.0])])
        steps_JG = np.concatenate([rate_JG * lengths_J[:, None], rate_JG[-1:]])
        self._sum_GJ = np.concatenate([np.zeros((1, steps_JG.shape[1])), np.cumsum(steps_JG, axis=0)]).T
        self._last_G, self._fraction_G, self._chosen_G = self._draw_last(size_G)
        self._windows = max(1, math.ceil(positions / _WINDOW))
        self._before: dict[int, int] = {}
        self._window: tuple[int, int, np.ndarray, np.ndarray, np.ndarray] | None = None

    def at(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``[p]`` at the positions from ``start`` up to ``stop``, and how often the stage visited each before."""
        rows, visits = [], []
        while start < stop:
            _, first, row_p, visit_p, _ = self._window_of(start)
            take = slice(start - first, min(stop - first, len(row_p)))
            rows.append(row_p[take])
            visits.append(visit_p[take])
            start = first + take.stop
        return np.concatenate(rows), np.concatenate(visits)

    def visit_counts(self) -> np.ndarray:
        """``[N]`` how often the stage visits each row."""
        window, _, row_p, _, _ = self._window_of(self.positions - 1)
        count_N = np.bincount(row_p, minlength=self._rows).astype(np.int32)
        for block, before_n in self._visits_before(self._start(window)):
            count_N[block] += before_n
        return count_N

    def _sum_G(self, time: float) -> np.ndarray:
        return np.array([np.interp(time, self._end_J, sums_J) for sums_J in self._sum_GJ])

    def _row_blocks(self) -> Iterator[slice]:
        """The rows in blocks, so that only the rows' groups need memory for all rows."""
        for start in range(0, self._rows, _BLOCK):
            yield slice(start, min(start + _BLOCK, self._rows))

    def _phase(self, visit: int, block: slice) -> np.ndarray:
        """φ of a block's rows for visit number ``visit``."""
        phase_n = self._uniform(visit, block)
        if visit in self._last_G:
            group_n = self._group_N[block]
            is_last_n = self._last_G[group_n] == visit
            group_m = group_n[is_last_n]
            phase_n[is_last_n] = _warp_phase(phase_n[is_last_n], self._chosen_G[group_m], self._fraction_G[group_m])
        return phase_n

    def _uniform(self, visit: int, block: slice) -> np.ndarray:
        rng = np.random.default_rng([*self._key, visit, block.start // _BLOCK])
        return rng.random(block.stop - block.start)

    def _draw_last(self, size_G: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``[G]`` number of each group's last visit, its fraction, and the φ below which a row has it."""
        sum_G = self._sum_GJ[:, -2]
        last_G = np.floor(sum_G).astype(np.int64)
        fraction_G = sum_G - last_G
        left = self.positions - int((last_G * size_G).sum())
        # Rounded to the right total: integers counted along the cumulative sums, from a random start.
        ends_G = np.cumsum(fraction_G * size_G)
        ends_G *= left / max(ends_G[-1], 1e-300)
        ends_G[-1] = left
        start = np.random.default_rng([*self._key, _LAST]).random()
        rows_G = np.diff(np.floor(ends_G + start), prepend=0.0).astype(np.int64).clip(0, size_G)
        chosen_G = np.where(rows_G > 0, 1.0, 0.0)
        for visit in np.unique(last_G[(rows_G > 0) & (rows_G < size_G)]):
            phase_N = np.concatenate([self._uniform(int(visit), block) for block in self._row_blocks()])
            for group in np.flatnonzero((last_G == visit) & (rows_G > 0) & (rows_G < size_G)):
                sorted_phases = np.partition(phase_N[self._group_N == group], rows_G[group])
                chosen_G[group] = sorted_phases[rows_G[group]]
        return last_G, fraction_G, chosen_G

    def _visits_before(self, time: float) -> Iterator[tuple[slice, np.ndarray]]:
        """Blocks of rows, and how often each row was visited before ``time``."""
        sum_G = self._sum_G(time)
        for block in self._row_blocks():
            sum_n = sum_G[self._group_N[block]]
            full_n = np.floor(sum_n).astype(np.int32)
            count_n = full_n.copy()
            for visit in np.unique(full_n):
                of_visit_n = full_n == visit
                # Exactly the comparison of _make, so that both count the same visits.
                count_n[of_visit_n] += visit + self._phase(int(visit), block)[of_visit_n] < sum_n[of_visit_n]
            yield block, count_n

    def _start(self, window: int) -> float:
        return self.positions * window / self._windows

    def _count_before(self, window: int) -> int:
        """Positions before a window."""
        if window not in self._before:
            self._before[window] = (
                sum(int(n.sum()) for _, n in self._visits_before(self._start(window))) if window else 0
            )
        return self._before[window]

    def _window_of(self, position: int) -> tuple[int, int, np.ndarray, np.ndarray, np.ndarray]:
        """The window of a position: its number and first position; rows, visits and times in order."""
        if self._window is None or not 0 <= position - self._window[1] < len(self._window[2]):
            guess = min(position * self._windows // self.positions, self._windows - 1)
            while guess and self._count_before(guess) > position:
                guess -= 1
            while guess < self._windows - 1 and self._count_before(guess + 1) <= position:
                guess += 1
            self._window = self._make(guess)
        return self._window

    def _make(self, window: int) -> tuple[int, int, np.ndarray, np.ndarray, np.ndarray]:
        last = window == self._windows - 1
        stop = float(self._end_J[-1]) if last else self._start(window + 1)
        low_G, high_G = self._sum_G(self._start(window)), self._sum_G(stop)
        visits: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for visit in range(int(np.floor(low_G.min())), int(np.ceil(high_G.max()))):
            reached_G = (low_G < visit + 1) & (high_G > visit)
            for block in self._row_blocks():
                group_n = self._group_N[block]
                target_n = visit + self._phase(visit, block)
                inside_n = reached_G[group_n] & (target_n >= low_G[group_n]) & (target_n < high_G[group_n])
                row_p = np.flatnonzero(inside_n)
                group_p, target_p = group_n[row_p], target_n[row_p]
                time_p = np.empty(len(row_p))
                for group in np.unique(group_p):
                    of_group_p = group_p == group
                    time_p[of_group_p] = self._when(int(group), target_p[of_group_p])
                visits.append((row_p + block.start, np.full(len(row_p), visit, dtype=np.int32), time_p))
        row_p, visit_p, time_p = (np.concatenate(parts) for parts in zip(*visits, strict=True))
        order = np.lexsort((row_p, time_p))
        first = self._count_before(window)
        if last:
            order = order[: self.positions - first]
        return window, first, row_p[order], visit_p[order], time_p[order]

    def _when(self, group: int, target_p: np.ndarray) -> np.ndarray:
        """Λ⁻¹: when a group's summed rate reaches each target."""
        sums_J = self._sum_GJ[group]
        rising = np.concatenate([[True], np.diff(sums_J) > 0])
        # Where Λ is constant, the last point of the flat stretch counts.
        keep = rising | np.concatenate([rising[1:], [True]])
        at = np.searchsorted(sums_J[keep], target_p, side="right").clip(1, keep.sum() - 1)
        x, y = self._end_J[keep], sums_J[keep]
        slope = np.maximum(y[at] - y[at - 1], 1e-300)
        return x[at - 1] + (target_p - y[at - 1]) / slope * (x[at] - x[at - 1])


def _warp_phase(phase: np.ndarray, chosen: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """φ mapped to [0, fraction) below ``chosen`` and to [fraction, 1) from there on."""
    below = phase / np.maximum(chosen, 1e-300) * fraction
    above = fraction + (phase - chosen) / np.maximum(1 - chosen, 1e-300) * (1 - fraction)
    return np.where(phase < chosen, np.minimum(below, np.nextafter(fraction, 0)), above)


def _rates(segment: Segment, edges: np.ndarray, size_CI: np.ndarray, names_C: np.ndarray) -> np.ndarray:
    """``[C, I]`` rate of a row of each class and interval of difficulty; the share of an empty band goes to the others.

    Classes share a band equally, but for rows without label (-1), which keep their part of the rows.
    """
    middle_I = (edges[:-1] + edges[1:]) / 2
    rate_CI = np.zeros(size_CI.shape)
    total = 0.0
    for band in segment.bands:
        inside_I = (middle_I >= band.low) & (middle_I < band.high)
        rows_C = size_CI[:, inside_I].sum(axis=1)
        if rows_C.sum() and band.share > 0:
            unlabelled = rows_C[names_C < 0].sum() / rows_C.sum()
            part_C = np.where(names_C < 0, unlabelled, (rows_C > 0) * (1 - unlabelled))
            part_C[names_C >= 0] /= max(1, np.count_nonzero(rows_C[names_C >= 0]))
            rate_CI[:, inside_I] += (band.share * part_C / np.maximum(rows_C, 1))[:, None]
            total += band.share
    if total == 0:
        ranges = ", ".join(f"{b.low:.3g}-{b.high:.3g}" for b in segment.bands)
        raise ValueError(f"no row has a difficulty in {ranges}")
    return rate_CI / total
