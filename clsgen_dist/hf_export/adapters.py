"""An export that leaves out the backbone's weights: LoRA adapters in peft's own format, beside the classification head.

    adapter_config.json            rank, alpha, adapted modules, and where the base is (base_model_name_or_path)
    adapter_model.safetensors      A [r, in] and B [out, r] of each module, fp32, as they were trained

peft opens the folder on the base. Here they are merged in memory, which gives the weights of a merged export to the
last bit. Adapters on another base would compute something else in silence, so the base's fingerprint is in
``clsgen.json`` and compared at every load.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clsgen_dist.errors import ModelError, first_line
from clsgen_dist.hf_export.artifact import ModelCard
from clsgen_dist.hf_export.merge import with_adapters
from clsgen_dist.model.backbone import Backbone, backbone_path, open_backbone
from clsgen_dist.model.settings import ModelSettings

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def peft_tensors(trained: Mapping[str, Any]) -> dict[str, Tensor]:
    """The trained adapters, fp32, by peft's names."""
    return {
        f"{_PREFIX}{name.replace('.default.', '.')}": tensor.contiguous().detach().float()
        for name, tensor in trained.items()
        if ".lora_" in name
    }


def write_adapters(folder: Path, base: Backbone, trained: Mapping[str, Any], model: ModelSettings) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        ModelError: peft would not find the modules again that were trained.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    tensors = peft_tensors(trained)
    adapted = [name.removeprefix(_PREFIX).removesuffix(_DOWN) for name in tensors if name.endswith(_DOWN)]
    name = backbone_path(model.backbone)
    LoraConfig(
        base_model_name_or_path=str(Path(name).resolve()) if Path(name).is_dir() else name,
        r=model.lora_rank,
        lora_alpha=model.lora_alpha,
        lora_dropout=model.lora_dropout,
        target_modules=_target_modules(base.meta, adapted),
        fan_in_fan_out=type(base.meta.get_submodule(adapted[0])).__name__ == "Conv1D",
        bias="none",
        task_type="CAUSAL_LM",
        inference_mode=True,
    ).save_pretrained(str(folder))
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    _require_same_modules(folder, base, tensors)


def _target_modules(lm: Any, adapted: list[str]) -> list[str]:
    """The modules' last names, as peft's users write them; their full names where others have the same last name."""
    last = {name.rpartition(".")[2] for name in adapted}
    others = {name for name, _ in lm.named_modules()} - set(adapted)
    return sorted(adapted if any(name.rpartition(".")[2] in last for name in others) else last)


def _require_same_modules(folder: Path, base: Backbone, tensors: Mapping[str, Tensor]) -> None:
    """ModelError unless peft puts adapters of these names and shapes on the base; on the meta device.

    In some architectures it takes names of linear layers for those of experts.
    """
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    lm = open_backbone(base.path, weights=False).meta
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        with torch.device("meta"):
            model = get_peft_model(lm, LoraConfig.from_pretrained(str(folder)))
        found = get_peft_model_state_dict(model, save_embedding_layers=False)
        differing = sorted(dict(shapes.items() ^ {name: tuple(t.shape) for name, t in found.items()}.items()))
        reason = differing and f"{len(differing)} names or shapes differ, first {differing[0]}"
    except ValueError as error:
        reason = first_line(error)
    if reason:
        raise ModelError(
            f"peft would not put the adapters of {type(lm).__name__} where they were trained ({reason}); export with "
            "--merge true"
        )


def base_name(folder: Path) -> str:
    """Folder or hub id of the base, by ``adapter_config.json``; ModelError if there is none."""
    try:
        return str(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{folder / CONFIG_FILE} cannot be read ({first_line(error)}); copy the folder again, or export again"
        ) from None


def open_export(folder: Path, card: ModelCard) -> Backbone:
    """What to load the causal LM of an exported folder from: the folder itself, or the base of its adapters.

    Raises:
        ModelError: the base is not there, or is another model than the adapters were trained on.
    """
    if card.base_fingerprint is None:
        return open_backbone(str(folder), weights=False)
    name = base_name(folder)
    remedy = f"name its folder as base_model_name_or_path in {folder / CONFIG_FILE}, or export with --merge true"
    try:
        base = open_backbone(backbone_path(name, "base_model_name_or_path"))
    except ModelError as error:
        raise ModelError(f"{folder} has adapters without their base ({first_line(error)}); {remedy}") from error
    assert base.weights is not None
    if base.weights.fingerprint() != card.base_fingerprint:
        raise ModelError(f"{folder} has adapters for other weights than those of {name}; {remedy}")
    return base


@torch.no_grad()
def merge_adapters(lm: Any, folder: Path) -> None:
    """Add the adapters of a folder to the weights of their base, in memory; ModelError if a file is missing."""
    from safetensors.torch import load_file

    if not (folder / WEIGHTS_FILE).is_file():
        raise ModelError(f"{folder / WEIGHTS_FILE} is missing; copy the folder again, or export again")
    fields = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    tensors = load_file(folder / WEIGHTS_FILE)
    for name in (name for name in tensors if name.endswith(_DOWN)):
        path = name.removesuffix(_DOWN)
        module = lm.get_submodule(path.removeprefix(_PREFIX))
        scale = fields["lora_alpha"] / fields["r"]
        module.weight.copy_(with_adapters(module.weight, tensors[name], tensors[path + _UP], scale, module))
