"""Settings of faults that a run survives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clsgen_dist.io.value_ranges import NonNegativeInt, PositiveInt


@dataclass(kw_only=True)
class FaultSettings:
    """Which faults a run survives, and for how long."""

    hang_timeout_s: PositiveInt = 900
    """A rank without progress for so long writes its stacks to output_dir/stacks and ends the run."""
    rendezvous_timeout_s: PositiveInt = 600
    """All ranks must have arrived within so many seconds."""
    spike_factor: float = 10.0
    """Skip an update if a head's mean loss is more than this times the median of its last 64, and more than this many nats; 0: never."""
    max_skipped: PositiveInt = 3
    """After so many skipped updates in a row, roll weights and optimizer back to the last checkpoint; the data continues."""
    max_rollbacks: NonNegativeInt = 2
    """End the run when it would have to go back more often than this."""
    max_stuck_starts: PositiveInt = 3
    """With `resume: auto`, refuse to start after so many starts in a row from the same step."""

    def faults(self) -> Iterator[str]:
        """What is wrong with fields of this section taken together."""
        if self.spike_factor and self.spike_factor <= 1:
            yield f"faults.spike_factor is {self.spike_factor}, expected more than 1, or 0 for none"
