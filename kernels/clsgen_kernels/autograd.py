"""The autograd function of :func:`clsgen_kernels.dual_head_loss`, and its two halves without autograd.

The backward computes what its outputs' gradients ask for: without one of ``generation_loss`` no vocabulary row is read,
without one of the class outputs nothing of the classification head. Double backward is refused.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clsgen_kernels import fused, stored_logits, tiled, vocab_parallel
from clsgen_kernels.hidden_gradient import meeting, scatter, with_sums
from clsgen_kernels.implementation import resolve_impl
from clsgen_kernels.inputs import (
    BEYOND,
    IGNORE,
    Call,
    ClassOptions,
    GenerationOptions,
    HeadInputs,
    LMGradients,
    LMInputs,
    Results,
    Tensors,
    Wants,
)
from clsgen_kernels.launch import choose

# N tokens, n supervised tokens, S sequences, D hidden, V vocabulary, C classes


class Kept(NamedTuple):
    """Tensors that the backward needs."""

    hidden_nD: Tensor
    """Compacted and scaled, of all ranks if the vocabulary is sharded; empty if the backward does not multiply them."""
    lm_weight_VD: Tensor
    target_n: Tensor
    lm_bias_V: Tensor | None
    lse_n: Tensor
    expected_nD: Tensor | None
    """Expected embeddings: see :mod:`clsgen_kernels.tiled`."""
    logits: Tensor | None
    """The memory that holds the stored logits: see :mod:`clsgen_kernels.stored_logits`."""
    offset_Tn: Tensor | None
    """As of :class:`clsgen_kernels.inputs.Forward`."""
    token_weight_n: Tensor | None
    pooled_SD: Tensor
    head_weight_CD: Tensor
    class_slope_SC: Tensor
    dropout_scale_SD: Tensor | None
    supervised_index_n: Tensor
    class_index_S: Tensor


class Plan(NamedTuple):
    """What the backward needs beside tensors."""

    fused: bool
    tile: int
    storage: stored_logits.Storage | None
    gathered: vocab_parallel.Gathered | None
    vocabulary: int
    tokens: int
    """N."""
    hidden_dtype: torch.dtype
    head_dtype: torch.dtype
    """Of the head's bias."""


def without_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast off; for devices that have none (meta), nothing."""
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else contextlib.nullcontext()


def forward(given: Tensors, call: Call, wants: Wants) -> tuple[Results, Kept | None, Plan]:
    """Both heads' losses; what the backward needs is None if nothing is asked for."""
    # The kernels need contiguous rows only; a transposed weight is rare, and copied.
    weight_VD = given.lm_weight_VD
    weight_VD = weight_VD if weight_VD.stride(1) == 1 else weight_VD.contiguous()
    lm, classes = _lm_inputs(given, weight_VD, call.generation), _head_inputs(given, call.classification)
    execution, gathered = call.execution, None
    if execution.vocab_shards is not None:
        lm, gathered = vocab_parallel.gather(lm, execution.vocab_shards)
    runs_fused = resolve_impl(call.impl, given.hidden_ND.device) == "triton"
    tile = execution.vocab_tile or tiled.tile_rows(lm.target_n.numel(), weight_VD.shape[0])
    carries = not runs_fused and gathered is None and carries_expectation(call.generation, wants)
    storage = None if carries else _storage(lm, call, wants, None if runs_fused else tile)
    logits = stored_snK = None
    if storage is not None:
        logits = storage.allocate(lm.target_n.numel(), weight_VD)
        stored_snK = storage.logits(logits, lm.target_n.numel())
    if runs_fused:
        both = fused.forward(
            lm,
            classes,
            token_weight_n=given.token_weight_n,
            launch=execution.launch,
            stored_snK=stored_snK,
        )
        out, class_logits_SC, class_loss_S = both.lm, both.class_logits_SC, both.class_loss_S
    else:
        out = tiled.forward(lm, tile=tile, carry_expectation=carries, stored_snK=stored_snK)
        class_logits_SC = classes.logits()
        class_loss_S = classes.losses(class_logits_SC)
    expected_nD, offset_Tn, lse_n = out.expected_nD, out.offset_Tn, out.lse_n
    if gathered is not None:
        out, lse_n = vocab_parallel.forward(lm, gathered, out)
    loss, class_loss = out.loss_n, class_loss_S
    if call.sums and runs_fused and gathered is None:
        loss, class_loss = both.loss_sum, both.class_loss_sum
    elif call.sums:
        loss = (loss if given.token_weight_n is None else loss * given.token_weight_n).sum()
        class_loss = class_loss_S.sum()
    results = Results(loss, class_logits_SC, class_loss, out.hit_n, out.lse_n)
    plan = Plan(
        fused=runs_fused,
        tile=tile,
        storage=storage,
        gathered=gathered,
        vocabulary=lm.vocabulary,
        tokens=given.hidden_ND.shape[0],
        hidden_dtype=given.hidden_ND.dtype,
        head_dtype=given.head_bias_C.dtype,
    )
    if not any(wants):
        return results, None, plan
    kept = Kept(
        hidden_nD=lm.hidden_nD.new_empty((0, lm.hidden_nD.shape[1])) if drops_states(carries, wants) else lm.hidden_nD,
        lm_weight_VD=weight_VD,
        target_n=lm.target_n,
        lm_bias_V=given.lm_bias_V,
        lse_n=lse_n,
        expected_nD=expected_nD,
        logits=logits,
        offset_Tn=offset_Tn,
        token_weight_n=given.token_weight_n,
        pooled_SD=classes.pooled_SD,
        head_weight_CD=given.head_weight_CD,
        class_slope_SC=classes.slopes(class_logits_SC),
        dropout_scale_SD=given.dropout_scale_SD,
        supervised_index_n=given.supervised_index_n,
        class_index_S=given.class_index_S,
    )
    return results, kept, plan


def _storage(lm: LMInputs, call: Call, wants: Wants, tile: int | None) -> stored_logits.Storage | None:
    """Where logits are stored for the backward; ``tile`` of the torch path, None of the kernels."""
    execution, hidden_nD, weight_VD = call.execution, lm.hidden_nD, lm.weight_VD
    if not (execution.store_bytes and wants.of_generation):
        return None
    (rows, width), vocabulary, size = hidden_nD.shape, len(weight_VD), hidden_nD.element_size()
    slab, budget = tile, 0
    if slab is None:
        launch = execution.launch or choose(hidden_nD.device, hidden_nD.dtype)
        slab, budget = launch.slab(rows, vocabulary, size), execution.store_bytes
    learns = wants.lm_weight and execution.lm_weight_grad_VD is None and weight_VD.dtype == hidden_nD.dtype
    return stored_logits.choose_storage(
        rows, vocabulary, width, slab, element_size=size, learns=learns, store_bytes=budget
    )


def carries_expectation(options: GenerationOptions, wants: Wants) -> bool:
    """Whether the torch path's forward computes the hidden states' gradient too, see :mod:`clsgen_kernels.tiled`."""
    return wants.hidden and not (wants.lm_weight or wants.lm_bias) and tiled.can_carry_expectation(options)


def drops_states(carries: bool, wants: Wants) -> bool:
    """Whether the backward does not multiply the compacted states."""
    return carries or not wants.of_generation


def backward(
    kept: Kept,
    plan: Plan,
    call: Call,
    wants: Wants,
    grad_loss: Tensor | None,
    grad_logits_SC: Tensor | None,
    grad_class_loss: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of the first five of :class:`Tensors`, None where not asked for or zero."""
    delta_SC = None
    if grad_class_loss is not None:
        delta_SC = kept.class_slope_SC * grad_class_loss.expand(kept.class_index_S.shape)[:, None]
    if grad_logits_SC is not None:
        delta_SC = grad_logits_SC if delta_SC is None else delta_SC + grad_logits_SC
    grad_head_CD = grad_bias_C = grad_pooled_SD = None
    wide = kept.lse_n.dtype
    if delta_SC is not None:
        if wants.head_weight:
            grad_head_CD = (delta_SC.T @ kept.pooled_SD.to(wide)).to(kept.head_weight_CD.dtype)
        if wants.head_bias:
            grad_bias_C = delta_SC.sum(dim=0).to(plan.head_dtype)
        if wants.hidden:
            grad_pooled_SD = delta_SC @ kept.head_weight_CD.to(wide)
            if kept.dropout_scale_SD is not None:
                grad_pooled_SD = grad_pooled_SD * kept.dropout_scale_SD
    grad_hidden_ND = sums_nD = lm = None
    shape, device = (plan.tokens, kept.pooled_SD.shape[1]), kept.lse_n.device
    if grad_loss is not None and wants.of_generation:
        if wants.hidden and plan.gathered is None and kept.expected_nD is None:
            found = with_sums(shape[0], len(kept.hidden_nD), shape[1], plan.hidden_dtype, device)
            grad_hidden_ND, sums_nD = found or (None, None)
        lm = _lm_backward(kept, plan, call, wants, grad_loss, sums_nD)
    if wants.hidden and (lm is not None or grad_pooled_SD is not None):
        if grad_hidden_ND is None:
            grad_hidden_ND = torch.empty(shape, dtype=plan.hidden_dtype, device=device)
        _fill_hidden_gradient(grad_hidden_ND, kept, call, None if lm is None else lm.hidden_nD, grad_pooled_SD)
    grad_lm_VD = grad_lm_bias_V = None
    if lm is not None:
        grad_lm_VD = None if call.execution.lm_weight_grad_VD is not None else lm.weight_VD
        if wants.lm_bias and lm.bias_V is not None and kept.lm_bias_V is not None:
            grad_lm_bias_V = (lm.bias_V * call.generation.logit_scale).to(kept.lm_bias_V.dtype)
    return grad_hidden_ND, grad_lm_VD, grad_head_CD, grad_bias_C, grad_lm_bias_V


def _lm_inputs(given: Tensors, weight_VD: Tensor, options: GenerationOptions) -> LMInputs:
    hidden_nD = given.hidden_ND[given.supervised_index_n]
    if options.logit_scale != 1:
        hidden_nD = hidden_nD * options.logit_scale
    bias_V = _scaled_bias(given.lm_bias_V, options)
    return LMInputs(hidden_nD, weight_VD, marked(given.target_n), bias_V, options, weight_VD.shape[0])


def marked(target_n: Tensor) -> Tensor:
    """The targets, those below 0 that do not say "ignored" as beyond the vocabulary."""
    return target_n.masked_fill((target_n < 0) & (target_n != IGNORE), BEYOND)


def _scaled_bias(bias_V: Tensor | None, options: GenerationOptions) -> Tensor | None:
    if bias_V is None or options.logit_scale == 1:
        return bias_V
    return bias_V.to(torch.promote_types(bias_V.dtype, torch.float32)) * options.logit_scale


def _head_inputs(given: Tensors, options: ClassOptions) -> HeadInputs:
    pooled_SD = given.hidden_ND[given.class_index_S]
    if given.dropout_scale_SD is not None:
        pooled_SD = pooled_SD.to(torch.promote_types(pooled_SD.dtype, torch.float32)) * given.dropout_scale_SD
    label_S = given.label_S
    if options.kind in ("softmax", "sigmoid", "ordinal"):
        label_S = label_S.masked_fill(label_S < -1, BEYOND)
    return HeadInputs(pooled_SD, given.head_weight_CD, given.head_bias_C, label_S, options)


def _lm_backward(
    kept: Kept, plan: Plan, call: Call, wants: Wants, grad_loss: Tensor, sums_nD: Tensor | None
) -> LMGradients:
    """The generation loss's gradients; ``sums_nD`` is memory for that of the states."""
    lm = LMInputs(
        hidden_nD=kept.hidden_nD,
        weight_VD=kept.lm_weight_VD,
        target_n=kept.target_n,
        bias_V=_scaled_bias(kept.lm_bias_V, call.generation),
        options=call.generation,
        vocabulary=plan.vocabulary,
    )
    upstream_n = grad_loss.expand(kept.supervised_index_n.shape)
    if kept.token_weight_n is not None:
        upstream_n = upstream_n * kept.token_weight_n
    upstream_n = upstream_n.to(kept.lse_n.dtype).contiguous()
    if kept.expected_nD is not None:
        grads = tiled.backward_from_expectation(lm, kept.lse_n, upstream_n, kept.expected_nD)
    else:
        grads = _by_slabs(lm, kept, plan, call, wants, upstream_n, sums_nD)
    if call.generation.logit_scale != 1:
        grads.hidden_nD.mul_(call.generation.logit_scale)
    return grads


def _by_slabs(
    lm: LMInputs, kept: Kept, plan: Plan, call: Call, wants: Wants, upstream_n: Tensor, sums_nD: Tensor | None
) -> LMGradients:
    logits, storage, sink_VD = kept.logits, plan.storage, call.execution.lm_weight_grad_VD
    weight_grad_VD = None
    if wants.lm_weight and sink_VD is not None:
        weight_grad_VD = sink_VD
    elif wants.lm_weight and logits is not None and storage is not None and storage.in_gradient:
        weight_grad_VD = logits
    elif wants.lm_weight:
        weight_grad_VD = torch.empty_like(lm.weight_VD, memory_format=torch.contiguous_format)
    local = fused if plan.fused else tiled
    options: dict[str, Any] = {
        "weight_grad_VD": weight_grad_VD,
        "accumulates": sink_VD is not None,
        **({"launch": call.execution.launch, "offset_Tn": kept.offset_Tn} if plan.fused else {"tile": plan.tile}),
    }
    stored_snK = None if logits is None or storage is None else storage.logits(logits, len(lm.hidden_nD))
    if plan.gathered is not None:
        return vocab_parallel.backward(lm, plan.gathered, kept.lse_n, upstream_n, stored_snK, local, **options)
    return local.backward(lm, kept.lse_n, upstream_n, stored_snK, hidden_grad_nD=sums_nD, **options)


def _fill_hidden_gradient(
    grad_ND: Tensor, kept: Kept, call: Call, grad_nD: Tensor | None, grad_SD: Tensor | None
) -> None:
    """Write both heads' gradients at the hidden states, measured if the call asks for it."""
    square, wide = call.execution.hidden_grad_square, kept.lse_n.dtype
    tokens, width = grad_ND.shape
    index_n, index_S = kept.supervised_index_n, kept.class_index_S
    if grad_nD is None:
        grad_nD, index_n = kept.pooled_SD.new_zeros((0, width), dtype=wide), index_n[:0]
    if grad_SD is None:
        grad_SD = kept.pooled_SD.new_zeros((len(index_S), width), dtype=wide)
    if square is not None:
        squares = [torch.linalg.vector_norm(grad).square() for grad in (grad_nD, grad_SD)]
        met_SD = meeting(grad_nD, index_n, index_S, tokens)
        square.add_(torch.stack([*squares, (met_SD * grad_SD).sum()]))
    scatter(grad_nD, index_n, grad_SD, index_S, grad_ND)


class DualHead(torch.autograd.Function):
    """Both halves as one autograd function."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        """Arguments: those of :class:`Tensors`, then a :class:`Call`; returns :class:`Results`, ``lse_n`` detached."""
        given, call = Tensors(*args[:-1]), args[-1]
        results, kept, plan = forward(given, call, Wants(*ctx.needs_input_grad[: len(Wants._fields)]))
        assert kept is not None
        ctx.call, ctx.plan, ctx.overwritten = call, plan, False
        ctx.save_for_backward(*kept)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(results.hit_n, results.lse_n)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments."""
        # Read once: checkpointing that is not reentrant computes them again at each reading, and refuses the second.
        kept = Kept(*ctx.saved_tensors)
        wants = Wants(*ctx.needs_input_grad[: len(Wants._fields)])
        if kept.logits is not None:
            # The weight's gradient is written over them, so a second backward of this graph recomputes. Not through the
            # saved tensor itself, which autograd would then refuse to hand out again.
            kept = kept._replace(logits=None if ctx.overwritten else kept.logits.data)
            in_gradient = ctx.plan.storage.in_gradient
            ctx.overwritten |= in_gradient and wants.lm_weight and grads[0] is not None
        with torch.no_grad(), without_autocast(kept.lm_weight_VD.device.type):
            found = backward(kept, ctx.plan, ctx.call, wants, *grads[:3])
        if torch.is_grad_enabled():
            found = tuple(None if grad is None else _RefuseSecond.apply(grad.requires_grad_()) for grad in found)
        return (*found, *[None] * (len(Tensors._fields) + 1 - len(found)))


class _RefuseSecond(torch.autograd.Function):
    """The identity on a gradient; whoever differentiates it is told that it has no derivative."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            "the loss was differentiated twice (create_graph=True), expected once: its gradient is computed without a "
            "graph; use impl='reference', which is plain torch, for second derivatives"
        )
