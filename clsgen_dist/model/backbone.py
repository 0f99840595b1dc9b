"""Opens a backbone, adds the classification head, and selects the trainable parameters.

Under ZeRO-3 (while an ``HfDeepSpeedConfig`` is alive) transformers builds the model in ``zero.Init``: each parameter is
partitioned on creation, and weights are read from memory-mapped safetensors on rank 0 and scattered module by
module. No rank ever holds the full model; ``tests/dist`` measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clsgen_dist.data.encode import Encoder
from clsgen_dist.errors import ModelError, first_line
from clsgen_dist.model import smollm2
from clsgen_dist.model.adapters import inject_lora
from clsgen_dist.model.classification_head import ClassificationHead, HeadSpec
from clsgen_dist.model.dual_head import DualHeadModel, LossSpec
from clsgen_dist.model.families import open_config
from clsgen_dist.model.lm_head import LMHead, LogitTransform
from clsgen_dist.model.sharded_lm_head import gathered, head_parameter
from clsgen_dist.model.unsupported import Unsupported, UnsupportedBackboneError
from clsgen_dist.model.weight_files import WeightFiles, WeightMap

_DEMO = f"demo:{smollm2.NAME}"


@dataclass(frozen=True)
class Backbone:
    """A backbone that can be trained and exported, before its weights are loaded."""

    path: str
    """Folder or hub id."""
    config: Any
    meta: Any
    """The model on the meta device."""
    weights: WeightMap | None
    """Maps its files' tensors to parameters; None for a model built from its configuration only."""

    @property
    def unties(self) -> bool:
        """Whether the files have a separate LM head although the configuration ties it to the embedding."""
        return self.weights is not None and _ties(self.config) != _ties(open_config(self.path))


def backbone_path(name: str, setting: str = "model.backbone") -> str:
    """A folder or hub id for ``from_pretrained``; resolves the embedded backbone's name to its folder."""
    if name == _DEMO:
        return str(smollm2.smollm2_folder())
    if name.startswith("demo:"):
        raise ModelError(f"{setting} {name!r} is unknown, expected {_DEMO!r}, the only embedded backbone; fix the name")
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    folder = Path(name).expanduser()
    if looks_local and not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
        raise ModelError(f"{setting} {name!r} is not a folder with a config.json; check the path")
    return str(Path(name).expanduser()) if looks_local or Path(name).is_dir() else name


def open_backbone(path: str, *, weights: bool = True) -> Backbone:
    """Validate a backbone before its weights are loaded: can it be trained, is it complete, can it be exported?

    Call it while no ``HfDeepSpeedConfig`` is alive, which would partition the meta-device model.

    Raises:
        ModelError: not a causal language model built into transformers; weights are missing or of another model.
    """
    config = open_config(path)
    LogitTransform.of(config)
    if not weights:
        return Backbone(path, config, _meta_model(config), None)
    files = WeightFiles(_local_folder(path))
    found = WeightMap(files, _meta_model(config))
    if differing := found.differing_ties():
        # Under ZeRO-3 transformers would compare two empty shards, tie them, and silently drop one.
        _untie(config)
        found = WeightMap(files, _meta_model(config))
        if still := found.differing_ties():
            raise ModelError(
                f"{path}: {' and '.join(still[0])} are tied by the configuration but differ in the files "
                f"({len(differing)} such pairs); fix config.json"
            )
    found.require_complete()
    return Backbone(str(files.folder), config, found.lm, found)


def _meta_model(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        try:
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except (ValueError, ImportError, TypeError, AttributeError, KeyError, RuntimeError) as error:
            raise ModelError(
                f"transformers cannot build {config.model_type!r} from its configuration here: {first_line(error)}"
            ) from error


def _ties(config: Any) -> bool:
    return bool(config.get_text_config(decoder=True).tie_word_embeddings)


def _untie(config: Any) -> None:
    for part in {id(c): c for c in (config, config.get_text_config(decoder=True))}.values():
        part.tie_word_embeddings = False


def _local_folder(name: str) -> Path:
    """The folder of a hub id, downloaded if necessary; prefers safetensors."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_SMALL_FILES, "model*.safetensors"]))
        if not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_SMALL_FILES, "pytorch_model*.bin"]))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.backbone {name!r} cannot be downloaded ({first_line(error)}); name a folder, or a hub id "
            "that this machine reaches or has in its cache"
        ) from error
    return folder


_SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "LICENSE*", "NOTICE*"]


def load_tokenizer(path: str) -> Any:
    """The backbone's tokenizer; ModelError if it cannot be loaded."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path!r} has no tokenizer that can be read here ({first_line(error)}); name a folder with the "
            "model's files, or a hub id that this machine reaches or has in its cache, with --model.backbone "
            "(clsgen data check: --tokenizer)"
        ) from error


def load_backbone(backbone: Backbone, *, dtype: torch.dtype, attention: str, load_in_4bit: bool = False) -> nn.Module:
    """The causal LM with its weights, partitioned while it loads under ZeRO-3; random weights if there are no files."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig

    if backbone.weights is None:
        built: nn.Module = AutoModelForCausalLM.from_config(
            backbone.config, trust_remote_code=False, dtype=dtype, attn_implementation=attention
        )
        return built
    # Not the backbone's, which transformers might refuse: nothing is generated here.
    options: dict[str, Any] = {"generation_config": GenerationConfig()}
    if load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            # ZeRO-3 shards one dtype, so quantised weights must be stored in that of the others.
            bnb_4bit_quant_storage=dtype,
        )
    lm: nn.Module = AutoModelForCausalLM.from_pretrained(
        backbone.path,
        trust_remote_code=False,
        config=backbone.config,
        dtype=dtype,
        attn_implementation=attention,
        **options,
    )
    for module in lm.modules() if load_in_4bit else ():
        # Else bitsandbytes reorders a weight in place at its first use on such a CPU; ZeRO-3 gathers it as it was.
        module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return lm


def build_model(
    lm: nn.Module,
    *,
    head: HeadSpec,
    losses: LossSpec | None = None,
    finetune: str,
    top_layers: int | None = None,
    lora_rank: int = 16,
    lora_alpha: int = 32,
    lora_dropout: float = 0.0,
    seed: int = 0,
) -> DualHeadModel:
    """The dual-head model with its trainable parameters selected.

    Args:
        lm: the causal LM; partitioned or not.
        head: how the classification head starts.
        losses: how they are computed.
        finetune: ``"full"`` all weights, ``"lora"`` adapters on every linear layer, ``"head"`` the head only.
        top_layers: train only this many upper layers, and the final norm for ``"full"``; None: all, and embeddings.
        lora_rank, lora_alpha: the adapters' update has this rank and is multiplied by alpha / rank.
        lora_dropout: share of the adapters' input that is dropped.
        seed: of new weights, which are equal on every rank.

    Raises:
        ModelError: the LM has no list of layers, or fewer than ``top_layers``.
    """
    torch.manual_seed(seed)
    lm.requires_grad_(finetune == "full" and top_layers is None)
    stack_name, layers = layer_stack(lm)
    if top_layers is not None and top_layers > len(layers):
        raise ModelError(f"model.top_layers is {top_layers}, but the backbone has {len(layers)} layers; lower it")
    chosen = list(range(len(layers) - (top_layers or len(layers)), len(layers)))
    if finetune == "lora":
        inject_lora(layers, chosen, lora_rank, lora_alpha, lora_dropout)
    elif finetune == "full" and top_layers is not None:
        for index in chosen:
            layers[index].requires_grad_(True)
        for parameter in _final_norm(lm, stack_name):
            parameter.requires_grad_(True)
    weight = _initial_head_weight(lm, head)
    return DualHeadModel(lm, ClassificationHead(weight, head.dropout, head.initial_bias(), head.kind), losses)


def label_start_tokens(encoder: Encoder, labels: Sequence[str]) -> list[int] | None:
    """The first token of each label's name at the start of a sentence; None if two labels share it."""
    tokens = [ids[0] for ids in encoder.explanations([name[:1].upper() + name[1:] for name in labels])]
    return tokens if len(set(tokens)) == len(tokens) else None


def _initial_head_weight(lm: Any, head: HeadSpec) -> torch.Tensor:
    """Initial weight of the classification head; collective under ZeRO-3."""
    lm_head = LMHead.of(lm)
    weight_VD = lm_head.weight_VD
    width = getattr(weight_VD, "ds_shape", weight_VD.shape)[1]
    if head.label_tokens is None or head.trained is not None:
        return head.initial_weight(None, width)
    with gathered([weight_VD]):
        return head.initial_weight(weight_VD.detach()[list(head.label_tokens)] * lm_head.transform.scale, width)


def layer_stack(lm: Any) -> tuple[str, nn.ModuleList]:
    """Name and list of the text decoder's layers: the ModuleList with as many as the configuration states."""
    decoder = lm.get_decoder()
    prefix = next((f"{name}." for name, module in lm.named_modules() if module is decoder and name), "")
    stacks = [(prefix + name, m) for name, m in decoder.named_modules() if isinstance(m, nn.ModuleList)]
    if not stacks:
        raise UnsupportedBackboneError(
            Unsupported.NO_LAYER_LIST,
            f"{type(lm).__name__} has no ModuleList of layers; use a decoder that has one (Llama, Qwen, Mistral ...)",
        )
    layers = getattr(lm.config.get_text_config(decoder=True), "num_hidden_layers", None)
    return max(stacks, key=lambda item: (len(item[1]) == layers, len(item[1])))


def checkpoint_activations(lm: Any) -> None:
    """Recompute activations in the backward pass, in layers that have one.

    transformers enables checkpointing in every layer and makes the embeddings' output require a gradient; frozen layers
    below the first trainable one would then run forward twice and backward once, to no purpose.
    """
    lm.activation_checkpointing_enable({"use_reentrant": False})
    lm.disable_input_require_grads()
    _, layers = layer_stack(lm)
    embedded = any(p.requires_grad for p in lm.get_input_embeddings().parameters())
    for index, layer in enumerate(layers):
        if embedded or any(p.requires_grad for earlier in layers[: index + 1] for p in earlier.parameters()):
            break
        for module in layer.modules():
            if hasattr(module, "gradient_checkpointing"):
                setattr(module, "gradient_checkpointing", False)  # noqa: B010 (mypy assumes a submodule)


def local_values(parameter: Any, rank: int) -> Tensor:
    """This rank's elements of a parameter, flat if ZeRO-3 has sharded it; the padding of the last shards is not read.

    The padding is memory that nobody has initialised: it may hold NaN. So may 4-bit codes, which are stored in the
    dtype of the other weights: they are returned as bytes.
    """
    shard = getattr(parameter, "ds_tensor", None)
    values: Tensor = parameter.detach()
    if shard is not None:
        values = shard.detach().flatten()[: max(0, parameter.ds_numel - shard.ds_numel * rank)]
    return values if getattr(parameter, "quant_state", None) is None else values.flatten().view(torch.uint8)


def require_finite(model: nn.Module, world: Any) -> None:
    """ModelError naming the parameters with NaN or infinity; collective over the ranks of ``world``."""
    found = []
    for name, parameter in model.named_parameters():
        values = local_values(parameter, world.rank)
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            found.append(name.removeprefix("lm."))
    names = sorted({name for part in world.gather(found) for name in part})
    if names:
        raise ModelError(
            f"the backbone's weights contain NaN or infinity: {', '.join(names[:3])}"
            + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            + "; download or convert it again"
        )


def set_zero3_units(dual_head: DualHeadModel, *, sharded_head: bool = False) -> None:
    """Set the modules that ZeRO-3 gathers as one unit; call it before the engine is initialised.

    A decoder layer is one unit: otherwise each linear layer is, and LoRA makes five modules of each. Not so the first
    trainable layer if everything below it is frozen: its input has no gradient, and DeepSpeed would then reduce its
    gradients before they are computed. The LM and classification weights, which the loss reads outside their own
    modules, are registered with the full model; not an LM head that stays sharded.
    """
    from deepspeed import zero
    from deepspeed.utils import set_z3_leaf_module

    _, layers = layer_stack(dual_head.lm)
    trainable = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
    for index, layer in enumerate(layers):
        set_z3_leaf_module(layer, not trainable[index] or any(trainable[:index]))
    lm: Any = dual_head.lm
    of_lm_head = [p for p in lm.get_output_embeddings().parameters() if not (sharded_head and p is head_parameter(lm))]
    for parameter in (*of_lm_head, *dual_head.classification_head.parameters()):
        zero.register_external_parameter(dual_head, parameter)


def _final_norm(lm: nn.Module, stack_name: str) -> list[nn.Parameter]:
    """Parameters of the modules after the decoder's layers: declared after them or (OPT) named final."""
    parent, _, stack = stack_name.rpartition(".")
    children = list(lm.get_submodule(parent).named_children())
    place = next(i for i, (name, _) in enumerate(children) if name == stack)
    after = [m for i, (name, m) in enumerate(children) if i > place or name.startswith("final")]
    return [p for module in after for p in module.parameters()]
