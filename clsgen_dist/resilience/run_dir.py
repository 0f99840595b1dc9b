"""The run's folder: made before anything else, never written over by accident, and where a run goes on from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clsgen_dist.checkpoint import checkpoint
from clsgen_dist.config import Settings, to_yaml
from clsgen_dist.engine.world import World
from clsgen_dist.errors import CheckpointError, SettingsError
from clsgen_dist.resilience import spikes


def prepare_run_dir(settings: Settings, world: World, say: Callable[[str], None]) -> Path | None:
    """Make the output folder, and find the checkpoint to resume from; collective.

    Raises:
        CheckpointError: no checkpoint to go on from is whole, or going on would replace others.
        SettingsError: the folder cannot be written, or holds another run.
    """
    output = Path(settings.output_dir)
    root = output / "checkpoints"
    found = None
    if settings.resume == "auto":
        found = _newest(root, world, say)
    elif settings.resume != "never":
        found = _named(Path(settings.resume), root, settings.overwrite, world)
    fault = world.broadcast(_make(settings, output, root) if world.is_main else None)
    if fault:
        raise SettingsError(fault)
    return found


def _newest(root: Path, world: World, say: Callable[[str], None]) -> Path | None:
    found = checkpoint.newest_valid(root, say, world)
    if found is None and world.broadcast(bool(checkpoint.committed(root))):
        raise CheckpointError(
            f"every checkpoint in {root} is damaged; put one back from elsewhere, or start over: --resume never "
            "--overwrite true"
        )
    if found is None and (unmarked := world.broadcast(checkpoint.unmarked(root))):
        raise CheckpointError(
            f"{root} holds {len(unmarked)} folders with weights, up to {unmarked[-1].name}, and none has its "
            f"{checkpoint.MARKER}: they are not taken for whole, nor written over. Put the markers back, or move the "
            "folders away to start over"
        )
    say("nothing to resume: starting at step 0" if found is None else f"newest valid checkpoint: {found.name}")
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
            f"{root} holds {len(others)} checkpoints, up to {others[-1].name}, which going on from {found} would "
            "replace; say --overwrite true, or choose another --output_dir"
        )
    return found


def _make(settings: Settings, output: Path, root: Path) -> str | None:
    """The output folder with the run's settings in it; what forbids it, as text."""
    try:
        if settings.resume == "never" and settings.overwrite:
            checkpoint.clear_after(root, -1)
            for events in (output / "tensorboard").rglob("events.out.tfevents.*"):
                events.unlink()
            for name in ("rows.jsonl", spikes.SKIPPED_FILE, "stragglers.jsonl"):
                (output / name).unlink(missing_ok=True)
        if settings.resume == "never" and (checkpoint.committed(root) or checkpoint.unmarked(root)):
            return (
                f"{output} already holds checkpoints of a run; go on with it (--resume auto), choose another "
                "--output_dir, or delete it (--overwrite true)"
            )
        output.mkdir(parents=True, exist_ok=True)
        (output / checkpoint.SETTINGS_FILE).write_text(to_yaml(settings))
    except OSError as error:
        return f"output_dir {settings.output_dir!r} cannot be written ({error}); choose another --output_dir"
    return None
