"""Opens a backbone, adds the classification head, and decides which parameters learn.

Under ZeRO-3 (an ``HfDeepSpeedConfig`` alive) transformers builds the model inside ``zero.Init``: each parameter is
partitioned as it is made, and weights are read from memory-mapped safetensors on rank 0 and scattered module by
module. No rank ever holds the whole model; ``tests/dist`` measures it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clsgen_dist.data.encode import Encoder
from clsgen_dist.errors import ModelError
from clsgen_dist.model import smollm2
from clsgen_dist.model.attention import per_sequence, refuse_unpackable
from clsgen_dist.model.dual_head import ClassificationHead, DualHeadModel

_DEMO = f"demo:{smollm2.NAME}"


def backbone_path(name: str) -> str:
    """A folder or hub id for ``from_pretrained``; turns the embedded backbone's name into its folder."""
    if name == _DEMO:
        return str(smollm2.smollm2_folder())
    if name.startswith("demo:"):
        raise ModelError(f"model.backbone {name!r} is not known; the embedded backbone is {_DEMO!r}")
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not (Path(name).expanduser() / "config.json").is_file():
        raise ModelError(f"model.backbone {name!r} is no folder with a config.json; check the path")
    return str(Path(name).expanduser()) if looks_local or Path(name).is_dir() else name


def load_tokenizer(path: str) -> Any:
    """The backbone's tokenizer; ModelError if there is none to be had."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path!r} has no tokenizer that can be read here ({str(error).splitlines()[0]}); name a folder with the "
            "model's files, or a hub id that this machine reaches or has in its cache, with --model.backbone "
            "(clsgen data check: --tokenizer)"
        ) from error


def choose_attention(wanted: str, *, on_gpu: bool, packed: bool = False) -> str:
    """The attention kernel for ``attn_implementation``; ModelError if the one asked for is not there.

    ``packed``: for packed sequences, on which SDPA runs once per sequence.
    """
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    there = {
        "flash_attention_3": on_gpu and is_flash_attn_3_available(),
        "flash_attention_2": on_gpu and is_flash_attn_2_available(),
        "sdpa": True,
        "eager": True,
    }
    if wanted == "auto":
        wanted = next(name for name, available in there.items() if available)
    if not there[wanted]:
        raise ModelError(
            f"model.attention is {wanted!r}, which needs a GPU and the flash-attn package (pip install '.[gpu]'); "
            "use model.attention=auto"
        )
    return per_sequence() if packed and wanted == "sdpa" else wanted


def load_backbone(
    path: str, *, dtype: torch.dtype, attention: str = "sdpa", load_in_4bit: bool = False, weights: bool = True
) -> nn.Module:
    """An ``AutoModelForCausalLM``; partitioned as it loads when ZeRO-3 is on. Without ``weights`` it is just built."""
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig

    lm: nn.Module
    if not weights:
        config = AutoConfig.from_pretrained(path)
        lm = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        refuse_changed_logits(lm)
        return lm
    # Its own might be one that transformers refuses, and nothing is generated here.
    options: dict[str, Any] = {"generation_config": GenerationConfig()}
    if load_in_4bit:
        if not torch.cuda.is_available():
            raise ModelError("model.load_in_4bit needs CUDA, and there is none here; set it to false")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            # Shards of quantised weights must look like the other parameters to ZeRO-3.
            bnb_4bit_quant_storage=dtype,
        )
    lm = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=attention, **options)
    refuse_changed_logits(lm)
    return lm


def refuse_changed_logits(lm: Any) -> None:
    """ModelError if the LM's logits are not just ``hidden @ weight.T``: the loss would train another model."""
    config = lm.config.get_text_config()
    changes = {
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "logit_scale": None if getattr(config, "logit_scale", None) == 1 else getattr(config, "logit_scale", None),
        "logits_scaling": None if getattr(config, "logits_scaling", 1) == 1 else config.logits_scaling,
        "lm_head.bias": getattr(lm.get_output_embeddings(), "bias", None) is not None or None,
    }
    found = {name: value for name, value in changes.items() if value is not None}
    if found:
        raise ModelError(
            f"{type(lm).__name__} changes its logits after the LM head ({found}), which the loss does not do yet; "
            "use a backbone whose logits are hidden states times the output embedding (Llama, Qwen, Mistral, Gemma 3 …)"
        )


def build_model(
    lm: nn.Module,
    *,
    classes: int,
    label_tokens: Sequence[int] | None,
    finetune: str,
    top_layers: int | None,
    lora_rank: int,
    lora_alpha: int,
    lora_dropout: float,
    head_dropout: float,
    loss_impl: str,
    seed: int,
) -> DualHeadModel:
    """The dual-head model with its trainable parameters chosen.

    ``finetune``: ``"full"`` all weights, ``"lora"`` adapters on every linear layer, ``"head"`` the head alone. With
    ``top_layers`` only that many upper layers (and the final norm, for ``"full"``) learn; embeddings stay frozen then.
    The head starts at the LM head's rows of ``label_tokens``, one a class, so that from the first step both heads ask
    the same of the classification token's state; or at zero, for None. New weights are drawn from ``seed`` alike on
    every rank.
    """
    refuse_unpackable(lm)
    torch.manual_seed(seed)
    lm.requires_grad_(finetune == "full" and top_layers is None)
    stack_name, layers = _layer_stack(lm)
    if top_layers is not None and top_layers > len(layers):
        raise ModelError(f"model.top_layers is {top_layers}, but the backbone has {len(layers)} layers; lower it")
    chosen = list(range(len(layers) - (top_layers or len(layers)), len(layers)))
    if finetune == "lora":
        _inject_lora(lm, layers, stack_name, chosen, lora_rank, lora_alpha, lora_dropout)
    elif finetune == "full" and top_layers is not None:
        for index in chosen:
            layers[index].requires_grad_(True)
        for parameter in _after(lm.base_model, layers):  # type: ignore[arg-type]
            parameter.requires_grad_(True)
    head = ClassificationHead(_head_start(lm, classes, label_tokens), head_dropout)
    return DualHeadModel(lm, head, loss_impl)


def label_start_tokens(encoder: Encoder, labels: Sequence[str]) -> list[int] | None:
    """The token with which each label's name begins a sentence; None if two labels begin alike."""
    tokens = [ids[0] for ids in encoder.explanations([name[:1].upper() + name[1:] for name in labels])]
    return tokens if len(set(tokens)) == len(tokens) else None


def _head_start(lm: Any, classes: int, label_tokens: Sequence[int] | None) -> torch.Tensor:
    """``[C, D]`` where the head starts."""
    if label_tokens is None:
        return torch.zeros(classes, lm.config.get_text_config().hidden_size)
    weight_VD = lm.get_output_embeddings().weight
    with gathered([weight_VD]):
        return weight_VD.detach()[list(label_tokens)].float()


@contextlib.contextmanager
def gathered(parameters: list[nn.Parameter]) -> Iterator[None]:
    """The parameters whole, for reading, where ZeRO-3 has partitioned them; collective."""
    if not any(hasattr(p, "ds_id") for p in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        yield


def _layer_stack(lm: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder layers: the longest ModuleList of the backbone."""
    stacks = [(name, m) for name, m in lm.named_modules() if isinstance(m, nn.ModuleList)]
    if not stacks:
        raise ModelError(f"{type(lm).__name__} has no list of layers; only layered decoders can be trained here")
    return max(stacks, key=lambda item: len(item[1]))


def set_zero3_units(dual_head: DualHeadModel) -> None:
    """Tell ZeRO-3 what to gather together; before the engine is made.

    A decoder layer is one unit: otherwise each linear map is, and LoRA makes five modules of each. The first layer that
    learns stays as it is where nothing below it learns: its input carries no gradient, and DeepSpeed then takes its
    gradients for final before they are there. The LM and classification weights, which the loss reads outside their
    own modules, belong to the whole model.
    """
    from deepspeed import zero
    from deepspeed.utils import set_z3_leaf_module

    _, layers = _layer_stack(dual_head.lm)
    learns = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
    for index, layer in enumerate(layers):
        set_z3_leaf_module(layer, not learns[index] or any(learns[:index]))
    lm: Any = dual_head.lm
    for parameter in (lm.get_output_embeddings().weight, *dual_head.classification_head.parameters()):
        zero.register_external_parameter(dual_head, parameter)


def _after(backbone: nn.Module, layers: nn.ModuleList) -> list[nn.Parameter]:
    """Parameters of the backbone's own modules that come after its layers: the final norm."""
    children = list(backbone.children())
    place = next(i for i, child in enumerate(children) if child is layers)
    return [p for child in children[place + 1 :] for p in child.parameters()]


def _inject_lora(
    lm: nn.Module, layers: nn.ModuleList, stack_name: str, chosen: list[int], rank: int, alpha: int, dropout: float
) -> None:
    """LoRA on every linear layer of the chosen decoder layers; the LM head and embeddings stay as they are."""
    from peft import LoraConfig, inject_adapter_in_model

    linear = {name for index in chosen for name, m in layers[index].named_modules() if _is_linear(m)}
    pattern = (
        rf"{re.escape(stack_name)}\.({'|'.join(map(str, chosen))})\.({'|'.join(re.escape(n) for n in sorted(linear))})"
    )
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=pattern, task_type="CAUSAL_LM", bias="none"
    )
    inject_adapter_in_model(config, lm)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ in ("Linear4bit", "Linear8bitLt", "Conv1D")
