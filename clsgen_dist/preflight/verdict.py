"""From what the ranks found to the nodes that must not take part, each with its reasons."""

from __future__ import annotations

from collections import defaultdict
from statistics import median

from clsgen_dist.preflight.links import Link
from clsgen_dist.preflight.node import Report

SLOW_CHIP = {"cpu": 10.0, "gpu": 1.3}
"""A chip is bad whose product takes longer than the median one by this factor; CPU cores are shared, GPUs are not."""
SLOW_LINK = {"cpu": 10.0, "gpu": 2.0}
"""A node is bad whose best link is slower than the nodes' median best one by this factor."""


def judge_alone(reports: list[Report | None], nodes: list[str]) -> dict[str, list[str]]:
    """Bad nodes and why, from what each rank saw by itself.

    Args:
        reports: by rank; None for a rank that did not come.
        nodes: names of the nodes, in rank order, as many ranks on each.
    """
    bad: dict[str, list[str]] = defaultdict(list)
    for rank, report in enumerate(reports):
        if report is None:
            bad[nodes[rank * len(nodes) // len(reports)]].append(f"rank {rank} did not come")
        else:
            bad[report.node] += (
                report.faults if report.shares else ["the run's folder is another one here", *report.faults]
            )
    came = [report for report in reports if report is not None]
    kinds = [report.device for report in came if report.matmul_ms is not None]
    usual = max(sorted(set(kinds)), key=kinds.count, default="none")
    alike = [r for r in came if r.device == usual and r.matmul_ms is not None]
    middle = median(r.matmul_ms for r in alike if r.matmul_ms is not None) if alike else 0.0
    factor = SLOW_CHIP[_kind(usual)]
    for report in came:
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
    """Bad nodes and why: no link of theirs works as the others' do.

    The slowest rank of a node counts for a link, and a node's best link counts for the node: who merely met a bad node
    once has other links that are good. Of two nodes that reach each other badly neither can be told from the other:
    a link that carries nothing makes both of them bad, one that is slow neither.
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
                bad[node].append(f"an all-reduce {what} does not come through")
            elif rate * SLOW_LINK[_kind(device)] < middle:
                bad[node].append(f"an all-reduce {what} moves {rate:.3g} GB/s, the median is {middle:.3g}")
    return dict(bad)
