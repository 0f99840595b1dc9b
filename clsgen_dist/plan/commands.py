"""The verbs ``clsgen plan`` and ``clsgen dryrun``."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

from clsgen_dist.config import Settings, resolve_path
from clsgen_dist.io.output import require_writable, writing
from clsgen_dist.plan import report
from clsgen_dist.plan.advice import advice, other_checkpointing, search
from clsgen_dist.plan.cluster import load_cluster
from clsgen_dist.plan.dry_run import dry_run, fake_ranks
from clsgen_dist.plan.plan import Planner, Stated
from clsgen_dist.plan.workload import stated_workload


def run(
    settings: Settings,
    *,
    cluster: str,
    nodes: int,
    gpus_per_node: int | None,
    stated: Stated,
    searching: bool,
    json_file: str | None,
    plot: str | None,
) -> None:
    """Print the plan, and what to change where it does not fit; write JSON and pictures if asked."""
    require_writable(json_file)
    require_writable(plot, picture=True)
    planner = Planner(settings, load_cluster(resolve_path(cluster)), stated)
    plan = planner.plan(settings, nodes=nodes, gpus_per_node=gpus_per_node)
    other = other_checkpointing(planner, plan)
    report.print_plan(plan, other)
    changes = [] if plan.fits else advice(planner, plan)
    if changes:
        print("\nwhat to change:")
        print("\n".join(f"  {line}" for line in changes))
    found = search(planner, plan) if searching else []
    if searching:
        print()
        report.print_search(found)
    if json_file:
        _write_json(json_file, report.as_json(plan, other, changes, found))
        print(f"\njson  {json_file}")
    if plot:
        report.draw(Path(plot), plan)
        print(f"plot  {plot}")


def run_dry(settings: Settings, *, ranks: int, micro_steps: int, json_file: str | None) -> None:
    """Print what one of so many ranks does; write all of it as JSON if asked. bf16 unless the recipe says otherwise."""
    require_writable(json_file)
    settings = copy.deepcopy(settings)
    if settings.train.precision == "auto":
        settings.train.precision = "bf16"  # as on the cluster that it is meant for
    work = stated_workload(settings, ranks=ranks, rows=None, tokens_per_row=None, supervised_per_row=None)
    lengths, supervised = work.full_micro_batch()
    classes = len(settings.data.labels or ["no", "yes"])
    with fake_ranks(ranks) as world:
        found = dry_run(
            settings, world, lengths=lengths, supervised=supervised, micro_steps=micro_steps, classes=classes
        )
    report.print_dry_run(found)
    if json_file:
        _write_json(json_file, dataclasses.asdict(found))
        print(f"json  {json_file}")


def _write_json(file: str, found: dict[str, Any]) -> None:
    with writing(Path(file)):
        Path(file).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
