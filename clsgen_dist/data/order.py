"""Which row stands at a position of the stream: a pure function of (seed, stage, position).

A stage shows P positions of N rows. It is cut into segments; a segment says which share of its positions each band of
difficulty gets, so that a row in band b of n_b rows is shown at the rate share_b / n_b per position. A row's rate
summed up to position t is Λ(t). The k-th showing of row i comes when Λ_i reaches k + φ, with φ uniform in [0, 1) and
drawn afresh for each k (systematic sampling):

    showings of row i up to t  =  floor(Λ_i(t))  or  ceil(Λ_i(t)),    at random by seed, never more, never fewer

and the stream is all showings in the order of their t. One segment over all rows is the usual thing: each epoch shows
every row once, in an order of its own. Nothing here knows of ranks, batches or what was shown before.

Price: the positions are made in windows of about a million; one costs a pass over the rows and a sort of the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# N rows, G groups of rows that always share their rate, J segments, p positions of a window

_WINDOW = 2**20
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
        self._phase: tuple[int, np.ndarray] | None = None

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
        return self._showings_before(self._start(window)) + np.bincount(row_p, minlength=self._rows)

    def expected(self) -> np.ndarray:
        """``[N]`` Λ at the end of the stage: each row is shown this often, rounded down or up."""
        return self._sum_G(float(self._end_J[-2]))[self._group_N]

    def _sum_G(self, time: float) -> np.ndarray:
        return np.array([np.interp(time, self._end_J, sums_J) for sums_J in self._sum_GJ])

    def _phase_of(self, showing: int) -> np.ndarray:
        """φ of every row's showing number ``showing``, ``[N]``."""
        if self._phase is None or self._phase[0] != showing:
            self._phase = (showing, np.random.default_rng([*self._key, showing]).random(self._rows))
        return self._phase[1]

    def _showings_before(self, time: float) -> np.ndarray:
        sum_N = self._sum_G(time)[self._group_N]
        whole_N = np.floor(sum_N).astype(np.int64)
        count_N = whole_N.copy()
        for showing in np.unique(whole_N):
            mine = whole_N == showing
            # The same comparison as in _make, to the last bit.
            count_N[mine] += showing + self._phase_of(int(showing))[mine] < sum_N[mine]
        return count_N

    def _start(self, window: int) -> float:
        return self.positions * window / self._windows

    def _count_before(self, window: int) -> int:
        """Positions before a window."""
        if window not in self._before:
            self._before[window] = int(self._showings_before(self._start(window)).sum()) if window else 0
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
        start = self._start(window)
        stop = float(self._end_J[-1]) if last else self._start(window + 1)
        low_G, high_G = self._sum_G(start), self._sum_G(stop)
        rows, showings, times = [], [], []
        for showing in range(int(np.floor(low_G.min())), int(np.ceil(high_G.max()))):
            reached_G = (low_G < showing + 1) & (high_G > showing)
            candidates = np.flatnonzero(reached_G[self._group_N])
            group_p = self._group_N[candidates]
            target_p = showing + self._phase_of(showing)[candidates]
            inside = (target_p >= low_G[group_p]) & (target_p < high_G[group_p])
            candidates, group_p, target_p = candidates[inside], group_p[inside], target_p[inside]
            time_p = np.empty(len(candidates))
            for group in np.unique(group_p):
                mine = group_p == group
                time_p[mine] = self._when(int(group), target_p[mine])
            rows.append(candidates)
            showings.append(np.full(len(candidates), showing))
            times.append(time_p)
        row_p, showing_p, time_p = map(np.concatenate, (rows, showings, times))
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
