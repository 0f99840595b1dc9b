"""Resuming from a checkpoint: whether it is of this run, and how its weights arrive on any number of ranks.

Frozen parameters are not in a checkpoint: they come from the backbone, which is compared with the one that was trained
(sum and sum of squares over all frozen parameters). A checkpoint of another number of ranks goes through DeepSpeed's
universal format: a second copy of it on the disk while it is loaded.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from clsgen_dist.checkpoint.marker import read_marker, train_state
from clsgen_dist.checkpoint.state import RunIdentity, TrainState
from clsgen_dist.engine.settings import OPTIMIZERS
from clsgen_dist.engine.world import World
from clsgen_dist.errors import CheckpointError
from clsgen_dist.model.backbone import local_values

_WHY = {"last_rows": " (its last step was a short one, so it cannot be made longer)"}


def load(engine: Any, world: World, folder: Path, identity: Callable[[int], RunIdentity]) -> TrainState:
    """Restore engine and state from a committed checkpoint; collective. ``identity`` is this run's, up to a step.

    One that another number of ranks wrote goes through DeepSpeed's universal format first.

    Raises:
        CheckpointError: written by a run with other data, order, seed, batch size or backbone, or not loadable.
    """
    marker = read_marker(folder)
    saved, current = _flat(marker["identity"]), _flat(asdict(identity(marker["state"]["step"])))
    differences = [
        f"{name} was {saved.get(name)!r} and is now {current.get(name)!r}{_WHY.get(name.rpartition('.')[2], '')}"
        for name in current | saved
        if not _same(saved.get(name), current.get(name))
    ]
    if differences:
        raise CheckpointError(
            f"{folder} is of another run: {'; '.join(differences)}. Restore those settings and rows, or start a "
            "new run with another output_dir"
        )
    restore_weights(engine, world, folder)
    return train_state(marker)


def restore_weights(engine: Any, world: World, folder: Path) -> None:
    """Weights and optimizer state of a checkpoint of this run, whatever number of ranks wrote it; collective."""
    marker = read_marker(folder)
    # DeepSpeed loads a group's options too: rates, decay and betas stay those of the settings.
    options = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
    if marker["world_size"] == world.size:
        path, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name, load_module_strict=False)
    elif not OPTIMIZERS[optimizer := marker["identity"]["optimizer"]].state_moves:
        raise CheckpointError(
            f"{folder} was written by {marker['world_size']} ranks and this run has {world.size}: the state of "
            f"{optimizer} cannot be resharded; resume with as many ranks, or train with adamw"
        )
    else:
        path = _load_from_other_ranks(engine, world, folder)
    if path is None:
        raise CheckpointError(f"DeepSpeed could not load {folder}; use an earlier checkpoint")
    for group, own in zip(engine.optimizer.param_groups, options, strict=True):
        group.update(own)


def require_same_canary(folder: Path, now: list[dict[str, Any]], tolerance: float) -> tuple[float, float]:
    """The fixed text's mean loss as saved and as scored now, by each rank.

    CheckpointError, on all ranks, if one of them is off by more than ``tolerance``.
    """

    def mean(scores: dict[str, Any]) -> float:
        return float(sum(scores["token_losses"]) / len(scores["token_losses"]))

    then, losses = mean(read_marker(folder)["canary"]), [mean(scores) for scores in now]
    wrong = [f"{loss:.6f} on rank {rank}" for rank, loss in enumerate(losses)
             if not abs(then - loss) <= tolerance * max(1.0, abs(then))]  # fmt: skip
    if wrong:
        raise CheckpointError(
            f"{folder} scores {', '.join(wrong[:4])} on the fixed text whose loss was {then:.6f} when it was saved: "
            "its weights were not restored. Use an earlier checkpoint, or the number of ranks that wrote it"
        )
    return then, losses[0]


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


def frozen_sums(model: torch.nn.Module, world: World) -> tuple[float, float]:
    """Sum and sum of squares over all frozen parameters, each counted once whatever the sharding; collective."""
    total = square = 0.0
    parameter: Any
    for parameter in model.parameters():
        if parameter.requires_grad:
            continue
        values = local_values(parameter, world.rank)
        share = 1.0 if hasattr(parameter, "ds_tensor") else 1 / world.size
        total += share * values.sum(dtype=torch.float64).item()
        square += share * values.double().square().sum().item()
    sums = world.sum(total, square)
    return sums[0], sums[1]


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    order = {f"order.{name}": value for name, value in identity["order"].items()}
    return {name: value for name, value in identity.items() if name != "order"} | order


def _same(then: Any, now: Any) -> bool:
    if isinstance(now, tuple):  # JSON has lists only
        now = list(now)
    if isinstance(then, float) and isinstance(now, float):
        return abs(then - now) <= 1e-6 * max(abs(then), abs(now), 1.0)
    return bool(then == now)
