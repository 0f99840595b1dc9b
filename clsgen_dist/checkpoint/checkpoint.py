"""Checkpoints that count only when committed: which there are, whether they are whole, and how a run goes on from one.

A checkpoint is DeepSpeed's sharded folder ``step-00000120/`` plus a marker, ``committed.json``: training state, size
and SHA-256 of every file, and a SHA-256 of the marker itself. A folder without marker is a save that was killed, and
is passed over; so is one whose checksums do not match, and it is named. The newest valid checkpoint wins.
:mod:`clsgen_dist.checkpoint.saver` writes them.

Frozen parameters are not written: they come again from the backbone, which is compared with the one that was trained
(sum and sum of squares over all frozen parameters).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from clsgen_dist.data.curriculum.stages import order_of_format_1
from clsgen_dist.engine.world import World
from clsgen_dist.errors import CheckpointError
from clsgen_dist.resilience.spikes import SpikeState

FORMAT = 2
"""Of markers; those of format 1 carry no number, and name what decides the order in words."""
MARKER = "committed.json"
_SAVING, _DELETING = "saving", "deleting"
LEFTOVER = (_SAVING, _DELETING)
"""Files that say of a folder without marker that it is ours, and may go."""
SETTINGS_FILE = "settings.yaml"


_NOTE = """Checkpoints of a clsgen_dist run, in DeepSpeed's sharded format. A folder counts if it holds committed.json.

A model to use:    clsgen export --checkpoint RUN --output DIR
To go on:          clsgen train ... --resume auto

zero_to_fp32.py, which DeepSpeed copies into each folder, gives the trained tensors alone: without the backbone's frozen
weights, and with LoRA updates apart.
"""


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything to resume, besides weights and optimizer state."""

    step: int
    """Optimizer steps done."""
    best_step: int | None = None
    """Step of the best checkpoint so far."""
    best_value: float | None = None
    """Its dev metric."""
    best_by: str | None = None
    """What the best is the best by, as :func:`best_by` writes it."""
    evaluations_without_gain: int = 0
    """For early stopping."""
    guard: SpikeState = field(default_factory=SpikeState)
    """Losses and skipped steps so far."""

    @property
    def updates(self) -> int:
        """Optimizer steps that were not left out."""
        return self.step - self.guard.skipped


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What must be equal for a resumed run to go on as if it had not stopped."""

    labels: list[str]
    rows: int
    rows_sha256: str
    order: dict[str, Any]
    """What decides the rows shown so far: :func:`clsgen_dist.data.curriculum.stages.visited_before`."""
    seed: int
    batch_size: int
    finetune: str
    top_layers: int | None
    lora: tuple[int, int] | None
    """Rank and alpha, with LoRA."""
    optimizer: str
    frozen_sum: float
    frozen_square_sum: float


def best_by(metric: str, dev_rows: str) -> str:
    """A code of what makes a checkpoint the best: the metric, and the fingerprint of the dev rows."""
    return f"{metric}@{dev_rows[:12]}"


def folder_name(step: int) -> str:
    """Name of a step's checkpoint folder."""
    return f"step-{step:08d}"


def read_marker(folder: Path) -> dict[str, Any]:
    """The marker of a committed checkpoint; CheckpointError if there is none or it cannot be read."""
    try:
        marker = json.loads((folder / MARKER).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MARKER}: its save was not finished, so it does not count") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / MARKER} cannot be read ({error}); use an earlier checkpoint") from None
    if not isinstance(marker, dict) or marker.pop("sha256", None) != _digest(marker):
        raise CheckpointError(f"{folder / MARKER} does not match its own checksum; use an earlier checkpoint")
    return marker


def commit(folder: Path, marker: dict[str, Any]) -> None:
    """Publish a checkpoint's marker: from here on it counts."""
    publish(folder / MARKER, json.dumps({**marker, "sha256": _digest(marker)}, indent=1))
    (folder / _SAVING).unlink(missing_ok=True)
    publish(folder.parent / "latest", folder.name)
    if not (note := folder.parent / "README.txt").exists():
        note.write_text(_NOTE)


def _digest(marker: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(marker, sort_keys=True).encode()).hexdigest()


def verify(folder: Path, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    """The marker, after every file's size and checksum matched it; CheckpointError names the first that does not.

    Of several ranks each looks at its share of the files.
    """
    marker = read_marker(folder)
    for name in sorted(marker["files"])[rank::ranks]:
        path, expected = folder / name, marker["files"][name]
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if path.stat().st_size != expected["bytes"]:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes, expected {expected['bytes']}")
        if _sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path} does not match its checksum")
    return marker


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


def newest_valid(
    root: Path, report: Callable[[str], None], world: World | None = None, *, good: bool = False
) -> Path | None:
    """The newest checkpoint whose files are whole; damaged ones are reported and passed over.

    With ``good``, one that was written while steps were being left out is passed over too: its weights are those that
    made the losses leap. Collective with a ``world``, whose ranks share the reading.
    """
    folders = committed(root) if world is None else world.broadcast(committed(root))
    for folder in reversed(folders):
        if fault := fault_of(folder, world):
            report(f"checkpoint {folder.name} is damaged and passed over: {fault}")
        elif not (good and read_marker(folder)["state"]["guard"]["in_a_row"]):
            return folder
    return None


def later_than(root: Path, step: int) -> list[Path]:
    """Committed checkpoints of later steps than this."""
    return [folder for folder in committed(root) if (step_of(folder) or 0) > step]


def clear_after(root: Path, step: int) -> None:
    """Delete what a run that goes on from ``step`` does not: later checkpoints, and saves and conversions cut short.

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


def begin_folder(folder: Path, report: Callable[[str], None]) -> None:
    """Make the folder of a save, signed as not finished; one of that name that is not ours is moved aside."""
    if folder.exists() or folder.is_symlink():
        if any((folder / sign).exists() for sign in (MARKER, *LEFTOVER)) and not folder.is_symlink():
            shutil.rmtree(folder)
        else:
            names = (folder.with_name(f"{folder.name}.aside-{number}") for number in itertools.count(1))
            aside = next(path for path in names if not path.exists())
            folder.rename(aside)
            report(f"{folder} was there and has no {MARKER}: moved to {aside.name}")
    folder.mkdir(parents=True)
    (folder / _SAVING).touch()


def delete(folder: Path) -> None:
    """Delete a committed checkpoint; killed half-way, it is known as a leftover."""
    (folder / MARKER).rename(folder / _DELETING)
    shutil.rmtree(folder)


def fault_of(folder: Path, world: World | None = None) -> str | None:
    """What is wrong with a checkpoint's files, None if nothing is; collective with a ``world``."""
    fault = None
    try:
        verify(folder, *((world.rank, world.size) if world else ()))
    except CheckpointError as error:
        fault = str(error)
    return next(filter(None, world.gather(fault)), None) if world else fault


def load(engine: Any, world: World, folder: Path, identity: Callable[[int], RunIdentity]) -> TrainState:
    """Restore engine and state from a committed checkpoint; collective. ``identity`` is this run's, up to a step.

    One that another number of ranks wrote goes through DeepSpeed's universal format first.

    Raises:
        CheckpointError: written by a run with other data, order, seed, batch size or backbone, or not loadable.
    """
    marker = read_marker(folder)
    saved, current = _flat(_identity_of(marker)), _flat(asdict(identity(marker["state"]["step"])))
    differences = [
        f"{name} was {saved.get(name)!r} and is now {current.get(name)!r}{_WHY.get(name.rpartition('.')[2], '')}"
        for name in current | saved
        if not _same(saved.get(name), current.get(name))
    ]
    if differences:
        raise CheckpointError(
            f"{folder} is of another run: {'; '.join(differences)}. Restore those settings and rows, or start anew "
            "with another output_dir"
        )
    restore_weights(engine, world, folder)
    return _state_of(marker)


def restore_weights(engine: Any, world: World, folder: Path) -> None:
    """Weights and optimizer state of a checkpoint of this run, whatever number of ranks wrote it; collective."""
    marker = read_marker(folder)
    # DeepSpeed loads a group's options too: rates, decay and betas stay those of the settings.
    options = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
    if marker["world_size"] == world.size:
        path, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name, load_module_strict=False)
    elif marker["identity"]["optimizer"] == "adamw_8bit":
        raise CheckpointError(
            f"{folder} was written by {marker['world_size']} ranks and this run has {world.size}: the state of "
            "adamw_8bit cannot be shared out anew; go on with as many ranks, or train with adamw"
        )
    else:
        path = _load_from_other_ranks(engine, world, folder)
    if path is None:
        raise CheckpointError(f"DeepSpeed could not load {folder}; use an earlier checkpoint")
    for group, own in zip(engine.optimizer.param_groups, options, strict=True):
        group.update(own)


def require_same_canary(folder: Path, now: list[dict[str, Any]], tolerance: float) -> tuple[float, float]:
    """The probe's mean loss as saved and as scored now, by each rank.

    CheckpointError, on all ranks, if one of them is off by more than ``tolerance``.
    """

    def mean(probe: dict[str, Any]) -> float:
        return float(sum(probe["token_losses"]) / len(probe["token_losses"]))

    then, losses = mean(read_marker(folder)["probe"]), [mean(probe) for probe in now]
    wrong = [f"{loss:.6f} on rank {rank}" for rank, loss in enumerate(losses)
             if not abs(then - loss) <= tolerance * max(1.0, abs(then))]  # fmt: skip
    if wrong:
        raise CheckpointError(
            f"{folder} scores {', '.join(wrong[:4])} on the fixed text whose loss was {then:.6f} when it was saved: "
            "its weights did not arrive as they were. Use an earlier checkpoint, or the number of ranks that wrote it"
        )
    return then, losses[0]


def _state_of(marker: dict[str, Any]) -> TrainState:
    state = dict(marker["state"])
    if state["best_by"] and "format" not in marker:
        state["best_by"] = best_by(*state["best_by"].split(" of the dev rows "))
    guard = state.pop("guard")
    for name in ("recent_generation", "recent_classification"):  # JSON has lists only
        guard[name] = tuple(guard[name])
    return TrainState(**state, guard=SpikeState(**guard))


def _load_from_other_ranks(engine: Any, world: World, folder: Path) -> str | None:
    """Convert a checkpoint to one that any number of ranks reads, load that, and delete it; collective.

    Cost: a second copy of the checkpoint on the disk while it is loaded; rank 0 converts alone.
    """
    universal = folder.with_name(f"{folder.name}.universal")
    failed = None
    if world.is_main:
        shutil.rmtree(universal, ignore_errors=True)
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--num_extract_workers", "1"]
        command += ["--num_merge_workers", "1", "--input_folder", str(folder), "--output_folder", str(universal)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        (folder.parent / "latest_universal").unlink(missing_ok=True)
        failed = done.stderr[-2000:] if done.returncode else None
    if failed := world.broadcast(failed):
        raise CheckpointError(f"{folder} could not be converted for {world.size} ranks:\n{failed}")
    engine._config.load_universal_checkpoint = True
    try:
        path, _ = engine.load_checkpoint(str(folder.parent), tag=universal.name, load_module_strict=False)
    finally:
        engine._config.load_universal_checkpoint = False
    # The loader gives all parameters one and the same tensor of Adam's step, which then counts once for each of them.
    for parameter_state in engine.optimizer.optimizer.state.values():
        if isinstance(step := parameter_state.get("step"), torch.Tensor):
            parameter_state["step"] = step.clone()
    world.barrier()
    if world.is_main:
        shutil.rmtree(universal)
    return path  # type: ignore[no-any-return]


def prune(root: Path, *, keep_last: int, best_step: int | None) -> None:
    """Delete all committed checkpoints but the newest ``keep_last`` and the best. The marker goes first."""
    keep = {folder_name(best_step)} if best_step is not None else set()
    for folder in committed(root)[:-keep_last]:
        if folder.name not in keep:
            delete(folder)


def frozen_sums(model: torch.nn.Module, world: World) -> tuple[float, float]:
    """Sum and sum of squares over all frozen parameters, each counted once whatever the sharding; collective."""
    total = square = 0.0
    parameter: Any
    for parameter in model.parameters():
        if parameter.requires_grad:
            continue
        shard = getattr(parameter, "ds_tensor", None)
        if shard is None:
            values, share = parameter.detach(), 1 / world.size
        else:
            start = shard.ds_numel * world.rank  # the last shards are padded
            values, share = shard.detach().flatten()[: max(0, parameter.ds_numel - start)], 1.0
        total += share * values.sum(dtype=torch.float64).item()
        square += share * values.double().square().sum().item()
    sums = world.sum(total, square)
    return sums[0], sums[1]


_WHY = {"last_rows": " (its last step was a short one, so it cannot be made longer)"}


def _identity_of(marker: dict[str, Any]) -> dict[str, Any]:
    identity: dict[str, Any] = marker["identity"]
    return identity if "format" in marker else {**identity, "order": order_of_format_1(identity["order"])}


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    order = {f"order.{name}": value for name, value in identity["order"].items()}
    return {name: value for name, value in identity.items() if name != "order"} | order


def _same(then: Any, now: Any) -> bool:
    if isinstance(now, tuple):  # JSON has lists only
        now = list(now)
    if isinstance(then, float) and isinstance(now, float):
        return abs(then - now) <= 1e-6 * max(abs(then), abs(now), 1.0)
    return bool(then == now)


def seal(path: Path) -> dict[str, Any]:
    """Flush a written file to the disk, and its size and checksum."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(path: Path, text: str) -> None:
    """Write aside, flush, rename, flush the folder: the file is there whole or not at all."""
    aside = path.with_suffix(".tmp")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
