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

import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from clsgen_dist.engine.world import World, seconds_waited

WINDOW = 20
"""Steps between two comparisons."""
_BUSY, _SLOW = 0.2, 1.3
"""Busy: for longer than the others by more than this share of a step. Slow: by more than this factor of the others."""
_SIZES = {"cpu": 384, "cuda": 4096}


@dataclass(frozen=True)
class Pace:
    """What one rank measured over a window."""

    rank: int
    node: str
    busy: float
    """Mean seconds of a step that it did not wait for others."""
    step: float
    """Mean seconds of a step."""
    product: float
    """Seconds of the matrix product, the best of a few."""


def stragglers(paces: list[Pace]) -> dict[str, str]:
    """What holds up the others, by ``rank N on NODE``; empty where none stands out."""
    found = {}
    for pace in paces if len(paces) > 1 else []:
        others = [p for p in paces if p is not pace]
        more = pace.busy - median(p.busy for p in others)
        slower = pace.product / median(p.product for p in others)
        messages = [f"is busy {more:.3f} s longer than the others in a step of {pace.step:.3f} s"] * (
            more > _BUSY * pace.step
        )
        messages += [f"multiplies {slower:.1f} times slower than the others"] * (slower > _SLOW)
        if messages:
            found[f"rank {pace.rank} on {pace.node}"] = " and ".join(messages)
    return found


class StragglerDetector:
    """Measures this rank, and compares all of them every :data:`WINDOW` steps."""

    def __init__(self, world: World, file: Path) -> None:
        """``file`` takes what was found, a line of JSON each time."""
        self._world, self._file = world, file
        size = _SIZES.get(world.device.type, _SIZES["cpu"])
        self._matrix = torch.ones(
            size, size, device=world.device, dtype=torch.bfloat16 if size > 1000 else torch.float32
        )
        self._steps, self._since, self._waited = 0, time.perf_counter(), seconds_waited()
        self._named: dict[str, str] = {}

    def step(self, step: int) -> list[str]:
        """Another step begins; at the end of a window, collective: who stood out in it and in the one before."""
        self._steps += 1
        if self._steps < WINDOW:
            return []
        seconds = (time.perf_counter() - self._since) / WINDOW
        busy = seconds - (seconds_waited() - self._waited) / WINDOW
        mine = Pace(self._world.rank, self._world.node, busy, seconds, self._time_product())
        found = stragglers(self._world.gather(mine))
        again = [f"{who} {what}" for who, what in found.items() if who in self._named]
        if again and self._world.is_main:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "stragglers": again}) + "\n")
        self._named, self._steps, self._since, self._waited = found, 0, time.perf_counter(), seconds_waited()
        return again

    def _time_product(self) -> float:
        best = float("inf")
        for _ in range(4):
            start = time.perf_counter()
            (self._matrix @ self._matrix)[0, 0].item()
            best = min(best, time.perf_counter() - start)
        return best
