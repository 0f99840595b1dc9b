"""The run's folder: made first, never overwritten by accident; and the checkpoint in it to resume from."""

from __future__ import annotations

import logging
from pathlib import Path

from clsgen_dist import checkpoint
from clsgen_dist.data.tables.state_cache import FOLDER, StateCache
from clsgen_dist.engine.world import World
from clsgen_dist.errors import CheckpointError, SettingsError
from clsgen_dist.resilience import spikes

logger = logging.getLogger(__name__)


def prepare_run_dir(output: Path, world: World, *, resume: str, overwrite: bool, settings_yaml: str) -> Path | None:
    """Make the run's folder, and find the checkpoint to resume from; collective.

    Args:
        resume: ``never``, ``auto`` (the newest valid checkpoint in ``output``), or a checkpoint's folder.
        overwrite: delete what an earlier run left in ``output``, or the checkpoints later than ``resume``.
        settings_yaml: kept in the folder.

    Raises:
        CheckpointError: no checkpoint to resume from is intact, or resuming would replace others.
        SettingsError: the folder cannot be written, or holds another run.
    """
    root = output / "checkpoints"
    found = None
    if resume == "auto":
        found = _newest(root, world)
    elif resume != "never":
        found = _named(Path(resume), root, overwrite, world)
    starts_over = resume == "never"
    fault = None
    if world.is_main:
        fault = _make(output, root, starts_over=starts_over, overwrite=overwrite, settings_yaml=settings_yaml)
    if fault := world.broadcast(fault):
        raise SettingsError(fault)
    return found


def step_to_resume(output: Path, resume: str) -> int:
    """Step of the checkpoint that a run means to resume from, by its folder's name; 0 without one. Nothing is read."""
    folders = checkpoint.committed(output / "checkpoints") if resume == "auto" else [Path(resume)]
    return (checkpoint.step_of(folders[-1]) or 0) if folders else 0


def _newest(root: Path, world: World) -> Path | None:
    found = checkpoint.newest_valid(root, world)
    if found is None and world.broadcast(bool(checkpoint.committed(root))):
        raise CheckpointError(
            f"every checkpoint in {root} is damaged; put one back from elsewhere, or start over: --resume never "
            "--overwrite true"
        )
    if found is None and (unmarked := world.broadcast(checkpoint.unmarked(root))):
        raise CheckpointError(
            f"{root} holds {len(unmarked)} folders with weights, up to {unmarked[-1].name}, and none has its "
            f"{checkpoint.MARKER}: they are neither resumed nor overwritten. Restore the markers, or move the "
            "folders away to start over"
        )
    if found is None:
        logger.info("nothing to resume: starting at step 0")
    else:
        logger.info("newest valid checkpoint: %s", found.name)
    return found


def _named(found: Path, root: Path, overwrite: bool, world: World) -> Path:
    if fault := checkpoint.fault_of(found, world):
        raise CheckpointError(fault)
    if found.resolve().parent == root.resolve():
        found = root / found.name
    step = checkpoint.read_marker(found)["state"]["step"] if found.parent == root else -1
    others = world.broadcast(checkpoint.later_than(root, step))
    if others and not overwrite:
        raise CheckpointError(
            f"{root} holds {len(others)} checkpoints, up to {others[-1].name}, which resuming from {found} would "
            "replace; use --overwrite true, or choose another --output_dir"
        )
    return found


def _make(output: Path, root: Path, *, starts_over: bool, overwrite: bool, settings_yaml: str) -> str | None:
    """The output folder with the run's settings in it; what forbids it, as text."""
    try:
        if starts_over and overwrite:
            checkpoint.clear_after(root, -1)
            for events in (output / "tensorboard").rglob("events.out.tfevents.*"):
                events.unlink()
            for name in ("rows.jsonl", spikes.SKIPPED_FILE, "stragglers.jsonl"):
                (output / name).unlink(missing_ok=True)
            StateCache.delete(output / FOLDER)
        if starts_over and (checkpoint.committed(root) or checkpoint.unmarked(root)):
            return (
                f"{output} already holds checkpoints of a run; resume it (--resume auto), choose another "
                "--output_dir, or delete it (--overwrite true)"
            )
        output.mkdir(parents=True, exist_ok=True)
        (output / checkpoint.SETTINGS_FILE).write_text(settings_yaml)
    except OSError as error:
        return f"output_dir {str(output)!r} cannot be written ({error}); choose another --output_dir"
    return None
