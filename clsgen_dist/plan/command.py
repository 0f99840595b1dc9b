"""The verb ``clsgen plan``."""

from __future__ import annotations

from pathlib import Path

from clsgen_dist.config import Settings, resolve_path
from clsgen_dist.plan import report
from clsgen_dist.plan.cluster import load_cluster
from clsgen_dist.plan.plan import Planner, Stated, advice, search


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
    planner = Planner(settings, load_cluster(resolve_path(cluster)), stated, print)
    plan = planner.plan(settings, nodes=nodes, gpus_per_node=gpus_per_node)
    report.print_plan(plan)
    changes = [] if plan.fits else advice(planner, plan)
    if changes:
        print("\nwhat to change:")
        print("\n".join(f"  {line}" for line in changes))
    found = search(planner, plan) if searching else []
    if searching:
        print()
        report.print_search(found)
    if json_file:
        report.write_json(Path(json_file), plan, changes, found)
        print(f"\njson  {json_file}")
    if plot:
        report.draw(Path(plot), plan)
        print(f"plot  {plot}")
