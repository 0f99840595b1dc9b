"""From the ranks' reports and links to the bad nodes, each with its reasons."""

from __future__ import annotations

from collections import defaultdict
from statistics import median

from clsgen_dist.preflight.links import Link
from clsgen_dist.preflight.node import Report

SLOW_CHIP = {"cpu": 10.0, "gpu": 1.3}
"""A chip is bad if its product takes this factor longer than the median; CPU cores are shared, GPUs are not."""
SLOW_LINK = {"cpu": 10.0, "gpu": 2.0}
"""A node is bad if its best link is slower by this factor than the median of the nodes' best links."""


def judge_reports(reports: list[Report | None], nodes: list[str]) -> dict[str, list[str]]:
    """Bad nodes and reasons, from each rank's own checks.

    Args:
        reports: by rank; None for a rank that timed out.
        nodes: node names in rank order; each node has equally many ranks.
    """
    bad: dict[str, list[str]] = defaultdict(list)
    for rank, report in enumerate(reports):
        if report is None:
            bad[nodes[rank * len(nodes) // len(reports)]].append(f"rank {rank} timed out")
        else:
            bad[report.node] += (
                report.faults if report.sees_run_dir else ["the run's folder is not shared with rank 0", *report.faults]
            )
    received = [report for report in reports if report is not None]
    kinds = [report.device for report in received if report.matmul_ms is not None]
    usual = max(sorted(set(kinds)), key=kinds.count, default="none")
    alike = [r for r in received if r.device == usual and r.matmul_ms is not None]
    middle = median(r.matmul_ms for r in alike if r.matmul_ms is not None) if alike else 0.0
    factor = SLOW_CHIP[_kind(usual)]
    for report in received:
        if report.matmul_ms is None:
            continue
        if report.device != usual:
            bad[report.node].append(f"rank {report.rank} has {report.device}, the others {usual}")
        elif report.matmul_ms > factor * middle:
            bad[report.node].append(
                f"rank {report.rank}: a matrix product takes {report.matmul_ms:.2f} ms, the median is {middle:.2f}"
            )
    return {node: reasons for node, reasons in bad.items() if reasons}


def _kind(device: str) -> str:
    return "cpu" if device == "cpu" else "gpu"


def judge_links(links: list[Link], device: str) -> dict[str, list[str]]:
    """Bad nodes and reasons: nodes without a single link as fast as those of the others.

    A link is as fast as its slowest rank, a node as its best link: a good node paired with a bad one has other, good
    links. If only two nodes can be compared, it is unknown which one is bad: a dead link marks both, a slow one
    neither.
    """
    slowest: dict[tuple[str, str], float] = {}
    for link in links:
        key = (link.node, link.other)
        slowest[key] = min(slowest.get(key, float("inf")), link.gb_per_s or 0.0)
    bad: dict[str, list[str]] = defaultdict(list)
    for inside, what in ((True, "inside the node"), (False, "to other nodes")):
        best: dict[str, float] = {}
        for (node, other), rate in slowest.items():
            if (node == other) is inside:
                best[node] = max(best.get(node, 0.0), rate)
        middle = median(best.values()) if best else 0.0
        for node, rate in best.items():
            if rate == 0:
                bad[node].append(f"an all-reduce {what} fails")
            elif rate * SLOW_LINK[_kind(device)] < middle:
                bad[node].append(f"an all-reduce {what} reaches {rate:.3g} GB/s, the median is {middle:.3g}")
    return dict(bad)
