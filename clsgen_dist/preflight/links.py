"""Bandwidth of an all-reduce inside each node, then between nodes two by two: a bad cable shows in all its pairs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as torch_dist

ROUNDS = 4
"""Each node is measured against at most so many others."""
_BYTES, _REPEATS = {"cpu": 4 << 20, "cuda": 256 << 20}, 3


@dataclass(frozen=True)
class Link:
    """What a rank measured in one group."""

    node: str
    other: str
    """The node at the other end; the same one for the group inside a node."""
    gb_per_s: float | None
    """None: nothing came through."""


def pairings(nodes: int, rounds: int = ROUNDS) -> list[list[tuple[int, int]]]:
    """Rounds in which every node meets another one (one rests where they are odd), never the same one twice.

    The circle method of round-robin tournaments: the first stays, the others move on by one seat.
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
    """This rank's links, one after the other, with all other ranks measuring at the same time.

    One that carries nothing is told after ``timeout_s`` twice: until the two have met, and until their sum is there.
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
    """Bus bandwidth (GB/s: 2 (n-1)/n of the bytes over the time, as nccl-tests count) of the fastest of a few."""
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
            float(values[0])  # waits for the device
            times.append(time.perf_counter() - start)
            values.fill_(1)
    except (RuntimeError, torch_dist.DistError):
        return None
    finally:
        if torch_dist.is_initialized():
            torch_dist.destroy_process_group()
    return 2 * (size - 1) / size * _BYTES[device.type] / min(times[1:]) / 1e9
