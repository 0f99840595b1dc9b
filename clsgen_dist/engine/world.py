"""Processes: who we are, how we start and end, and the few collectives the trainer uses.

Ranks come from the launcher (``deepspeed``, ``torchrun``: RANK, LOCAL_RANK, WORLD_SIZE) or from Slurm (SLURM_PROCID,
SLURM_LOCALID, SLURM_NTASKS); with neither, this process is the only one. No collective here depends on data: every
rank calls each of them equally often, with tensors of one shape.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as torch_dist

from clsgen_dist.errors import RendezvousError, SettingsError, first_line
from clsgen_dist.io.log import quiet_libraries

_waited_s = 0.0


def seconds_waited() -> float:
    """Seconds that this process has spent in :func:`waiting`."""
    return _waited_s


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Inside, this process waits for other ranks."""
    global _waited_s
    start = time.perf_counter()
    try:
        yield
    finally:
        _waited_s += time.perf_counter() - start


class _TimedBackend:
    """DeepSpeed's communication backend, its waits timed: on the CPU, where torch has no hook for them."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._backend, name)
        if not callable(value):
            return value

        def call(*args: Any, **options: Any) -> Any:
            with waiting():
                result = value(*args, **options)
            return _TimedWork(result) if isinstance(result, torch_dist.Work) else result

        return call


class _TimedWork:
    def __init__(self, work: torch_dist.Work) -> None:
        self._work = work

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)

    def wait(self, *args: Any, **options: Any) -> Any:
        with waiting():
            return self._work.wait(*args, **options)


@dataclass(frozen=True)
class LaunchedRank:
    """This process as the launcher counts it, before the ranks have met."""

    rank: int
    local_rank: int
    size: int
    """Ranks that were started."""


def set_launch_variables() -> LaunchedRank:
    """Set the environment variables that torch and DeepSpeed read, where the launcher has not; returns the ranks.

    RANK, LOCAL_RANK and WORLD_SIZE are Slurm's in a step of several tasks. A process without launcher is the only rank,
    at a free port of this machine. Calling it again changes nothing.

    Raises:
        SettingsError: a Slurm step of several tasks without MASTER_ADDR or MASTER_PORT.
    """
    if "RANK" not in os.environ and "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
            raise SettingsError(
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
    return LaunchedRank(*(int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")))


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device
    node: str
    """Name of this machine; Slurm's, where Slurm started us."""

    @property
    def is_main(self) -> bool:
        """Whether this rank writes logs and files that exist once."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Sums over all ranks, in one all-reduce (float64: exact for counts)."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        with waiting():
            torch_dist.all_reduce(total)
            return total.tolist()

    def all_reduce(self, values: torch.Tensor) -> None:
        """Sums over all ranks, in place; on a GPU the host does not wait for them."""
        with waiting():
            torch_dist.all_reduce(values)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        box = [value]
        with waiting():
            torch_dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        values: list[Any] = [None] * self.size
        with waiting():
            torch_dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every rank is here."""
        with waiting():
            torch_dist.barrier()


@contextlib.contextmanager
def process_group(timeout_s: int, rendezvous_timeout_s: int = 600) -> Iterator[World]:
    """Join the other ranks, and leave them properly; sets what the launcher did not (:func:`set_launch_variables`).

    Args:
        timeout_s: a collective that waits longer raises, in seconds.
        rendezvous_timeout_s: within which all ranks must arrive, in seconds.

    Raises:
        RendezvousError: the ranks did not meet within ``rendezvous_timeout_s``; says who is missing.
        SettingsError: this rank sees several GPUs, but fewer than the ranks of its machine, or none.
    """
    quiet_libraries()
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    # The shared-memory op serves inference only, takes a minute to compile, and a killed compile blocks the next.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = get_accelerator()
    on_cpu = not on_accelerator()
    launched = set_launch_variables()
    if not on_cpu:
        accelerator.set_device(_own_device(launched.local_rank, accelerator.device_count()))
    device = torch.device("cpu" if on_cpu else accelerator.current_device_name())
    world = World(launched.rank, launched.size, device, node_name())
    torch_dist.init_process_group(
        "gloo" if on_cpu else accelerator.communication_backend_name(),
        store=_rendezvous(world, rendezvous_timeout_s),
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if device.type == "cuda" and world.size > 1 else None,
    )
    deepspeed.init_distributed(timeout=timedelta(seconds=timeout_s), auto_mpi_discovery=False, verbose=False)
    if on_cpu:
        deepspeed.comm.comm.cdb = _TimedBackend(deepspeed.comm.comm.cdb)
    if on_cpu and "OMP_NUM_THREADS" not in os.environ:
        # torch gives every rank all cores by default: two ranks on two cores then wait for each other.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here()))
    try:
        yield world
    finally:
        if on_cpu:
            deepspeed.comm.comm.cdb = deepspeed.comm.comm.cdb._backend
        torch_dist.destroy_process_group()


def _own_device(local_rank: int, visible: int) -> int:
    """The number of this rank's GPU among those that it sees; SettingsError if there is none for it.

    With ``srun --gpus-per-task`` a rank sees its own alone, as number 0. DeepSpeed takes the number from LOCAL_RANK,
    which is set accordingly. A rank that sees one GPU cannot tell whether another rank sees the same: several ranks on
    a node whose only GPU all of them see share it.
    """
    number = 0 if visible == 1 else local_rank
    if number >= visible:
        raise SettingsError(
            f"rank {local_rank} of {node_name()} has no GPU: {visible} are visible; start as many ranks on a node as "
            "it has GPUs, and check CUDA_VISIBLE_DEVICES"
        )
    os.environ["LOCAL_RANK"] = str(number)
    return number


def open_store(rank: int, timeout_s: int) -> torch_dist.Store:
    """The store that rank 0 keeps at MASTER_ADDR:MASTER_PORT, whoever else has arrived.

    Raises:
        RendezvousError: rank 0 cannot listen there, or cannot be reached within ``timeout_s``.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun's agent keeps the store itself.
    hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        return torch_dist.TCPStore(host, port, None, hosts, timedelta(seconds=timeout_s), wait_for_workers=False)
    except (torch_dist.DistNetworkError, torch_dist.DistStoreError, RuntimeError) as error:
        what = (
            f"rank 0 cannot listen on {host}:{port}; another process has the port, or the address is not this machine's"
            if hosts
            else f"rank {rank} on {node_name()} did not reach rank 0 at {host}:{port} within {timeout_s} s"
        )
        raise RendezvousError(
            f"{what}. Check MASTER_ADDR, MASTER_PORT and rank 0's log ({first_line(error)})"
        ) from None


def _rendezvous(world: World, timeout_s: int) -> torch_dist.Store:
    """A store that all ranks have reached; RendezvousError says which have not."""
    store = open_store(world.rank, timeout_s)
    keys = [f"clsgen-here-{rank}" for rank in range(world.size)]
    store.set(keys[world.rank], world.node)
    try:
        store.wait(keys, timedelta(seconds=timeout_s))
    except (torch_dist.DistNetworkError, torch_dist.DistStoreError, RuntimeError) as error:
        raise RendezvousError(_missing_ranks_message(store, keys, timeout_s, error)) from None
    return torch_dist.PrefixStore("clsgen", store)


def _missing_ranks_message(store: torch_dist.Store, keys: list[str], timeout_s: int, error: Exception) -> str:
    try:
        missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
        nodes = sorted({store.get(key).decode() for rank, key in enumerate(keys) if rank not in missing})
    except RuntimeError:  # the store went with rank 0
        return f"rank 0 went away while the ranks were meeting ({first_line(error)}); see its log"
    return (
        f"ranks {', '.join(map(str, missing[:16]))}{' ...' if len(missing) > 16 else ''} of {len(keys)} timed out "
        f"after {timeout_s} s (faults.rendezvous_timeout_s); nodes that arrived: {', '.join(nodes[:32])}. See the logs "
        "of the others, and start again"
    )


def node_name() -> str:
    """This machine's name; Slurm's, where Slurm started us."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def on_accelerator() -> bool:
    """Whether DeepSpeed found something faster than the CPU."""
    from deepspeed.accelerator import get_accelerator

    return bool(get_accelerator().device_name() != "cpu")


def ranks_here() -> int:
    """Ranks on this machine, as the launcher says: deepspeed, torchrun, Slurm."""
    for name in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    if "SLURM_STEP_TASKS_PER_NODE" in os.environ:
        return tasks_by_node(os.environ["SLURM_STEP_TASKS_PER_NODE"])[int(os.environ.get("SLURM_NODEID", "0"))]
    return 1


def tasks_by_node(text: str) -> list[int]:
    """Slurm's short form in full: ``2(x3),1`` is [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.rstrip(")").partition("(x")
        counts += [int(count)] * int(times or 1)
    return counts
