"""Settings of a run's checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from clsgen_dist.io.value_ranges import PositiveInt


@dataclass(kw_only=True)
class CheckpointSettings:
    """What is kept, and when."""

    asynchronous: bool = True
    """Copy the shard to host memory and write it while training continues; false: write it before the next step."""
    every: PositiveInt | None = None
    """Save every this many steps (and at each evaluation that is the best so far, and at the end)."""
    keep_last: PositiveInt = 2
    """How many of the newest checkpoints are kept, besides the best."""
