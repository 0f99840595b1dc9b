"""LoRA adapters on the backbone's linear layers, by peft; and the backbone without them.

Adapters are switched off by a scale of 0, not by skipping them: under ZeRO-3 the same modules then run in the same
order, so that what prefetches their weights is not confused.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes what it would without its adapters."""
    from peft.tuners.lora import LoraLayer

    scaled = [(m.scaling, dict(m.scaling)) for m in model.modules() if isinstance(m, LoraLayer)]
    try:
        for scaling, values in scaled:
            scaling.update(dict.fromkeys(values, 0.0))
        yield
    finally:
        for scaling, values in scaled:
            scaling.update(values)


def inject_lora(layers: nn.ModuleList, chosen: list[int], rank: int, alpha: int, dropout: float) -> None:
    """LoRA on every linear layer of the chosen decoder layers; the LM head and embeddings are not adapted.

    Nor are experts stacked into one tensor, which are not linear layers. peft gets the layers without the model, since
    it would otherwise map names of other linear layers to those of experts.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = [f"{index}.{name}" for index in chosen for name, m in layers[index].named_modules() if _is_linear(m)]
    names = [name for name in names if not _is_read_by_fused_kernel(layers, name)]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="|".join(map(re.escape, names)),
        bias="none",
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in layers[chosen[0]].modules()),
    )
    inject_adapter_in_model(config, layers)


def _is_read_by_fused_kernel(layers: nn.ModuleList, name: str) -> bool:
    """Whether it is a state-space mixer's output projection, whose weight a fused kernel reads without a call."""
    parent = layers.get_submodule(name.rpartition(".")[0])
    return name.endswith(".out_proj") and all(hasattr(parent, part) for part in ("A_log", "D", "conv1d"))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ in ("Linear4bit", "Linear8bitLt", "Conv1D")
