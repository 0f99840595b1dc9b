"""The folders of a run's checkpoints: which there are, which count, which may be deleted.

A checkpoint is DeepSpeed's sharded folder ``step-00000120/`` with a marker. The newest valid one is resumed; one whose
checksums do not match is named and passed over. Only folders that are ours for certain are deleted: exact names, with
our marker or a file that we left there.
"""

from __future__ import annotations

import itertools
import logging
import re
import shutil
from pathlib import Path

from clsgen_dist.checkpoint.marker import DELETING, LEFTOVER, MARKER, SAVING, read_marker, verify
from clsgen_dist.engine.world import World
from clsgen_dist.errors import CheckpointError

logger = logging.getLogger(__name__)


def folder_name(step: int) -> str:
    """Name of a step's checkpoint folder."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int | None:
    """The step in a checkpoint folder's name; None for any other name, and for links: those are somebody else's."""
    name = re.fullmatch(r"step-(\d{8})", folder.name)
    return int(name[1]) if name and folder.is_dir() and not folder.is_symlink() else None


def committed(root: Path) -> list[Path]:
    """Committed checkpoint folders under ``root``, oldest first; not verified."""
    return sorted(p.parent for p in root.glob(f"step-*/{MARKER}") if step_of(p.parent) is not None)


def unmarked(root: Path) -> list[Path]:
    """Folders named as checkpoints that hold weights, but neither marker nor a sign of ours that they are leftovers."""
    return sorted(
        folder
        for folder in root.glob("step-*")
        if step_of(folder) is not None
        and not any((folder / sign).exists() for sign in (MARKER, *LEFTOVER))
        and any(folder.glob("*_states.pt"))
    )


def newest_valid(root: Path, world: World | None = None, *, good: bool = False) -> Path | None:
    """The newest checkpoint whose files are intact; damaged ones are logged and skipped.

    With ``good``, one that was written while updates were being skipped is passed over too: its weights made the losses
    spike. Collective with a ``world``, whose ranks share the reading.
    """
    folders = committed(root) if world is None else world.broadcast(committed(root))
    for folder in reversed(folders):
        if fault := fault_of(folder, world):
            if world is None or world.is_main:
                logger.warning("checkpoint %s is damaged and passed over: %s", folder.name, fault)
        elif not (good and read_marker(folder)["state"]["spikes"]["in_a_row"]):
            return folder
    return None


def later_than(root: Path, step: int) -> list[Path]:
    """Committed checkpoints of later steps than this."""
    return [folder for folder in committed(root) if (step_of(folder) or 0) > step]


def clear_after(root: Path, step: int) -> None:
    """Delete what a run that resumes at ``step`` does not need: later checkpoints, interrupted saves and conversions.

    Only what is ours for certain: exact names, with our marker or a sign that we left there. Copies and folders of
    other names stay.
    """
    for folder in later_than(root, step):
        delete(folder)
    for folder in root.glob("step-*"):
        signed = any((folder / sign).exists() for sign in LEFTOVER)
        is_leftover = step_of(folder) is not None and signed and not (folder / MARKER).exists()
        is_conversion = re.fullmatch(r"step-\d{8}\.universal", folder.name) and not folder.is_symlink()
        if is_leftover or is_conversion:
            shutil.rmtree(folder)


def begin_folder(folder: Path) -> None:
    """Make the folder of a save, signed as not finished; one of that name that is not ours is moved aside."""
    if folder.exists() or folder.is_symlink():
        if any((folder / sign).exists() for sign in (MARKER, *LEFTOVER)) and not folder.is_symlink():
            shutil.rmtree(folder)
        else:
            names = (folder.with_name(f"{folder.name}.aside-{number}") for number in itertools.count(1))
            aside = next(path for path in names if not path.exists())
            folder.rename(aside)
            logger.warning("%s exists and has no %s: moved to %s", folder, MARKER, aside.name)
    folder.mkdir(parents=True)
    (folder / SAVING).touch()


def delete(folder: Path) -> None:
    """Delete a committed checkpoint; killed half-way, it is known as a leftover."""
    (folder / MARKER).rename(folder / DELETING)
    shutil.rmtree(folder)


def fault_of(folder: Path, world: World | None = None) -> str | None:
    """What is wrong with a checkpoint's files, None if nothing is; collective with a ``world``."""
    fault = None
    try:
        verify(folder, *((world.rank, world.size) if world else ()))
    except CheckpointError as error:
        fault = str(error)
    return next(filter(None, world.gather(fault)), None) if world else fault


def prune(root: Path, *, keep_last: int, best_step: int | None) -> None:
    """Delete all committed checkpoints but the newest ``keep_last`` and the best. The marker goes first."""
    keep = {folder_name(best_step)} if best_step is not None else set()
    for folder in committed(root)[:-keep_last]:
        if folder.name not in keep:
            delete(folder)
