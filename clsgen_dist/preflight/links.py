"""All-reduce bandwidth inside each node, then between pairs of nodes: a bad cable slows all pairs of its node."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as torch_dist

ROUNDS = 4
"""Each node is measured against at most this many others."""
_BYTES, _REPEATS = {"cpu": 4 << 20, "cuda": 256 << 20}, 3


@dataclass(frozen=True)
class Link:
    """Bandwidth measured by one rank in one group."""

    node: str
    other: str
    """The peer node; equal to ``node`` for the group inside a node."""
    gb_per_s: float | None
    """None: the all-reduce failed or timed out."""


def pairings(nodes: int, rounds: int = ROUNDS) -> list[list[tuple[int, int]]]:
    """Rounds that pair every node with another (one is left out if their number is odd), never the same one twice.

    The circle method of round-robin tournaments: the first seat is fixed, the others rotate by one.
    """
    seats = list(range(nodes)) + ([-1] if nodes % 2 else [])
    table = []
    for _ in range(min(rounds, len(seats) - 1)):
        facing = zip(seats[: len(seats) // 2], reversed(seats[len(seats) // 2 :]), strict=True)
        table.append([(a, b) if a < b else (b, a) for a, b in facing if -1 not in (a, b)])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return table


def measure(
    store: torch_dist.Store, names: list[str], node: int, local_rank: int, local_ranks: int, device: torch.device,
    timeout_s: float,
) -> Iterator[Link]:  # fmt: skip
    """Measure this rank's links sequentially, while all other ranks measure theirs.

    A dead link takes ``timeout_s`` twice: for the rendezvous and for the all-reduce.
    """
    if local_ranks > 1:
        prefix = torch_dist.PrefixStore(f"inside-{node}", store)
        yield Link(names[node], names[node], _all_reduce(prefix, local_rank, local_ranks, device, timeout_s))
    for number, pairs in enumerate(pairings(len(names))):
        for a, b in pairs:
            if node in (a, b):
                prefix = torch_dist.PrefixStore(f"round-{number}-{a}-{b}-{local_rank}", store)
                rate = _all_reduce(prefix, int(node == b), 2, device, timeout_s)
                yield Link(names[node], names[b if node == a else a], rate)


def _all_reduce(store: torch_dist.Store, rank: int, size: int, device: torch.device, timeout_s: float) -> float | None:
    """Bus bandwidth in GB/s of the fastest repeat: 2 (n-1)/n bytes / time, as in nccl-tests; None if it fails."""
    # Else NCCL's watchdog ends the process after the timeout, and both nodes of a dead link look broken.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    values = torch.ones(_BYTES[device.type] // 4, device=device)
    times = []
    try:
        torch_dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=size,
            timeout=timedelta(seconds=timeout_s),
        )  # fmt: skip
        for _ in range(_REPEATS + 1):
            start = time.perf_counter()
            torch_dist.all_reduce(values)
            float(values[0])  # synchronises with the device
            times.append(time.perf_counter() - start)
            values.fill_(1)
    except (RuntimeError, torch_dist.DistError):
        return None
    finally:
        if torch_dist.is_initialized():
            torch_dist.destroy_process_group()
    return 2 * (size - 1) / size * _BYTES[device.type] / min(times[1:]) / 1e9
