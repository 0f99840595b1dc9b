"""``clsgen preflight``: every rank checks its node, rank 0 judges. Each job runs it before training.

The ranks communicate through rank 0's key-value store, not a process group, so that a missing or crashed rank blocks no
other and can be named.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import torch.distributed as torch_dist

from clsgen_dist.engine.world import node_name, open_store, ranks_here, set_launch_variables, tasks_by_node
from clsgen_dist.errors import BadNodeError, SettingsError
from clsgen_dist.preflight import links, node, verdict

_TOKEN_FILE = "preflight.token"
"""Rank 0 writes a random token to it, which the other nodes must be able to read."""


def preflight(output_dir: str, timeout_s: int = 300) -> None:
    """Check every node for some seconds before a job trains on it: chips and their errors, disks, speed, links.

    Writes a line per node to OUTPUT_DIR/preflight.jsonl, and bad nodes with their reasons to OUTPUT_DIR/bad_nodes.

    Args:
        output_dir: The run's folder; must be writable from every node.
        timeout_s: Seconds after which the node of a rank that has not reported is bad.
    """
    output = Path(output_dir)
    launched = set_launch_variables()
    ranks, rank, local_rank = launched.size, launched.rank, launched.local_rank
    local_ranks = ranks_here()
    _require_even_ranks(ranks, rank, local_ranks)
    start = time.monotonic()
    # First, and by rank 0 alone: the folder is common to all nodes, so its faults are no node's.
    if rank == 0 and (fault := node.disk_fault(output, room=True)):
        raise SettingsError(f"{fault}; make room, or choose another output_dir")
    store = open_store(rank, timeout_s)
    if rank == 0:
        token = uuid.uuid4().hex
        (output / _TOKEN_FILE).write_text(token)
        store.set("token", token)
    token = store.get("token").decode()
    report = node.check_node(rank, node_name(), local_rank, local_ranks, output)
    report.sees_run_dir = local_rank != 0 or node.has_content(
        output / _TOKEN_FILE, token, within_s=min(60, timeout_s / 4)
    )
    store.set(f"report-{rank}", json.dumps(asdict(report)))

    def measure(names: list[str] | None) -> None:
        if names is None:  # a rank did not report, and would be waited for
            return
        device = node.chip(local_rank)
        mine = links.measure(store, names, rank // local_ranks, local_rank, local_ranks, device, timeout_s / 4)
        for number, link in enumerate(mine):
            store.set(f"link-{rank}-{number}", json.dumps(asdict(link)))
        store.set(f"measured-{rank}", "")

    if rank != 0:
        store.wait(["names"], timedelta(seconds=2 * timeout_s))
        measure(json.loads(store.get("names")))
        store.wait(["judged"], timedelta(seconds=10 * timeout_s))
        return
    bad = _judge(store, ranks, local_ranks, report, output, timeout_s, measure)
    store.set("judged", "")
    print(f"preflight: {ranks} ranks in {time.monotonic() - start:.1f} s, {len(bad) or 'no'} bad nodes", flush=True)
    time.sleep(0.5)  # the store ends with this process, and others still read from it
    if bad:
        raise BadNodeError("; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in sorted(bad.items())))


def _judge(
    store: torch_dist.Store,
    ranks: int,
    local_ranks: int,
    own: node.Report,
    output: Path,
    timeout_s: int,
    measure: Callable[[list[str] | None], None],
) -> dict[str, list[str]]:
    """Rank 0: the bad nodes and their reasons, from all ranks' reports and links; written to the run's folder.

    Raises:
        SettingsError: no other node sees the folder.
    """
    reports = _reports(store, ranks, timeout_s)
    names = _names(reports, local_ranks)
    (output / _TOKEN_FILE).unlink(missing_ok=True)
    blind = {r.node for r in reports if r and not r.sees_run_dir}
    if blind and {r.node for r in reports if r} == {own.node, *blind}:  # the fault of no single node
        store.set("names", "null")
        store.set("judged", "")
        time.sleep(0.5)
        raise SettingsError(
            f"{output} on {', '.join(sorted(blind))} is not the folder of {own.node}: set OUTPUT "
            "(output_dir) to a folder that all nodes share"
        )
    bad = verdict.judge_reports(reports, names)
    complete = None not in reports
    store.set("names", json.dumps(names if complete else None))
    measured: list[links.Link] = []
    if complete:
        measure(names)
        measured, unfinished = _links(store, ranks, quiet_s=timeout_s / 4 * 2.5)
        for number in unfinished:
            bad.setdefault(names[number // local_ranks], []).append(f"rank {number} ended while links were measured")
        if not unfinished:  # else other ranks were delayed by it, and their links are not comparable
            for name, reasons in verdict.judge_links(measured, own.device).items():
                bad.setdefault(name, []).extend(reasons)
    _write(output, reports, measured, bad)
    return bad


def _require_even_ranks(ranks: int, rank: int, local_ranks: int) -> None:
    """SettingsError unless every node has equally many ranks, in consecutive order."""
    by_node = os.environ.get("SLURM_STEP_TASKS_PER_NODE", str(local_ranks))
    if ranks % local_ranks or len(set(tasks_by_node(by_node))) > 1:
        raise SettingsError(
            f"{ranks} ranks, {by_node} on a node: expected equally many on each node; set --nodes and "
            "--ntasks-per-node, or skip the preflight (PREFLIGHT=0)"
        )
    node_id = int(os.environ.get("SLURM_NODEID", rank // local_ranks))
    if node_id != rank // local_ranks:
        raise SettingsError(
            f"rank {rank} is on node number {node_id}, expected {rank // local_ranks}: ranks of a node must be "
            "consecutive; use srun --distribution=block"
        )


def _reports(store: torch_dist.Store, ranks: int, timeout_s: float) -> list[node.Report | None]:
    """Every rank's report; None for those that timed out."""
    deadline = time.monotonic() + timeout_s
    missing = set(range(ranks))
    while missing and time.monotonic() < deadline:
        missing -= {rank for rank in missing if store.check([f"report-{rank}"])}
        time.sleep(0.05 if missing else 0)
    return [None if r in missing else node.Report(**json.loads(store.get(f"report-{r}"))) for r in range(ranks)]


def _links(store: torch_dist.Store, ranks: int, quiet_s: float) -> tuple[list[links.Link], list[int]]:
    """All measured links, and the ranks that did not finish: silent for ``quiet_s``, longer than any link takes."""
    found: list[links.Link] = []
    count = dict.fromkeys(range(ranks), 0)
    deadline = time.monotonic() + quiet_s
    while count and time.monotonic() < deadline:
        for rank in list(count):
            ended = store.check([f"measured-{rank}"])  # checked first, so that no link is missed
            while store.check([key := f"link-{rank}-{count[rank]}"]):
                found.append(links.Link(**json.loads(store.get(key))))
                count[rank] += 1
                deadline = time.monotonic() + quiet_s
            if ended:
                del count[rank]
        time.sleep(0.05 if count else 0)
    return found, sorted(count)


def _names(reports: list[node.Report | None], local_ranks: int) -> list[str]:
    """Node names in rank order: from the reports, else from the job's list."""
    listed = os.environ.get("CLSGEN_NODES", "").split()
    names = []
    for number in range(len(reports) // local_ranks):
        here = [r.node for r in reports[number * local_ranks : (number + 1) * local_ranks] if r is not None]
        names.append(here[0] if here else listed[number] if number < len(listed) else f"node number {number}")
    return names


def _write(
    output: Path, reports: list[node.Report | None], measured: list[links.Link], bad: dict[str, list[str]]
) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    received = [report for report in reports if report is not None]
    with (output / "preflight.jsonl").open("a", encoding="utf-8") as file:
        for name in dict.fromkeys([*(r.node for r in received), *bad]):
            here = [report for report in received if report.node == name]
            line = {
                "time": now,
                "job": os.environ.get("SLURM_JOB_ID"),
                "node": name,
                "chips": [chip for report in here for chip in report.chips],
                "software": here[0].software if here else {},
                "devices": sorted({report.device for report in here}),
                "matmul_ms": [report.matmul_ms for report in here],
                "gb_per_s": {
                    other: min(x.gb_per_s or 0.0 for x in measured if (x.node, x.other) == (name, other))
                    for other in sorted({x.other for x in measured if x.node == name})
                },
                "notes": sorted({note for report in here for note in report.notes}),
                "faults": bad.get(name, []),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    if bad:
        with (output / "bad_nodes").open("a", encoding="utf-8") as file:
            file.writelines(f"{name} {now} {', '.join(reasons)}\n" for name, reasons in sorted(bad.items()))
