"""``clsgen dryrun``."""

from __future__ import annotations

import copy
import dataclasses
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clsgen_dist.config import Settings
    from clsgen_dist.io.value_ranges import PositiveInt


def run(settings: Settings, ranks: PositiveInt = 64, micro_steps: PositiveInt = 2, json: str | None = None) -> None:
    """What one rank of many does at full size, by the code that trains, without memory: every collective, checkpoint.

    bf16 unless the recipe says otherwise. Every setting may follow, as for `clsgen train`.

    Args:
        ranks: How many ranks.
        micro_steps: Micro-steps of the optimizer step that is recorded.
        json: File to write every collective and partition to.
    """
    from clsgen_dist.io.files import atomic_write, require_writable
    from clsgen_dist.plan import report
    from clsgen_dist.plan.dry_run import dry_run, fake_ranks
    from clsgen_dist.plan.workload import assumed_workload

    require_writable(json)
    settings = copy.deepcopy(settings)
    if settings.train.precision == "auto":
        settings.train.precision = "bf16"  # as on the cluster that it is meant for
    work = assumed_workload(settings, ranks=ranks, rows=None, tokens_per_row=None, supervised_per_row=None)
    lengths, supervised, _ = work.full_micro_batch()
    classes = len(settings.data.labels or ["no", "yes"])
    with fake_ranks(ranks) as world:
        result = dry_run(
            settings, world, lengths=lengths, supervised=supervised, micro_steps=micro_steps, classes=classes
        )
    report.print_dry_run(result)
    if json:
        atomic_write(Path(json), dumps(dataclasses.asdict(result), indent=1) + "\n")
        print(f"json  {json}")
