"""From the settings to the ZeRO-3 engine: model, optimizer, DeepSpeed. What trains is built here, and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from clsgen_kernels import GenerationOptions, Ranks

from clsgen_dist.config import Settings, resolve_path
from clsgen_dist.engine.compiled_ops import build_operators
from clsgen_dist.engine.config import deepspeed_config, refuse_missing_kernels
from clsgen_dist.engine.lm_head import head_traffic, lm_head_gradient_sink, stays_sharded
from clsgen_dist.engine.optim import build_optimizer, parameter_groups
from clsgen_dist.engine.world import on_accelerator
from clsgen_dist.errors import SettingsError
from clsgen_dist.io.text import quoted
from clsgen_dist.model.attention import choose_attention
from clsgen_dist.model.attention_probe import let_probe
from clsgen_dist.model.backbone import (
    Backbone,
    build_model,
    checkpoint_activations,
    load_backbone,
    set_zero3_units,
)
from clsgen_dist.model.classification_head import ClassLoss, HeadSpec
from clsgen_dist.model.dual_head import LossSpec
from clsgen_dist.model.label_space import LabelSpace
from clsgen_dist.model.sharded_lm_head import ShardedLMHead, head_parameter, is_tied
from clsgen_dist.objectives.class_weights import bias_correction, class_weights
from clsgen_dist.objectives.settings import ObjectivesSettings

logger = logging.getLogger(__name__)


def zero_config(settings: Settings, ranks: int) -> dict[str, Any]:
    """DeepSpeed's configuration on this machine.

    Raises:
        SettingsError: its file and the settings contradict each other, or this machine cannot do what it asks for.
    """
    config = planned_zero_config(settings, ranks, on_gpu=on_accelerator())
    refuse_missing_kernels(resolve_path(settings.deepspeed), config, on_gpu=on_accelerator())
    return config


def planned_zero_config(settings: Settings, ranks: int, *, on_gpu: bool) -> dict[str, Any]:
    """DeepSpeed's configuration on machines with or without GPUs, whatever this one has; SettingsError as above."""
    train = settings.train
    return deepspeed_config(
        resolve_path(settings.deepspeed),
        batch_size=train.batch_size,
        world_size=ranks,
        max_grad_norm=settings.optim.max_grad_norm,
        bf16=on_gpu if train.precision == "auto" else train.precision == "bf16",
        optimizer=settings.optim.name,
    )


def loss_spec(
    objectives: ObjectivesSettings,
    labels: LabelSpace,
    rows_C: Sequence[float] | None,
    *,
    balanced: bool = False,
    decide: Literal["before", "after", "both"] = "before",
    name_tokens: Sequence[int] | None = None,
) -> LossSpec:
    """How the model computes its losses.

    Args:
        objectives: the settings.
        labels: the label space.
        rows_C: training rows of each class; None if they are not known (streamed shards).
        balanced: whether classes are sampled equally often.
        decide: where the head is read.
        name_tokens: the first token of each class's name; None: two classes share one.

    Raises:
        SettingsError: class weights that do not fit the label space, or that need counts which are not known; a
            consistency term without what it compares.
    """
    settings = objectives.classification
    _refuse_consistency_of_nothing(objectives, labels, decide, name_tokens)
    weights = class_weights(objectives, labels, rows_C)
    return LossSpec(
        impl=objectives.impl,
        store_bytes=round(objectives.stored_logits_gib * 2**30),
        decide=decide,
        classification=ClassLoss(
            kind=labels.kind,
            class_weight=weights,
            focal_gamma=settings.focal_gamma,
            label_smoothing=settings.label_smoothing,
            bias_correction=bias_correction(weights, labels, rows_C, balanced=balanced),
        ),
        generation=GenerationOptions(
            label_smoothing=objectives.generation.label_smoothing, z_loss=objectives.generation.z_loss
        ),
        terms=objectives.terms(decide),
        name_tokens=None if name_tokens is None else tuple(name_tokens),
    )


def _refuse_consistency_of_nothing(
    objectives: ObjectivesSettings, labels: LabelSpace, decide: str, name_tokens: Sequence[int] | None
) -> None:
    weight = objectives.consistency.weight
    if weight and labels.kind == "multilabel":
        raise SettingsError(
            f"objectives.consistency.weight is {weight} with multi-label rows, whose explanations begin with one class "
            "of several; set it to 0"
        )
    if weight and name_tokens is None:
        raise SettingsError(
            f"objectives.consistency.weight is {weight}, but the names of two classes begin with the same token, "
            f"so the LM's choice between them cannot be read there: {', '.join(map(quoted, labels.names[:8]))}; set it "
            "to 0, or rename them"
        )
    if objectives.consistency_after.weight and decide != "both":
        raise SettingsError(
            f"objectives.consistency_after.weight is {objectives.consistency_after.weight}, but the model decides "
            f"{decide} the explanation only; set model.decide to both"
        )


def _require_layers(layers: Iterable[int], backbone: Backbone) -> None:
    config = backbone.config.get_text_config(decoder=True)
    count = getattr(config, "num_hidden_layers", 0)
    if wrong := [layer for layer in layers if not -count <= layer < count]:
        raise SettingsError(
            f"objectives.evidence.layers names the layer {wrong[0]}, expected {-count} to {count - 1}: "
            f"{backbone.path} has {count} layers"
        )
    kinds = getattr(config, "layer_types", None) or []
    if short := [layer for layer in sorted(layers) if kinds and "sliding" in kinds[layer]]:
        logger.warning(
            "objectives.evidence.layers: %s see only the last %s tokens; evidence before them is not reached there",
            short, config.sliding_window,
        )  # fmt: skip


def build_engine(
    settings: Settings,
    config: dict[str, Any],
    backbone: Backbone,
    head: HeadSpec,
    losses: LossSpec,
) -> Any:
    """Model, optimizer and ZeRO-3 engine.

    Args:
        settings: of the run.
        config: DeepSpeed's, from :func:`zero_config`.
        backbone: opened, its weights not loaded.
        head: how the classification head starts.
        losses: how the losses are computed.
    """
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    train, model, optim = settings.train, settings.model, settings.optim
    build_operators(optim.name, config)
    zero3 = HfDeepSpeedConfig(config)  # transformers holds it weakly: it must live while the model is built
    dtype = torch.bfloat16 if config["bf16"]["enabled"] else torch.float32
    attention = choose_attention(model.attention, on_gpu=on_accelerator(), dtype=dtype, packed=True, lm=backbone.meta)
    if layers := {layer for term in losses.terms for layer in term.attention_layers}:
        _require_layers(layers, backbone)
        let_probe(attention, backbone.meta)
    lm = load_backbone(
        backbone,
        dtype=dtype,
        attention=attention,
        load_in_4bit=model.load_in_4bit,
    )
    dual_head = build_model(
        lm,
        head=head,
        losses=losses,
        finetune=model.finetune,
        top_layers=model.top_layers,
        lora_rank=model.lora_rank,
        lora_alpha=model.lora_alpha,
        lora_dropout=model.lora_dropout,
        seed=settings.seed,
    )
    if backbone.weights is not None:
        learns = [name for name, parameter in lm.named_parameters() if parameter.requires_grad]
        backbone.weights.require_exportable(learns)
    if train.activation_checkpointing:
        checkpoint_activations(lm)
    # ZeRO-3 keeps one dtype in its flat groups, with fp32 master weights; new weights were drawn in fp32.
    for parameter in dual_head.parameters():
        if parameter.requires_grad and not hasattr(parameter, "ds_tensor"):
            parameter.data = parameter.data.to(lm.dtype)  # type: ignore[arg-type]
    sharded = shards_lm_head(settings, lm, config, torch.distributed.get_world_size())
    set_zero3_units(dual_head, sharded_head=sharded)
    del zero3
    groups = parameter_groups(dual_head, lr=optim.lr, head_lr=optim.head_lr, weight_decay=optim.weight_decay)
    optimizer = build_optimizer(optim.name, groups, betas=optim.betas, eps=optim.eps)
    engine, *_ = deepspeed.initialize(model=dual_head, optimizer=optimizer, config=config)
    if sharded:
        deposit = lm_head_gradient_sink(lm, engine.optimizer)
        dual_head.lm_head = ShardedLMHead(lm, Ranks(), deposit, engine.device)
    engine.train()
    return engine


def shards_lm_head(settings: Settings, lm: Any, config: dict[str, Any], ranks: int) -> bool:
    """Whether the LM head stays sharded; SettingsError if it must and cannot.

    For ``objectives.lm_head: auto`` micro-batches are assumed full, of the longest rows that the recipe takes.
    """
    data, tokens = settings.data, settings.train.micro_batch_tokens
    weight = head_parameter(lm)
    rows, width = getattr(weight, "ds_shape", weight.shape)
    explained = data.max_explanation_length / (data.max_prompt_length + data.max_explanation_length)
    traffic = head_traffic(
        rows,
        width,
        tokens=tokens,
        supervised=tokens * explained,
        ranks=ranks,
        learns=settings.model.finetune == "full" and settings.model.top_layers is None,
        tied=is_tied(lm),
        element_size=2 if config["bf16"]["enabled"] else 4,
    )
    return stays_sharded(settings.objectives.lm_head, lm, config, traffic, ranks)
