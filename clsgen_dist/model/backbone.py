"""Opens a backbone, adds the classification head, and decides which parameters learn.

Under ZeRO-3 (an ``HfDeepSpeedConfig`` alive) transformers builds the model inside ``zero.Init``: each parameter is
partitioned as it is made, and weights are read from memory-mapped safetensors on rank 0 and scattered module by
module. No rank ever holds the whole model; ``tests/dist`` measures it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clsgen_dist.data.encode import Encoder
from clsgen_dist.errors import ModelError
from clsgen_dist.model import smollm2
from clsgen_dist.model.attention import per_sequence, takes_any_attention
from clsgen_dist.model.dual_head import ClassificationHead, DualHeadModel
from clsgen_dist.model.families import open_config
from clsgen_dist.model.weight_files import WeightFiles, WeightMap

_DEMO = f"demo:{smollm2.NAME}"


@dataclass(frozen=True)
class Backbone:
    """A backbone that can be trained and exported, before its weights are read."""

    path: str
    """Its folder."""
    config: Any
    meta: Any
    """The model without memory."""
    weights: WeightMap | None
    """Where its files' tensors go; None for one that is only built from its configuration."""

    @property
    def unties(self) -> bool:
        """Whether the files hold a head of its own that the configuration calls tied to the embedding."""
        return self.weights is not None and _ties(self.config) != _ties(open_config(self.path))


def backbone_path(name: str) -> str:
    """A folder or hub id for ``from_pretrained``; turns the embedded backbone's name into its folder."""
    if name == _DEMO:
        return str(smollm2.smollm2_folder())
    if name.startswith("demo:"):
        raise ModelError(f"model.backbone {name!r} is not known; the embedded backbone is {_DEMO!r}")
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    folder = Path(name).expanduser()
    if looks_local and not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
        raise ModelError(f"model.backbone {name!r} is no folder with a config.json; check the path")
    return str(Path(name).expanduser()) if looks_local or Path(name).is_dir() else name


def open_backbone(path: str, *, weights: bool = True) -> Backbone:
    """Look at a backbone before anything is read or trained: can it learn here, is it whole, can it be exported?

    Not while ZeRO-3's configuration is alive, which would partition the model that is only looked at.

    Raises:
        ModelError: no causal language model of transformers' own; weights that are missing or of another model.
    """
    config = open_config(path)
    if not weights:
        lm = _meta_model(config)
        refuse_changed_logits(lm)
        return Backbone(path, config, lm, None)
    files = WeightFiles(_local_folder(path))
    found = WeightMap(files, _meta_model(config))
    if differing := found.differing_ties():
        # transformers would tie them under ZeRO-3, where it compares two empty shards, and drop one without a word.
        _untie(config)
        found = WeightMap(files, _meta_model(config))
        if still := found.differing_ties():
            raise ModelError(
                f"{path}: {' and '.join(still[0])} are one weight by the configuration and two in the files "
                f"({len(differing)} such pairs); fix config.json"
            )
    refuse_changed_logits(found.lm)
    found.require_complete()
    return Backbone(str(files.folder), config, found.lm, found)


def _meta_model(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        try:
            return AutoModelForCausalLM.from_config(config)
        except (ValueError, ImportError, TypeError, AttributeError, KeyError, RuntimeError) as error:
            raise ModelError(
                f"transformers cannot build {config.model_type!r} from its configuration here: "
                f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
            ) from error


def _ties(config: Any) -> bool:
    return bool(config.get_text_config(decoder=True).tie_word_embeddings)


def _untie(config: Any) -> None:
    for part in {id(c): c for c in (config, config.get_text_config(decoder=True))}.values():
        part.tie_word_embeddings = False


def _local_folder(name: str) -> Path:
    """The folder of a hub id, fetched if need be; safetensors where there are any."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_SMALL_FILES, "model*.safetensors"]))
        if not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_SMALL_FILES, "pytorch_model*.bin"]))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.backbone {name!r} cannot be fetched ({str(error).splitlines()[0]}); name a folder, or a hub id "
            "that this machine reaches or has in its cache"
        ) from error
    return folder


_SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "LICENSE*", "NOTICE*"]


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


def choose_attention(wanted: str, *, on_gpu: bool, packed: bool = False, lm: Any = None) -> str:
    """The attention kernel for ``attn_implementation``; ModelError if the one asked for is not there.

    ``packed``: for packed sequences, on which SDPA runs once per sequence. ``lm``: the model (on meta, say) whose
    family must know the kernel; not every family does.
    """
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    flash = lm is None or getattr(lm, "_supports_flash_attn", False)
    installed = {
        "flash_attention_3": on_gpu and is_flash_attn_3_available(),
        "flash_attention_2": on_gpu and is_flash_attn_2_available(),
    }
    there = {
        **{name: found and flash for name, found in installed.items()},
        "sdpa": lm is None or getattr(lm, "_supports_sdpa", False) or takes_any_attention(lm),
        "eager": True,
    }
    if wanted == "auto":
        wanted = next(name for name, available in there.items() if available)
    if not there[wanted]:
        why = (
            f"which {type(lm).__name__} does not have"
            if wanted == "sdpa" or installed[wanted]
            else "which needs a GPU and the flash-attn package (pip install '.[gpu]')"
        )
        raise ModelError(f"model.attention is {wanted!r}, {why}; use model.attention=auto")
    return per_sequence() if packed and wanted == "sdpa" and (lm is None or takes_any_attention(lm)) else wanted


def load_backbone(backbone: Backbone, *, dtype: torch.dtype, attention: str, load_in_4bit: bool = False) -> nn.Module:
    """The causal LM with its weights, partitioned as it loads when ZeRO-3 is on; just built where there are none."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig

    if backbone.weights is None:
        built: nn.Module = AutoModelForCausalLM.from_config(backbone.config, dtype=dtype, attn_implementation=attention)
        return built
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
    lm: nn.Module = AutoModelForCausalLM.from_pretrained(
        backbone.path, config=backbone.config, dtype=dtype, attn_implementation=attention, **options
    )
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
    torch.manual_seed(seed)
    lm.requires_grad_(finetune == "full" and top_layers is None)
    stack_name, layers = _layer_stack(lm)
    if top_layers is not None and top_layers > len(layers):
        raise ModelError(f"model.top_layers is {top_layers}, but the backbone has {len(layers)} layers; lower it")
    chosen = list(range(len(layers) - (top_layers or len(layers)), len(layers)))
    if finetune == "lora":
        _inject_lora(layers, chosen, lora_rank, lora_alpha, lora_dropout)
    elif finetune == "full" and top_layers is not None:
        for index in chosen:
            layers[index].requires_grad_(True)
        for parameter in _final_norm(lm, stack_name):
            parameter.requires_grad_(True)
    head = ClassificationHead(_head_start(lm, classes, label_tokens), head_dropout)
    return DualHeadModel(lm, head, loss_impl)


def label_start_tokens(encoder: Encoder, labels: Sequence[str]) -> list[int] | None:
    """The token with which each label's name begins a sentence; None if two labels begin alike."""
    tokens = [ids[0] for ids in encoder.explanations([name[:1].upper() + name[1:] for name in labels])]
    return tokens if len(set(tokens)) == len(tokens) else None


def _head_start(lm: Any, classes: int, label_tokens: Sequence[int] | None) -> torch.Tensor:
    """``[C, D]`` where the head starts."""
    weight_VD = lm.get_output_embeddings().weight
    if label_tokens is None:
        return torch.zeros(classes, getattr(weight_VD, "ds_shape", weight_VD.shape)[1])
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


def _layer_stack(lm: Any) -> tuple[str, nn.ModuleList]:
    """Name and list of the text decoder's layers: of its ModuleLists the one as long as the configuration says."""
    decoder = lm.get_decoder()
    prefix = next((f"{name}." for name, module in lm.named_modules() if module is decoder and name), "")
    stacks = [(prefix + name, m) for name, m in decoder.named_modules() if isinstance(m, nn.ModuleList)]
    if not stacks:
        raise ModelError(f"{type(lm).__name__} has no list of layers; only layered decoders can be trained here")
    layers = getattr(lm.config.get_text_config(decoder=True), "num_hidden_layers", None)
    return max(stacks, key=lambda item: (len(item[1]) == layers, len(item[1])))


def checkpoint_activations(lm: Any) -> None:
    """Recompute activations in the backward pass, in the layers that have one.

    transformers turns checkpointing on in every layer and makes the embeddings' output require a gradient; frozen
    layers below the first that learns would then run forward twice and backward once, for nothing.
    """
    lm.activation_checkpointing_enable({"use_reentrant": False})
    lm.disable_input_require_grads()
    _, layers = _layer_stack(lm)
    embedded = any(p.requires_grad for p in lm.get_input_embeddings().parameters())
    for index, layer in enumerate(layers):
        if embedded or any(p.requires_grad for earlier in layers[: index + 1] for p in earlier.parameters()):
            break
        for module in layer.modules():
            if hasattr(module, "gradient_checkpointing"):
                setattr(module, "gradient_checkpointing", False)  # noqa: B010 (mypy takes it for a submodule)


def require_finite(model: nn.Module, world: Any) -> None:
    """ModelError naming the parameters that hold NaN or infinity; collective over the ranks of ``world``."""
    found = []
    for name, parameter in model.named_parameters():
        values = getattr(parameter, "ds_tensor", parameter)
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            found.append(name.removeprefix("lm."))
    names = sorted({name for part in world.gather(found) for name in part})
    if names:
        raise ModelError(
            f"the backbone's weights hold NaN or infinity: {', '.join(names[:3])}"
            + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            + "; fetch or convert it again"
        )


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


def _final_norm(lm: nn.Module, stack_name: str) -> list[nn.Parameter]:
    """Parameters of what the decoder does after its layers, declared after them or (OPT) called final."""
    parent, _, stack = stack_name.rpartition(".")
    children = list(lm.get_submodule(parent).named_children())
    place = next(i for i, (name, _) in enumerate(children) if name == stack)
    after = [m for i, (name, m) in enumerate(children) if i > place or name.startswith("final")]
    return [p for module in after for p in module.parameters()]


def _inject_lora(layers: nn.ModuleList, chosen: list[int], rank: int, alpha: int, dropout: float) -> None:
    """LoRA on every linear layer of the chosen decoder layers; the LM head and embeddings stay as they are.

    Experts that are stacked into one tensor are no linear layers: they stay as they are too. peft is given the layers
    without the model, as it would otherwise turn names of other linear layers into those of experts.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = [f"{index}.{name}" for index in chosen for name, m in layers[index].named_modules() if _is_linear(m)]
    names = [name for name in names if not _read_raw(layers, name)]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="|".join(map(re.escape, names)),
        bias="none",
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in layers[chosen[0]].modules()),
    )
    inject_adapter_in_model(config, layers)


def _read_raw(layers: nn.ModuleList, name: str) -> bool:
    """Whether a layer is a state-space mixer's output map, whose weight a fused kernel reads without calling it."""
    parent = layers.get_submodule(name.rpartition(".")[0])
    return name.endswith(".out_proj") and all(hasattr(parent, part) for part in ("A_log", "D", "conv1d"))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ in ("Linear4bit", "Linear8bitLt", "Conv1D")
