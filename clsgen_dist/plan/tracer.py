"""Traces one micro-step of the real model on the meta device: bytes, FLOPs, and the order of modules.

The code that trains builds the model (``build_model``, ``set_zero3_units``) on torch's meta device, where tensors have
shapes and no data; forward, both losses and backward really run. Every tensor is counted while it is alive, so
activations, the loss's workspace and gradients that wait for their reduction are read off, not estimated; the FLOPs of
matrix products are counted as they are called.

Cost: seconds for a model of 70B, whatever the number of tokens.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clsgen_dist.model.backbone import checkpoint_activations, layer_stack, set_zero3_units
from clsgen_dist.model.dual_head import DualHeadModel
from clsgen_dist.model.frozen_layers import FrozenLayers, KnownStates, first_that_learns
from clsgen_dist.model.sharded_lm_head import head_parameter
from clsgen_dist.objectives.term import Term
from clsgen_dist.plan.equal_ranks import MetaRanks
from clsgen_dist.plan.meta_model import Attention, ModelSpec, meta_model
from clsgen_dist.plan.meta_trace import MetaTrace, Weight
from clsgen_dist.plan.module_recorder import ModuleRecorder
from clsgen_dist.plan.tensor_counter import TensorCounter, forward_inside_backward

# N packed tokens, S sequences, n supervised tokens


def trace_micro_step(
    spec: ModelSpec,
    *,
    sequence_lengths: Sequence[int],
    supervised: int,
    activation_checkpointing: bool,
    attention: Attention = "flash",
    terms: tuple[Term, ...] = (),
    texts: int = 0,
    head_ranks: int = 0,
    known: bool = False,
    stores_logits: bool = True,
) -> MetaTrace:
    """Trace a micro-step of packed sequences.

    Args:
        spec: the model.
        sequence_lengths: in tokens.
        supervised: tokens that carry generation loss.
        activation_checkpointing: whether layers are computed again in the backward.
        attention: its implementation.
        terms: of the loss, besides generation and classification: those that run the model or the LM head once more.
        texts: how many of the last sequences are general texts.
        head_ranks: over how many ranks the LM head stays sharded; 0: it is gathered.
        known: start from what the frozen layers gave.
        stores_logits: in the LM head's gradient, as far as it holds them.

    Raises:
        ModelError: the backbone cannot be trained or planned.
    """
    model = meta_model(spec, attention, terms, head_ranks, stores_logits=stores_logits)
    model.train()
    if activation_checkpointing:
        checkpoint_activations(model.lm)
    shards = model.lm_head.shards
    set_zero3_units(model, sharded_head=shards is not None)
    batch = _meta_batch(sequence_lengths, supervised, texts)
    layers_run = _start_from_known(model, batch) if known else 1.0
    counter = TensorCounter()
    counter.ignore([*model.parameters(), *model.buffers()])
    if shards:
        counter.ignore([head_parameter(model.lm).ds_tensor])
    recorder = ModuleRecorder(model, counter)
    counter.track_backbone(model.lm.base_model)  # type: ignore[arg-type]
    with _deepspeed_linear(counter), counter:
        output = model(**batch)
        loss = output.generation_loss.sum() + output.class_loss.sum() + sum(output.term_sums)
        del output
        forward_flops, forward_moved, forward_launches = counter.flops, counter.moved_bytes, counter.launches
        loss.backward()
        del loss
    return MetaTrace(
        weights=_weights(model, spec.load_in_4bit),
        units=recorder.units,
        events=recorder.events,
        tail_peak=counter.pop_peak()[0],
        loss_workspace=counter.loss_workspace,
        matmul_flops=counter.flops,
        forward_flops=forward_flops,
        recomputed_flops=counter.recomputed_flops,
        moved_bytes=counter.moved_bytes,
        forward_moved_bytes=forward_moved,
        launches=counter.launches,
        forward_launches=forward_launches,
        tokens=sum(sequence_lengths),
        terms=2 + len(terms),
        bytes_per_element=2 if spec.bf16 else 4,
        max_positions=getattr(model.lm.config.get_text_config(), "max_position_embeddings", None),  # type: ignore[operator, union-attr]
        learned_positions=not any("Rotary" in type(module).__name__ for module in model.modules()),
        head_moves=shards.ranks.moves if shards and isinstance(shards.ranks, MetaRanks) else {},
        eager_attention=attention == "eager",
        layers_run=layers_run,
    )


def _start_from_known(model: DualHeadModel, batch: dict[str, Any]) -> float:
    """Give the batch what its frozen layers gave; returns the share of the layers that are left to compute."""
    from deepspeed.runtime.zero.partition_parameters import unregister_external_parameter

    lm: Any = model.lm
    layers, weight = layer_stack(lm)[1], head_parameter(lm)
    model.frozen_layers = FrozenLayers(layers, first_that_learns(layers))
    left = len(layers) - model.frozen_layers.first
    of_tokens: list[Tensor] = []
    if not left:
        for parameter in model.lm_head.gathered_parameters():
            unregister_external_parameter(model, parameter)
        tokens = len(batch["target_n"])
        of_tokens = [torch.empty(tokens, device="meta"), torch.empty(tokens, device="meta", dtype=torch.bool)]
    rows = len(batch["input_ids_N"]) if left else 2 * len(batch["label_S"])
    batch["known"] = KnownStates(torch.empty(rows, weight.shape[1], device="meta", dtype=weight.dtype), *of_tokens)
    return left / len(layers)


def _weights(model: nn.Module, load_in_4bit: bool) -> list[Weight]:
    """The parameters; with 4 bits, bitsandbytes quantises frozen linear maps except the LM head."""
    lm: Any = model.lm
    head = lm.get_output_embeddings()
    linear = {id(m.weight) for m in lm.modules() if isinstance(m, nn.Linear) and m is not head}
    quantised = linear if load_in_4bit else set()
    return [
        Weight(name, p.numel(), p.requires_grad, p.dim() > 1, id(p) in quantised and not p.requires_grad)
        for name, p in model.named_parameters()
    ]


@contextlib.contextmanager
def _deepspeed_linear(counter: TensorCounter) -> Iterator[None]:
    """Use DeepSpeed's linear function, as ZeRO-3 does: it saves its input even where the weight is frozen."""
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    def linear(*args: Any) -> Tensor:
        # Asked here, because the forward of an autograd function runs with gradients disabled.
        counter.recomputing = forward_inside_backward()
        try:
            return zero3_linear_wrap(*args)  # type: ignore[no-any-return]
        finally:  # checkpointing ends a recomputation by an exception
            counter.recomputing = False

    plain, nn.functional.linear = nn.functional.linear, linear  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.functional.linear = plain


def _meta_batch(lengths: Sequence[int], supervised: int, texts: int) -> dict[str, Any]:
    """The model's keyword arguments for packed sequences, as :func:`clsgen_dist.data.pack.collate` makes them."""

    def integers(count: int) -> Tensor:
        return torch.empty(count, dtype=torch.int64, device="meta")

    tokens, replayed = sum(lengths), sum(lengths[len(lengths) - texts :]) - texts
    return {
        "input_ids_N": integers(tokens),
        "position_N": integers(tokens),
        # On the CPU with values, because attention splits at them.
        "sequence_start_S1": torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32),
        "longest": max(lengths),
        "supervised_index_n": integers(supervised),
        "target_n": integers(supervised),
        "class_index_S": integers(len(lengths)),
        "end_index_S": integers(len(lengths)),
        "label_S": integers(len(lengths)),
        "further_index_f": integers(replayed),
        "further_target_f": integers(replayed),
        "replayed": replayed,
        "replayed_texts": texts,
        "role_S": integers(len(lengths)),
        "of_S": integers(len(lengths)),
        "reference_S": torch.empty(len(lengths), device="meta"),
    }
