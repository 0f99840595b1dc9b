"""Which row stands at a position of the stream: a pure function of (seed, stage, position).

A stage shows P positions of N rows. It is cut into segments; a segment says which share of its positions each band of
difficulty gets, so that a row in band b of n_b rows is shown at the rate share_b / n_b per position. A row's rate
summed up to position t is Λ(t). The k-th showing of row i comes when Λ_i reaches k + φ, with φ uniform in [0, 1) and
drawn afresh for each k (systematic sampling):

    showings of row i up to t  =  floor(Λ_i(t))  or  ceil(Λ_i(t)),    at random by seed, never more, never fewer

and the stream is all showings in the order of their t. One segment over all rows is the usual thing: each epoch shows
every row once, in an order of its own. Nothing here knows of ranks, batches or what was shown before.

Price: two bytes a row in memory. The positions are made in windows of about 262,000; one costs a pass over the rows
(half a second for ten million) and a sort of the window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# N rows, G groups of rows that always share their rate, J segments, p positions of a window

_WINDOW = 2**18
_BLOCK = 2**18
_DOMAIN = 0xC15
"""Sets our draws apart: numpy gives 0 and (0, 0, 0) the same stream, and users' sets are often drawn from seed 0."""


@dataclass(frozen=True)
class Band:
    """Rows between two difficulty quantiles, and the share of a segment's positions that they get together."""

    low: float
    high: float
    """Rows with ``low <= quantile < high``; 1 includes the hardest."""
    share: float


@dataclass(frozen=True)
class Segment:
    """A stretch of a stage over which the rates do not change."""

    positions: float
    """How many positions it takes; a fraction is fine."""
    bands: tuple[Band, ...]


class StageOrder:
    """The order of one stage.

    Args:
        quantile_N: difficulty of each row as a quantile in [0, 1).
        segments: what is shown when; their positions add up to ``positions``.
        positions: length of the stage.
        key: (seed, stage), or any other integers that set this order apart.

    Raises:
        ValueError: a segment in which no row lies.
    """

    def __init__(self, quantile_N: np.ndarray, segments: Sequence[Segment], positions: int, key: Sequence[int]) -> None:
        self.positions, self._key, self._rows = positions, [_DOMAIN, *map(int, key)], len(quantile_N)
        edges = sorted({0.0, 1.0, *(e for s in segments for b in s.bands for e in (b.low, b.high))})
        self._group_N = (np.searchsorted(edges, quantile_N, side="right") - 1).clip(0, len(edges) - 2).astype(np.int16)
        size_G = np.bincount(self._group_N, minlength=len(edges) - 1)
        rate_JG = np.stack([_rates(segment, np.array(edges), size_G) for segment in segments])
        lengths_J = np.array([s.positions for s in segments], dtype=np.float64)
        # A tail at the last rates, since the showings up to `positions` are that many only on average.
        tail = 4.0 * math.sqrt(positions * len(edges)) + 64.0
        self._end_J = np.concatenate([[0.0], np.cumsum([*lengths_J, tail])])
        steps_JG = np.concatenate([rate_JG * lengths_J[:, None], rate_JG[-1:] * tail])
        self._sum_GJ = np.concatenate([np.zeros((1, steps_JG.shape[1])), np.cumsum(steps_JG, axis=0)]).T
        self._windows = max(1, math.ceil(positions / _WINDOW))
        self._before: dict[int, int] = {}
        self._window: tuple[int, int, np.ndarray, np.ndarray, np.ndarray] | None = None

    def at(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``[p]`` at the positions from ``start`` up to ``stop``, and which showing in this stage each is."""
        rows, showings = [], []
        while start < stop:
            _, first, row_p, showing_p, _ = self._window_of(start)
            take = slice(start - first, min(stop - first, len(row_p)))
            rows.append(row_p[take])
            showings.append(showing_p[take])
            start = first + take.stop
        return np.concatenate(rows), np.concatenate(showings)

    def showings(self) -> np.ndarray:
        """``[N]`` how often the stage shows each row."""
        window, _, row_p, _, _ = self._window_of(self.positions - 1)
        count_N = np.bincount(row_p, minlength=self._rows).astype(np.int32)
        for block, before_n in self._showings_before(self._start(window)):
            count_N[block] += before_n
        return count_N

    def _sum_G(self, time: float) -> np.ndarray:
        return np.array([np.interp(time, self._end_J, sums_J) for sums_J in self._sum_GJ])

    def _blocks(self) -> Iterator[slice]:
        """The rows a block at a time, so that nothing of the size of the set is held but the rows' groups."""
        for start in range(0, self._rows, _BLOCK):
            yield slice(start, min(start + _BLOCK, self._rows))

    def _phase(self, showing: int, block: slice) -> np.ndarray:
        """φ of a block's rows for their showing number ``showing``."""
        rng = np.random.default_rng([*self._key, showing, block.start // _BLOCK])
        return rng.random(block.stop - block.start)

    def _showings_before(self, time: float) -> Iterator[tuple[slice, np.ndarray]]:
        """Blocks of rows, and how often each row was shown before ``time``."""
        sum_G = self._sum_G(time)
        for block in self._blocks():
            sum_n = sum_G[self._group_N[block]]
            whole_n = np.floor(sum_n).astype(np.int32)
            count_n = whole_n.copy()
            for showing in np.unique(whole_n):
                mine = whole_n == showing
                # The same comparison as in _make, to the last bit.
                count_n[mine] += showing + self._phase(int(showing), block)[mine] < sum_n[mine]
            yield block, count_n

    def _start(self, window: int) -> float:
        return self.positions * window / self._windows

    def _count_before(self, window: int) -> int:
        """Positions before a window."""
        if window not in self._before:
            self._before[window] = (
                sum(int(n.sum()) for _, n in self._showings_before(self._start(window))) if window else 0
            )
        return self._before[window]

    def _window_of(self, position: int) -> tuple[int, int, np.ndarray, np.ndarray, np.ndarray]:
        """The window that holds a position: its number and first position; rows, showings and times in order."""
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
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for showing in range(int(np.floor(low_G.min())), int(np.ceil(high_G.max()))):
            reached_G = (low_G < showing + 1) & (high_G > showing)
            for block in self._blocks():
                group_n = self._group_N[block]
                target_n = showing + self._phase(showing, block)
                inside_n = reached_G[group_n] & (target_n >= low_G[group_n]) & (target_n < high_G[group_n])
                row_p = np.flatnonzero(inside_n)
                group_p, target_p = group_n[row_p], target_n[row_p]
                time_p = np.empty(len(row_p))
                for group in np.unique(group_p):
                    mine = group_p == group
                    time_p[mine] = self._when(int(group), target_p[mine])
                found.append((row_p + block.start, np.full(len(row_p), showing, dtype=np.int32), time_p))
        row_p, showing_p, time_p = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.lexsort((row_p, time_p))
        first = self._count_before(window)
        if last:
            order = order[: self.positions - first]
        return window, first, row_p[order], showing_p[order], time_p[order]

    def _when(self, group: int, target_p: np.ndarray) -> np.ndarray:
        """Λ⁻¹: when a group's summed rate reaches each target."""
        sums_J = self._sum_GJ[group]
        rising = np.concatenate([[True], np.diff(sums_J) > 0])
        # Where Λ stands still it is left at the end of the standstill: keep a flat stretch's last point.
        keep = rising | np.concatenate([rising[1:], [True]])
        at = np.searchsorted(sums_J[keep], target_p, side="right").clip(1, keep.sum() - 1)
        x, y = self._end_J[keep], sums_J[keep]
        slope = np.maximum(y[at] - y[at - 1], 1e-300)
        return x[at - 1] + (target_p - y[at - 1]) / slope * (x[at] - x[at - 1])


def _rates(segment: Segment, edges: np.ndarray, size_G: np.ndarray) -> np.ndarray:
    """``[G]`` rate of a row of each group; the share of a band without rows goes to the others."""
    middle_G = (edges[:-1] + edges[1:]) / 2
    rate_G = np.zeros(len(size_G))
    total = 0.0
    for band in segment.bands:
        inside_G = (middle_G >= band.low) & (middle_G < band.high)
        rows = size_G[inside_G].sum()
        if rows and band.share > 0:
            rate_G[inside_G] += band.share / rows
            total += band.share
    if total == 0:
        ranges = ", ".join(f"{b.low:.3g}-{b.high:.3g}" for b in segment.bands)
        raise ValueError(f"no row has a difficulty in {ranges}")
    return rate_G / total
