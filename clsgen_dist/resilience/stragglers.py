"""Stragglers: which rank slows the others down, by the name of its node.

ZeRO-3 couples the ranks layer by layer, so all of them show one and the same step time. Two things still differ:

    busy    seconds of a step that a rank does not spend waiting for the others (rows, logging, a process asleep)
    slow    the time of a small matrix product that every rank times by itself (a throttled or shared chip)

Waiting is what the host spends in gloo's collectives (:func:`clsgen_dist.engine.world.waiting`) and, on a GPU, where
the step's sums are read: there the host runs ahead of the device and waits nowhere else. Both figures are averaged over
a window and gathered at its end. A rank that stands out in two windows in a row is named, in the log and in
``stragglers.jsonl``. Cost: one gather and a few milliseconds of products every ``WINDOW`` steps.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from clsgen_dist.engine.world import World, seconds_waited
from clsgen_dist.io.json_lines import append_json_line

WINDOW = 20
"""Steps between two comparisons."""
_BUSY, _SLOW = 0.2, 1.3
"""Busy: for longer than the others by more than this share of a step. Slow: by more than this factor of the others."""
_SIZES = {"cpu": 384, "cuda": 4096}


@dataclass(frozen=True)
class RankTiming:
    """What one rank measured over a window."""

    rank: int
    node: str
    busy: float
    """Mean seconds of a step that it did not wait for others."""
    step: float
    """Mean seconds of a step."""
    product: float
    """Seconds of the matrix product, the best of a few."""


@dataclass(frozen=True)
class Straggler:
    """A rank that holds up the others, by one of two measures or both."""

    rank: int
    node: str
    step_s: float
    """Mean seconds of a step."""
    extra_busy_s: float | None
    """Seconds of a step that it is busy for longer than the others; None if that does not stand out."""
    slowdown: float | None
    """Time of its matrix product over that of the others; None if that does not stand out."""

    @property
    def words(self) -> str:
        """The rank and what is slow about it, in words."""
        parts = []
        if self.extra_busy_s is not None:
            parts.append(f"is busy {self.extra_busy_s:.3f} s longer than the others in a step of {self.step_s:.3f} s")
        if self.slowdown is not None:
            parts.append(f"multiplies {self.slowdown:.1f} times slower than the others")
        return f"rank {self.rank} on {self.node} {' and '.join(parts)}"


def find_stragglers(timings: list[RankTiming]) -> list[Straggler]:
    """The ranks that stand out, compared with the median of the others."""
    found = []
    for timing in timings if len(timings) > 1 else []:
        others = [other for other in timings if other is not timing]
        extra = timing.busy - median(other.busy for other in others)
        slowdown = timing.product / median(other.product for other in others)
        is_busy, is_slow = extra > _BUSY * timing.step, slowdown > _SLOW
        if is_busy or is_slow:
            measures = extra if is_busy else None, slowdown if is_slow else None
            found.append(Straggler(timing.rank, timing.node, timing.step, *measures))
    return found


class StragglerDetector:
    """Measures this rank, and compares all of them every :data:`WINDOW` steps.

    Args:
        world: this rank among the others.
        file: takes what was found, a line of JSON each time.
    """

    def __init__(self, world: World, file: Path) -> None:
        self._world, self._file = world, file
        size = _SIZES.get(world.device.type, _SIZES["cpu"])
        self._matrix = torch.ones(
            size, size, device=world.device, dtype=torch.bfloat16 if size > 1000 else torch.float32
        )
        self._steps, self._since, self._waited = 0, time.perf_counter(), seconds_waited()
        self._suspects: set[int] = set()
        """Ranks that stood out in the last window."""

    def step(self, step: int) -> list[Straggler]:
        """Another step begins; at the end of a window, collective: who stood out in it and in the one before."""
        self._steps += 1
        if self._steps < WINDOW:
            return []
        seconds = (time.perf_counter() - self._since) / WINDOW
        busy = seconds - (seconds_waited() - self._waited) / WINDOW
        own = RankTiming(self._world.rank, self._world.node, busy, seconds, self._time_product())
        found = find_stragglers(self._world.gather(own))
        again = [straggler for straggler in found if straggler.rank in self._suspects]
        if again and self._world.is_main:
            lines = [{**asdict(straggler), "text": straggler.words} for straggler in again]
            append_json_line(self._file, {"step": step, "stragglers": lines})
        self._suspects = {straggler.rank for straggler in found}
        self._steps, self._since, self._waited = 0, time.perf_counter(), seconds_waited()
        return again

    def _time_product(self) -> float:
        best = float("inf")
        for _ in range(4):
            start = time.perf_counter()
            (self._matrix @ self._matrix)[0, 0].item()
            best = min(best, time.perf_counter() - start)
        return best
