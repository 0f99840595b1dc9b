"""Writing checkpoints: training stalls only while the shard is copied to host memory.

A save copies this rank's shard to host memory (the stall); a thread writes, flushes and checksums it while training
continues. At the first step boundary where every rank has written, all commit together: marker aside, fsync, rename,
fsync of the folder. One save is in progress at a time.

Cost: host memory for this rank's trained parameters and their optimizer state until they are written (none with
``checkpoint.asynchronous: false``), one write of them, and one read for the checksums.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

from clsgen_dist import checkpoint
from clsgen_dist.data.tables.state_cache import FOLDER
from clsgen_dist.engine.world import World
from clsgen_dist.errors import CheckpointError, first_line

TRANSIENT_ERRNOS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EREMOTEIO}
"""Faults of a network's file system that may pass by themselves, unlike a full disk."""


class Saver:
    """Saves a run's checkpoints, one at a time.

    Args:
        engine: DeepSpeed's.
        world: this rank among the others.
        root: the folder of all checkpoints.
        keep_last: how many of the newest are kept, besides the best.
        asynchronous: write while training continues.
        prompt: the run's rendered prompt, kept with each checkpoint.
        require_lock: called before anything is written or committed; raises, on all ranks, if the folder has another
            owner by now; collective. It is :meth:`clsgen_dist.resilience.run_lock.RunLock.require`.
    """

    def __init__(
        self,
        engine: Any,
        world: World,
        root: Path,
        *,
        keep_last: int,
        asynchronous: bool,
        prompt: dict[str, Any],
        require_lock: Callable[[World], None],
    ) -> None:
        self._engine, self._world, self._root, self._keep_last = engine, world, root, keep_last
        self._prompt, self._require_lock = prompt, require_lock
        self._writer = _ShardWriter(asynchronous)
        engine.checkpoint_engine = self._writer
        self._marker: dict[str, Any] | None = None
        self.last_step: int | None = None
        """Step of the last save."""

    @property
    def written(self) -> bool:
        """Whether a save is under way and all of this rank's files are on the disk."""
        return self._marker is not None and self._writer.done

    def require_disk_space(self, steps: int, *, every: int | None, eval_every: int | None) -> None:
        """CheckpointError if the disk cannot hold all checkpoints of the next ``steps`` at once; collective.

        Args:
            steps: that are left.
            every: steps between two saves; None: none but those at evaluations and at the end.
            eval_every: steps between two evaluations; None: no evaluation.
        """
        needed, count = checkpoints_to_come(
            self._engine, self._world, self._root, steps, every=every, eval_every=eval_every, keep_last=self._keep_last
        )
        require_disk_space(self._root, self._world, needed, count)

    def begin(
        self,
        *,
        state: checkpoint.TrainState,
        identity: checkpoint.RunIdentity,
        canary: dict[str, Any],
        settings_yaml: str,
    ) -> None:
        """Start to save; collective. Waits for the save before, if that is still under way.

        Raises:
            CheckpointError: the disk has no room for it.
        """
        self.finish()
        self._require_lock(self._world)
        require_disk_space(self._root, self._world, checkpoint_bytes(self._engine, self._world))
        folder = self._root / checkpoint.folder_name(state.step)
        if self._world.is_main:
            checkpoint.begin_folder(folder)
        self._world.barrier()
        self._engine.save_checkpoint(
            str(self._root), tag=folder.name, save_latest=False, exclude_frozen_parameters=True
        )
        if self._world.is_main:
            (folder / checkpoint.SETTINGS_FILE).write_text(settings_yaml)
        self.last_step = state.step
        self._marker = {
            "world_size": self._world.size,
            "state": asdict(state),
            "identity": asdict(identity),
            "canary": canary,
            "prompt": self._prompt,
        }

    def finish(self) -> Path | None:
        """Commit the save under way, waiting for it where it must; collective. Returns its folder, None without one.

        Raises:
            CheckpointError: a rank could not write its files.
            RuntimeError: the same, for a fault of the file system that may pass.
        """
        if self._marker is None:
            return None
        marker, self._marker = self._marker, None
        self._require_lock(self._world)
        folder = self._root / checkpoint.folder_name(marker["state"]["step"])
        parts = self._world.gather(self._writer.result())
        failed = [f"rank {rank}: {part.why}" for rank, part in enumerate(parts) if isinstance(part, WriteFailure)]
        if failed:
            message = f"{folder} was not written ({'; '.join(failed[:4])}); the previous one is kept"
            if any(isinstance(part, WriteFailure) and part.is_transient for part in parts):
                raise RuntimeError(message)  # a crash: another start may do better
            raise CheckpointError(message)
        if self._world.is_main:
            files = {name: entry for part in parts for name, entry in part.items()}
            rest = [p.name for p in folder.iterdir() if p.is_file() and p.name not in (*files, *checkpoint.LEFTOVER)]
            marker["files"] = files | {name: checkpoint.seal(folder / name) for name in sorted(rest)}
            checkpoint.commit(folder, marker)
            checkpoint.prune(self._root, keep_last=self._keep_last, best_step=marker["state"]["best_step"])
        self._world.barrier()
        return folder


class _ShardWriter(CheckpointEngine):
    """What DeepSpeed writes its files through: copies of them, or the files themselves, and their checksums."""

    def __init__(self, asynchronous: bool) -> None:
        super().__init__()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clsgen-save") if asynchronous else None
        self._files: list[Future[tuple[str, dict[str, Any]]]] = []

    def create(self, info: Any) -> None:
        self._files = []

    def save(self, state_dict: Any, path: str) -> None:
        if self._thread is not None:
            self._files.append(self._thread.submit(_write, _copied(state_dict), Path(path)))
        else:
            written: Future[tuple[str, dict[str, Any]]] = Future()
            self._files.append(written)
            try:
                written.set_result(_write(state_dict, Path(path)))
            except (OSError, RuntimeError) as error:  # raised by all ranks together, in finish()
                written.set_exception(error)

    def load(self, path: str, map_location: Any = None) -> Any:
        return torch.load(path, map_location=map_location, weights_only=False)

    def commit(self, info: Any) -> bool:
        return True

    def preserves_storage_sharing(self) -> bool:
        return False  # whoever writes copies views first

    @property
    def done(self) -> bool:
        return all(file.done() for file in self._files)

    def result(self) -> dict[str, Any] | WriteFailure:
        """Size and checksum of each file, once written; else what went wrong."""
        try:
            return dict(file.result() for file in self._files)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
            why = f"{type(error).__name__}: {first_line(error)}"
            return WriteFailure(why, is_transient=isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS)


@dataclass(frozen=True)
class WriteFailure:
    """Why a rank could not write its files."""

    why: str
    is_transient: bool
    """Whether it may be temporary, like a file server that does not answer."""


def _write(state_dict: Any, path: Path) -> tuple[str, dict[str, Any]]:
    torch.save(state_dict, path)
    return path.name, checkpoint.seal(path)


def _copied(value: Any) -> Any:
    """The same with every tensor copied to host memory, views without what lies around them."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(item) for item in value)
    return value


def checkpoint_bytes(engine: Any, world: World) -> int:
    """About what a checkpoint takes: fp32 weights and optimizer state of all ranks; collective."""
    weights = [flat for flat in engine.optimizer.fp32_partitioned_groups_flat if flat is not None]
    state = [t for entry in engine.optimizer.optimizer.state.values() for t in entry.values() if torch.is_tensor(t)]
    mine = sum(t.numel() * t.element_size() for t in (*weights, *state))
    if not state:  # before the first step: two moments in fp32
        mine *= 3
    return int(world.sum(mine)[0])


def checkpoints_to_come(
    engine: Any, world: World, root: Path, steps: int, *, every: int | None, eval_every: int | None, keep_last: int
) -> tuple[int, int]:
    """Bytes of a checkpoint, and how many more of them the disk must hold in the next ``steps`` steps; collective."""
    existing = len(checkpoint.committed(root))
    count = checkpoints_still_to_store(steps, every, eval_every, keep_last=keep_last, existing=existing)
    return checkpoint_bytes(engine, world), count


def checkpoints_still_to_store(
    steps: int, every: int | None, eval_every: int | None, *, keep_last: int, existing: int
) -> int:
    """How many more checkpoints than the ``existing`` the disk must hold at once over ``steps`` steps; at least one.

    Held are the last ones, the best, and the one that is being written.
    """
    saves = 1 + (steps // every if every else 0) + (steps // eval_every if eval_every else 0)
    return max(1, min(saves, keep_last + 1 + (eval_every is not None) - existing))


def require_disk_space(root: Path, world: World, needed: int, checkpoints: int = 1) -> None:
    """CheckpointError, on all ranks, without room for ``checkpoints`` of ``needed`` bytes each; collective."""
    fault = None
    what = "the next checkpoint" if checkpoints == 1 else f"{checkpoints} checkpoints"
    if world.is_main:
        root.mkdir(parents=True, exist_ok=True)
        disk, files = os.statvfs(root), checkpoints * (2 * world.size + 8)
        free = disk.f_bavail * disk.f_frsize
        if free < checkpoints * needed * 1.02:
            fault = f"{checkpoints * needed / 1e9:.3g} GB for {what}, but it has {free / 1e9:.3g} GB free"
        elif disk.f_files and disk.f_favail < files:
            fault = f"{files} files for {what}, but it has {disk.f_favail} inodes free"
        kept = root.parent / FOLDER
        if fault and kept.exists():
            fault += f" ({kept} is of train.cache_frozen: off does without it)"
    if fault := world.broadcast(fault):
        raise CheckpointError(
            f"the disk of {root} needs {fault}; make room, lower checkpoint.keep_last, or move output_dir, then "
            "resume with --resume auto"
        )
