"""Which rank holds up the others, by name of its node.

ZeRO-3 couples the ranks layer by layer, so all of them show one and the same step time. Two things still differ:

    late    how long the others waited for a rank at the all-reduce that begins a step (rows, logging, a process asleep)
    slow    the time of a small matrix product that every rank times by itself (a throttled or shared chip)

Both are averaged over a window and gathered at its end. A rank that stands out in two windows in a row is named, in the
log and in ``stragglers.jsonl``. Price: one gather and a few milliseconds of products every ``WINDOW`` steps.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from clsgen_dist.engine.dist import World

WINDOW = 20
"""Steps between two comparisons."""
_LATE, _SLOW = 0.1, 1.3
"""Late: by more than this share of the step. Slow: by more than this factor of the median."""
_SIZES = {"cpu": 384, "cuda": 4096}


@dataclass(frozen=True)
class Pace:
    """What one rank measured over a window."""

    rank: int
    node: str
    waited: float
    """Mean seconds it waited for the others at the beginning of a step."""
    step: float
    """Mean seconds of a step."""
    product: float
    """Seconds of the matrix product, the best of a few."""


def stragglers(paces: list[Pace]) -> dict[str, str]:
    """What holds up the others, by ``rank N on NODE``; empty where none stands out."""
    found = {}
    longest_wait, usual_product = max(p.waited for p in paces), median(p.product for p in paces)
    for pace in paces if len(paces) > 1 else []:
        late = longest_wait - pace.waited
        others = [longest_wait - p.waited for p in paces if p is not pace]
        told = []
        if late > _LATE * pace.step and late > 2 * median(others):
            told.append(f"comes {late:.3f} s late to a step of {pace.step:.3f} s")
        if pace.product > _SLOW * usual_product:
            told.append(f"multiplies {pace.product / usual_product:.1f} times slower than the median")
        if told:
            found[f"rank {pace.rank} on {pace.node}"] = " and ".join(told)
    return found


class PaceMeter:
    """Measures this rank, and compares all of them every :data:`WINDOW` steps."""

    def __init__(self, world: World, file: Path) -> None:
        """``file`` takes what was found, a line of JSON each time."""
        self._world, self._file = world, file
        size = _SIZES.get(world.device.type, _SIZES["cpu"])
        self._matrix = torch.ones(
            size, size, device=world.device, dtype=torch.bfloat16 if size > 1000 else torch.float32
        )
        self._waits: list[float] = []
        self._since = time.perf_counter()
        self._named: dict[str, str] = {}

    def step(self, step: int, waited: float) -> list[str]:
        """Note a step's wait; at the end of a window, collective: who stood out in it and in the one before."""
        self._waits.append(waited)
        if len(self._waits) < WINDOW:
            return []
        seconds = (time.perf_counter() - self._since) / WINDOW
        mine = Pace(self._world.rank, self._world.node, sum(self._waits) / WINDOW, seconds, self._time_product())
        found = stragglers(self._world.gather(mine))
        again = [f"{who} {what}" for who, what in found.items() if who in self._named]
        if again and self._world.is_main:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "stragglers": again}) + "\n")
        self._named, self._waits, self._since = found, [], time.perf_counter()
        return again

    def _time_product(self) -> float:
        best = float("inf")
        for _ in range(4):
            start = time.perf_counter()
            (self._matrix @ self._matrix)[0, 0].item()
            best = min(best, time.perf_counter() - start)
        return best
