"""Settings of faults that a run survives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt

from clsgen_dist.io.value_ranges import NonNegativeInt, PositiveInt


@dataclass(kw_only=True)
class FaultSettings:
    """Which faults a run survives, and for how long."""

    hang_timeout_s: PositiveInt = 900
    """A rank without progress for this long writes its stacks to output_dir/stacks and ends the run."""
    rendezvous_timeout_s: PositiveInt = 600
    """All ranks must have arrived within this many seconds."""
    spike_factor: Literal[0] | Annotated[float, Gt(1)] = 10.0
    """Skip an update if a head's mean loss is more than this times the median of its last 64, and more than this many nats; 0: never."""
    max_skipped: PositiveInt = 3
    """After this many skipped updates in a row, roll weights and optimizer back to the last checkpoint; the data continues."""
    max_rollbacks: NonNegativeInt = 2
    """End the run when it would have to go back more often than this."""
    max_stuck_starts: PositiveInt = 3
    """With `resume: auto`, refuse to start after this many starts in a row from the same step."""
