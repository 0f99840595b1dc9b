"""The dual-head model on torch's meta device: the code that trains builds it, without weights or memory.

Backbones whose cost depends on the data (mixture of experts) or on kernels that a plan does not know (linear attention)
are refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from clsgen_dist.config import ModelSettings
from clsgen_dist.errors import ModelError
from clsgen_dist.model import families
from clsgen_dist.model.backbone import build_model
from clsgen_dist.model.classification_head import HeadSpec
from clsgen_dist.model.dual_head import DualHeadModel, LossSpec
from clsgen_dist.model.sharded_lm_head import ShardedLMHead, head_parameter
from clsgen_dist.objectives.term import Term
from clsgen_dist.plan import attention_shapes
from clsgen_dist.plan.equal_ranks import MetaRanks

Attention = Literal["flash", "sdpa", "eager"]
"""One kernel over all packed sequences; one per sequence; one per sequence that materializes all scores."""

_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention"}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The settings that decide what the model is."""

    backbone: str
    """A folder or hub id with a config.json; weights are not needed."""
    classes: int
    finetune: str
    top_layers: int | None
    lora_rank: int
    lora_alpha: int
    lora_dropout: float
    head_dropout: float
    load_in_4bit: bool
    bf16: bool

    @classmethod
    def from_settings(cls, model: ModelSettings, *, backbone: str, classes: int, bf16: bool) -> ModelSpec:
        """The fields that ``model`` has, with the backbone's resolved folder or hub id."""
        names = {field.name for field in dataclasses.fields(cls)} & set(vars(model))
        return cls(
            **{name: getattr(model, name) for name in names} | {"backbone": backbone}, classes=classes, bf16=bf16
        )


def open_config(path: str) -> Any:
    """The backbone's configuration; ModelError if it cannot be trained, or its layers cannot be planned."""
    with _as_model_error(f"model.backbone {path!r} has no configuration that transformers can read"):
        config = families.open_config(path)
    text = config.get_text_config()
    if not (getattr(text, "num_hidden_layers", None) or 0) > 0:
        raise ModelError(f"model.backbone {path!r} has num_hidden_layers 0 or none, expected 1 or more in config.json")
    experts = next(
        (n for key in ("num_local_experts", "num_experts", "n_routed_experts") if (n := getattr(text, key, None))), 0
    )
    if experts > 1:
        raise ModelError(
            f"model.backbone {path!r} routes tokens to {experts} experts: how many tokens reach each one depends on "
            "the data, which a plan cannot know; use a dense backbone"
        )
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or []
    if others := sorted({*map(str, kinds)} - _ATTENTION_LAYERS):
        raise ModelError(
            f"model.backbone {path!r} has {', '.join(others)} layers: their cost depends on kernels that a plan does "
            "not know; use a backbone with attention layers only"
        )
    return config


@contextlib.contextmanager
def _as_model_error(message: str) -> Iterator[None]:
    """Turn what transformers raises into a ModelError of one line: each family raises types of its own."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{message}: {textwrap.shorten(f'{type(error).__name__}: {error}', 240)}") from error


def attention_on_gpu(setting: str) -> Attention:
    """The implementation that ``model.attention`` selects on a GPU."""
    return "sdpa" if setting == "sdpa" else "eager" if setting == "eager" else "flash"


def meta_lm(config: Any, path: str, **options: Any) -> Any:
    """The causal LM of a configuration on the meta device; ModelError if transformers cannot build it."""
    from transformers import AutoModelForCausalLM

    with (
        torch.device("meta"),
        _as_model_error(f"model.backbone {path!r} has a configuration that transformers cannot build"),
    ):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)


def meta_model(
    spec: ModelSpec,
    attention: Attention,
    terms: tuple[Term, ...] = (),
    head_ranks: int = 0,
    *,
    stores_logits: bool = True,
) -> DualHeadModel:
    """The dual-head model that training would build, on the meta device.

    Args:
        spec: the model.
        attention: its implementation.
        terms: of the loss, besides those of the two heads.
        head_ranks: over how many ranks the LM head stays sharded; 0: it is gathered.
        stores_logits: in the LM head's gradient, as far as it holds them.
    """
    config = open_config(spec.backbone)
    dtype = torch.bfloat16 if spec.bf16 else torch.float32
    register = {
        "flash": attention_shapes.register_packed,
        "sdpa": attention_shapes.register_per_sequence,
        "eager": attention_shapes.register_eager,
    }[attention]
    lm = meta_lm(config, spec.backbone, dtype=dtype, attn_implementation=register())
    with torch.device("meta"):
        model = build_model(
            lm,
            head=HeadSpec(spec.classes, dropout=spec.head_dropout),
            losses=LossSpec("torch", terms=terms, store_bytes=int(stores_logits)),
            finetune=spec.finetune,
            top_layers=spec.top_layers,
            lora_rank=spec.lora_rank,
            lora_alpha=spec.lora_alpha,
            lora_dropout=spec.lora_dropout,
        ).to(dtype)
        if head_ranks:
            _shard_head(model, head_ranks)
        return model


def _shard_head(model: DualHeadModel, ranks: int) -> None:
    """Partition the LM head as ZeRO-3 does, and let the losses take it in shards."""
    weight = head_parameter(model.lm)
    size = -(-weight.numel() // ranks)
    weight.ds_shape, weight.ds_tensor = weight.shape, weight.new_empty(size)
    weight.ds_tensor.ds_numel = size
    model.lm_head = ShardedLMHead(model.lm, MetaRanks(ranks), lambda _: None, weight.device)
