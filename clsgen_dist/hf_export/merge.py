"""The trained weights, written in the layout of the base's files.

The base's tensors are streamed group by group (:mod:`clsgen_dist.model.weight_files`). A trained parameter replaces the
base's, a LoRA update is added to it (``W + (alpha/r)·B A``, in fp32), and frozen tensors are copied byte by byte. With
an interpolation λ below 1, a trained weight is ``W + λ (W' - W)``: part of the way back to the base, which keeps more
of its language (Wortsman et al. 2022, WiSE-FT).
Trained tensors are assembled from the memory-mapped ZeRO shards one at a time.

Cost: memory for one output shard and one group.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clsgen_dist.model.weight_files import Group, WeightMap


def trained_tensors(source: Path) -> dict[str, Any]:
    """Trained parameters by name; each is assembled from the ZeRO shards only when ``contiguous()`` is called."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
        tensors: dict[str, Any] = get_fp32_state_dict_from_zero_checkpoint(
            str(source.parent), tag=source.name, exclude_frozen_parameters=True, lazy_mode=True
        )
    return tensors


class Merge:
    """Applies trained tensors to those of the base.

    Args:
        trained: tensors by the LM's parameter names.
        base: the base's files.
        scale: alpha / rank of LoRA.
        interpolation: share of the way from the base's weights to the trained ones.

    Raises:
        ModelError: a trained tensor matches no tensor of the base.
    """

    def __init__(self, trained: dict[str, Any], base: WeightMap, scale: float, interpolation: float = 1.0) -> None:
        base.require_exportable(trained)
        self._trained, self._base, self._scale, self._interpolation = trained, base, scale, interpolation

    def groups(self) -> list[Group]:
        """Groups to write, in the files' order; a tied weight is written once."""
        return [group for group in self._base.groups if not self._base.repeats(group)]

    def tensors(self, group: Group) -> dict[str, Tensor]:
        """A group's tensors after training, by their names in the files, in the base's dtype."""
        base = self._base.files.read(group.names)
        if not any(self._is_trained(name) for name in group.shapes):
            return base
        parameters = self._base.to_parameters(group, base)
        return self._base.to_files(group, {name: self._merged(name, tensor) for name, tensor in parameters.items()})

    def _is_trained(self, name: str) -> bool:
        full, down, _ = self._base.trained_as(name)
        return any(key in self._trained for key in (*full, down))

    def _merged(self, name: str, tensor: Tensor) -> Tensor:
        full, down, up = self._base.trained_as(name)
        for key in full:
            if key in self._trained:
                whole = self._trained_tensor(key)
                return (whole if self._interpolation == 1 else tensor.float().lerp(whole, self._interpolation)).to(
                    tensor.dtype
                )
        if down not in self._trained:
            return tensor
        module = self._base.lm.get_submodule(name.removesuffix(".weight"))
        adapters = self._trained_tensor(down), self._trained_tensor(up)
        return with_adapters(tensor, *adapters, self._interpolation * self._scale, module)

    def _trained_tensor(self, key: str) -> Tensor:
        tensor: Tensor = self._trained[key].contiguous().detach().float()
        return tensor


def with_adapters(weight: Tensor, down_RI: Tensor, up_OR: Tensor, scale: float, module: nn.Module) -> Tensor:
    """The weight of a linear module with a LoRA update, in its dtype; computed in fp32."""
    update = up_OR @ down_RI
    if type(module).__name__ == "Conv1D":
        update = update.T  # GPT-2's linear weights are [in, out]
    return (weight.float() + scale * update).to(weight.dtype)


def write_shards(folder: Path, base: WeightMap, merge: Merge, max_shard_bytes: int) -> None:
    """Write the merged weights as ``model*.safetensors`` of at most ``max_shard_bytes``, unless one group is larger."""
    from safetensors.torch import save_file

    plan = list(_plan(base, merge.groups(), max_shard_bytes))
    weight_map: dict[str, str] = {}
    total = 0
    for number, groups in enumerate(plan, start=1):
        file = "model.safetensors" if len(plan) == 1 else f"model-{number:05d}-of-{len(plan):05d}.safetensors"
        shard: dict[str, Tensor] = {}
        for group in groups:
            tensors = merge.tensors(group) if group.shapes else base.files.read(group.names)
            shard |= {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
        total += sum(t.numel() * t.element_size() for t in shard.values())
    if len(plan) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _plan(base: WeightMap, groups: list[Group], max_shard_bytes: int) -> Iterator[list[Group]]:
    """Groups of each output shard, including tensors that no parameter uses, which are copied."""
    shard: list[Group] = []
    shard_bytes = 0
    for group in [*groups, *(Group(name, {name: None}) for name in base.unused)]:
        size = sum(base.files.size(name) for name in group.names)
        if shard and shard_bytes + size > max_shard_bytes:
            yield shard
            shard, shard_bytes = [], 0
        shard.append(group)
        shard_bytes += size
    yield shard
