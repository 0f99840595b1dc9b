"""Processes: who we are, how we start and end, and the few collectives the trainer uses.

Ranks come from the launcher (``deepspeed``, ``torchrun``: RANK, LOCAL_RANK, WORLD_SIZE) or from Slurm (SLURM_PROCID,
SLURM_LOCALID, SLURM_NTASKS); with neither, this process is the only one. No collective here depends on data: every
rank calls each of them equally often, with tensors of one shape.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as torch_dist


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes logs and files that exist once."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Sums over all ranks, in one all-reduce (float64: exact for counts)."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch_dist.all_reduce(total)
        return total.tolist()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        box = [value]
        torch_dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        values: list[Any] = [None] * self.size
        torch_dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every rank is here."""
        torch_dist.barrier()


@contextlib.contextmanager
def process_group(timeout_s: int) -> Iterator[World]:
    """Join the other ranks, and leave them properly; a collective that waits longer than ``timeout_s`` raises."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    _quieten()
    # The shared-memory op serves inference only, takes a minute to compile, and a killed compile blocks the next.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = get_accelerator()
    on_cpu = not on_accelerator()
    launched_ranks()
    if not on_cpu:
        accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(
        dist_backend="gloo" if on_cpu else accelerator.communication_backend_name(),
        timeout=timedelta(seconds=timeout_s),
        auto_mpi_discovery=False,
        verbose=False,
    )
    device = torch.device("cpu" if on_cpu else accelerator.current_device_name())
    if on_cpu and "OMP_NUM_THREADS" not in os.environ:
        # torch gives every rank all cores by default: two ranks on two cores then wait for each other.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // _ranks_here()))
    try:
        yield World(torch_dist.get_rank(), torch_dist.get_world_size(), device)
    finally:
        torch_dist.destroy_process_group()


def on_accelerator() -> bool:
    """Whether DeepSpeed found something faster than the CPU."""
    from deepspeed.accelerator import get_accelerator

    return bool(get_accelerator().device_name() != "cpu")


def launched_ranks() -> int:
    """How many ranks the launcher started; known before they have met."""
    _environment()
    return int(os.environ["WORLD_SIZE"])


def _ranks_here() -> int:
    """Ranks on this machine, as the launcher says: deepspeed, torchrun, Slurm."""
    for name in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1


def _quieten() -> None:
    """Silence what users can do nothing about: DeepSpeed calling renamed torch functions, start-up chatter."""
    warnings.filterwarnings("ignore", message=".*torch.distributed.*is deprecated", category=FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _environment() -> None:
    """Fill in what the launcher did not say."""
    if "RANK" not in os.environ and "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
            raise RuntimeError(
                "this is a Slurm step of several tasks, but MASTER_ADDR or MASTER_PORT is not set; export the first "
                "node's name and a free port in the job script before srun"
            )
        for ours, slurms in (("RANK", "PROCID"), ("LOCAL_RANK", "LOCALID"), ("WORLD_SIZE", "NTASKS")):
            os.environ[ours] = os.environ[f"SLURM_{slurms}"]
    elif "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
    os.environ.setdefault("LOCAL_RANK", "0")
