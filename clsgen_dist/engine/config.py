"""From DeepSpeed's JSON and the settings tree to the dictionary the engine takes.

The JSON says how ZeRO-3 shards; the settings say batch, clipping and precision. Fields that both know are "auto" in
the JSON and filled in here; a number there that contradicts the settings is refused, never overridden.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from clsgen_dist.engine.settings import OPTIMIZERS
from clsgen_dist.errors import SettingsError


def deepspeed_config(
    path: Path,
    *,
    batch_size: int,
    world_size: int,
    max_grad_norm: float,
    bf16: bool,
    optimizer: str,
) -> dict[str, Any]:
    """The filled-in configuration.

    DeepSpeed counts rows and fixed accumulation steps. Packing takes as many micro-steps as a step's tokens need, and
    the trainer marks the last one, so its counts serve its own arithmetic only: no accumulation, ``batch_size`` rounded
    up to the ranks.

    Raises:
        SettingsError: not JSON, not ZeRO stage 3, a section that the settings own, a contradiction, or an optimizer
            that does not go with the file's offloading; every fault is named.
    """
    try:
        config: dict[str, Any] = json.loads(path.read_text(), object_pairs_hook=_each_once)
    except ValueError as error:
        raise SettingsError(f"{path} is not valid JSON ({error}); fix the file that `deepspeed` names") from None
    share = math.ceil(batch_size / world_size)
    filled = {
        "train_batch_size": share * world_size,
        "train_micro_batch_size_per_gpu": share,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "bf16.enabled": bf16,
        "fp16.enabled": False,
    }
    faults = _fill(config, filled) + _unsupported(config, optimizer, world_size)
    if faults:
        raise SettingsError("; ".join(f"{path.name}: {fault}" for fault in faults))
    return config


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for a duplicate name, of which Python would take the last."""
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice!r} is in one object twice; keep one of them")
    return dict(pairs)


def _fill(config: dict[str, Any], filled: dict[str, Any]) -> list[str]:
    faults = []
    for name, value in filled.items():
        section, _, key = name.rpartition(".")
        node = config.setdefault(section, {}) if section else config
        given = node.get(key, "auto")
        if given != "auto" and given != value:
            faults.append(f'{name} is {given!r}, but the settings make it {value!r}; write "auto" there')
        node[key] = value
    return faults


def refuse_missing_kernels(path: Path, config: dict[str, Any], *, on_gpu: bool) -> None:
    """SettingsError if the file asks for what this machine cannot do: ZeRO++'s quantisation, reading NVMe."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    zero = config["zero_optimization"]
    for key in ("zero_quantized_weights", "zero_quantized_gradients"):
        if zero.get(key) and not on_gpu:
            raise SettingsError(
                f"{path.name}: {key} needs a GPU, and there is none here; use ds_configs/zero3_hpz.json"
            )
    devices = [zero.get(key, {}).get("device") for key in ("offload_param", "offload_optimizer")]
    if "nvme" in devices and not AsyncIOBuilder().is_compatible(verbose=False):
        raise SettingsError(
            f"{path.name}: offloading to nvme needs libaio, which is not here; install it (Debian: libaio-dev), or use "
            "ds_configs/zero3_offload.json"
        )


def _unsupported(config: dict[str, Any], optimizer: str, world_size: int) -> list[str]:
    zero = config.get("zero_optimization", {})
    faults = []
    if zero.get("stage") != 3:
        faults.append(
            f"zero_optimization.stage is {zero.get('stage')!r}, expected 3: checkpoints and export rely on it"
        )
    if "sequence_parallel_size" in config or "data_parallel_size" in config:
        faults.append(
            "sequence_parallel_size is set, but Ulysses would cut packed sequences between ranks, which attention and "
            "the classification position do not know; for long documents raise train.micro_batch_tokens with "
            "train.activation_checkpointing instead"
        )
    secondary = zero.get("zero_hpz_partition_size", 1)
    if world_size % secondary:
        faults.append(
            f"zero_hpz_partition_size is {secondary}, which does not divide the {world_size} ranks; set it to the GPUs "
            "of a node"
        )
    for section, owner in (("optimizer", "optim"), ("scheduler", "optim")):
        if section in config:
            faults.append(f"it has a section {section!r}, which the settings own; remove it and set `{owner}` instead")
    offloaded = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    if zero.get("offload_optimizer", {}).get("device") == "nvme":
        faults.append(
            "offload_optimizer is nvme, whose state DeepSpeed leaves out of the checkpoint's files: it could be "
            "neither verified nor exported; set it to cpu (offload_param may be nvme, as in ds_configs/zero3_nvme.json)"
        )
    traits = OPTIMIZERS[optimizer]
    if traits.runs_on_host and not offloaded:
        faults.append(
            f"optim.name is {optimizer}, but offload_optimizer is not set; use ds_configs/zero3_offload.json, or adamw"
        )
    if offloaded and not traits.state_moves:
        faults.append(
            f"optim.name is {optimizer}, whose state cannot be offloaded; drop offload_optimizer, or use adamw"
        )
    elif offloaded and not traits.runs_on_host and config.get("zero_force_ds_cpu_optimizer", True):
        faults.append(
            f"optim.name is {optimizer} with offload_optimizer; set zero_force_ds_cpu_optimizer to false, or use "
            "cpu_adamw"
        )
    return faults
