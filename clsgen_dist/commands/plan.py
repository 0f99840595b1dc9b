"""``clsgen plan``."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clsgen_dist.config import Settings
    from clsgen_dist.io.value_ranges import NonNegativeInt, PositiveInt


def run(
    settings: Settings,
    cluster: str = "configs/clusters/h100.yaml",
    nodes: PositiveInt = 1,
    gpus_per_node: PositiveInt | None = None,
    rows: PositiveInt | None = None,
    tokens_per_row: PositiveInt | None = None,
    supervised_per_row: NonNegativeInt | None = None,
    search: bool = False,
    json: str | None = None,
    plot: str | None = None,
) -> None:
    """Memory, traffic, time and cost of a recipe on a cluster, before you request a GPU. Does it fit?

    Every setting may follow, as for `clsgen train`.

    Args:
        cluster: What the nodes are made of.
        nodes: Number of nodes.
        gpus_per_node: GPUs used on each node; none: all of them.
        rows: Training rows, instead of reading data.train.
        tokens_per_row: Tokens of a row, explanation included.
        supervised_per_row: Tokens of a row's explanation.
        search: Also look for the cheapest micro-batch, checkpointing, offloading and node count.
        json: File to write the plan to.
        plot: Image to write: memory by part, goodput against the interval between checkpoints.
    """
    from clsgen_dist.config import resolve_path
    from clsgen_dist.io.files import atomic_write, require_writable
    from clsgen_dist.plan import advice as advise
    from clsgen_dist.plan import report
    from clsgen_dist.plan.cluster import load_cluster
    from clsgen_dist.plan.plan import Planner, RowAssumptions

    require_writable(json)
    require_writable(plot, picture=True)
    assumptions = RowAssumptions(rows=rows, tokens_per_row=tokens_per_row, supervised_per_row=supervised_per_row)
    planner = Planner(settings, load_cluster(resolve_path(cluster)), assumptions)
    planned = planner.plan(settings, nodes=nodes, gpus_per_node=gpus_per_node)
    other = advise.other_checkpointing(planner, planned)
    report.print_plan(planned, other)
    changes = [] if planned.fits else advise.advice(planner, planned)
    if changes:
        print("\nwhat to change:")
        print("\n".join(f"  {line}" for line in changes))
    alternatives = advise.search(planner, planned) if search else []
    if search:
        print()
        report.print_search(alternatives)
    if json:
        atomic_write(Path(json), dumps(report.as_json(planned, other, changes, alternatives), indent=1) + "\n")
        print(f"\njson  {json}")
    if plot:
        report.draw(Path(plot), planned)
        print(f"plot  {plot}")
