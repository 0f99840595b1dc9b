"""One autograd function for both heads: per-token generation losses, class logits, per-row classification losses.

Equivalent plain torch (``impl="reference"``, read :mod:`clsgen_kernels.reference`), without options::

    generation_loss = cross_entropy((hidden @ lm_weight.T)[supervised_index], target, reduction="none")
    class_logits    = hidden[class_index] @ head_weight.T + head_bias
    class_loss      = cross_entropy(class_logits, label, reduction="none", ignore_index=-1)

The other implementations compact supervised rows first and iterate over the vocabulary in tiles, so that no tokens x
vocabulary tensor is ever materialised: :mod:`clsgen_kernels.tiled` in plain torch, :mod:`clsgen_kernels.fused` in
Triton. The classification head is an ``S x D x C`` product, whose cost is negligible next to the vocabulary's.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clsgen_kernels import fused, reference, tiled, vocab_parallel
from clsgen_kernels.checks import check_labels, check_options, check_shards, check_tensors
from clsgen_kernels.hidden_gradient import meeting, scatter
from clsgen_kernels.inputs import ClassOptions, GenerationOptions, HeadInputs, LMInputs, LMLora
from clsgen_kernels.launch import Launch
from clsgen_kernels.vocab_shards import VocabShards

# N tokens, n supervised tokens, S sequences, D hidden, V vocabulary, C classes, R LoRA rank

IMPLEMENTATIONS = ("auto", "reference", "torch", "triton")
logger = logging.getLogger(__name__)


class DualHeadOutput(NamedTuple):
    """Losses and class logits; fp32 (fp64 for fp64 inputs)."""

    generation_loss: Tensor
    """``[n]`` loss per supervised token in nats, or with ``reduction="sum"`` their weighted sum, a scalar."""
    class_logits: Tensor
    """``[S, C]`` logits of the classification head; differentiable."""
    class_loss: Tensor
    """``[S]`` loss per row in nats, 0 for rows without label; or with ``reduction="sum"`` their sum, a scalar."""
    token_hit: Tensor
    """bool ``[n]``: no token is more likely than the target (its mean is the token accuracy); not differentiable."""


def resolve_impl(impl: str, device: torch.device | str = "cpu") -> str:
    """The implementation that ``impl`` selects on a device; ValueError if it is unknown or cannot run there.

    ``"auto"`` is Triton on a GPU and vocabulary tiles in torch elsewhere, never the reference; logged once.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl {impl!r} is not one of {', '.join(IMPLEMENTATIONS)}; use impl='auto' if unsure")
    kind = torch.device(device).type
    if impl == "triton" and kind != "cuda" and not fused.interpreted():
        raise ValueError(
            f"impl 'triton' needs tensors on a GPU, these are on {kind}; use 'auto' (or TRITON_INTERPRET=1 in tests)"
        )
    if impl != "auto":
        return impl
    return _auto(kind)


@functools.cache
def _auto(kind: str) -> str:
    chosen, why = "torch", f"tensors are on {kind}"
    if kind == "cuda" and importlib.util.find_spec("triton") is None:
        why = "Triton is not installed"
    elif kind == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        why = f"the kernels need compute capability 8.0, this GPU has {torch.cuda.get_device_capability()}"
    elif kind == "cuda":
        chosen, why = "triton", "a GPU and Triton are available"
    logger.info("dual_head_loss: impl 'auto' is %r, since %s", chosen, why)
    return chosen


def dual_head_loss(
    hidden_ND: Tensor,
    lm_weight_VD: Tensor,
    head_weight_CD: Tensor,
    head_bias_C: Tensor,
    *,
    supervised_index_n: Tensor,
    target_n: Tensor,
    class_index_S: Tensor,
    label_S: Tensor,
    dropout_scale_SD: Tensor | None = None,
    token_weight_n: Tensor | None = None,
    lm_bias_V: Tensor | None = None,
    lm_lora: LMLora | None = None,
    generation: GenerationOptions = GenerationOptions(),  # noqa: B008, it is frozen
    classification: ClassOptions = ClassOptions(),  # noqa: B008
    reduction: Literal["none", "sum"] = "none",
    impl: str = "auto",
    vocab_tile: int | None = None,
    launch: Launch | None = None,
    store_bytes: int = 0,
    lm_weight_grad_VD: Tensor | None = None,
    vocab_shards: VocabShards | None = None,
    hidden_grad_square: Tensor | None = None,
) -> DualHeadOutput:
    """Both heads' losses on the final-norm hidden states of a batch of packed or padded tokens.

    Args:
        hidden_ND: ``[N, D]`` hidden states after the final norm, any float dtype.
        lm_weight_VD: ``[V, D]`` output embedding (tied or not), same dtype as ``hidden_ND``.
        head_weight_CD, head_bias_C: the classification head; computed in fp32 whatever their dtype.
        supervised_index_n: int64 ``[n]`` positions in ``N`` that predict a supervised token; distinct; may be empty.
        target_n: int64 ``[n]`` the tokens they predict, in ``[0, V)``; -100 for one to ignore.
        class_index_S: int64 ``[S]`` position in ``N`` of each row's classification token; distinct; may be empty.
        label_S: int64 ``[S]`` class of each row in ``[0, C)``, or -1 for a row without label. ``"ordinal"``: in
            ``[0, C]``. ``"multilabel"``: ``[S, C]`` of 0 and 1 (or floats between), negative for unknown. ``"soft"``:
            float ``[S, C]``, each row a distribution, or negative throughout for a row without label.
        dropout_scale_SD: ``[S, D]`` factor on the pooled states (a scaled dropout mask), or None.
        token_weight_n: ``[n]`` weights of the generation losses; only with ``reduction="sum"``.
        lm_bias_V: ``[V]`` bias of the LM head, or None.
        lm_lora: an adapter on the LM head, or None.
        generation: label smoothing, z-loss, soft cap.
        classification: kind of label space, class weights, focal factor.
        reduction: ``"none"`` for losses per token and per row, ``"sum"`` for their (weighted) sums.
        impl: ``"auto"``, ``"triton"``, ``"torch"`` (vocabulary tiles) or ``"reference"`` (all logits; for tests).
        vocab_tile: vocabulary rows per tile for ``impl="torch"``; None chooses by ``n``.
        launch: tiles for ``impl="triton"``; None uses the table in :mod:`clsgen_kernels.launch`.
        store_bytes: keep the ``[n, V]`` logits for the backward of ``impl="triton"`` if they take no more than this:
            saves one GEMM pass, costs memory, and rounds the logits to the weights' dtype.
        lm_weight_grad_VD: fp32 ``[V, D]`` to which the backward adds the LM weight's gradient instead of returning
            it, so that sums over many micro-batches stay in fp32.
        vocab_shards: the LM weight stays sharded over ranks: ``lm_weight_VD`` is this rank's rows, targets index the
            full vocabulary. Every rank must call this, and run backward through the generation loss. Not with
            ``impl="reference"``. See :mod:`clsgen_kernels.vocab_parallel`.
        hidden_grad_square: fp32 ``[3]`` to which the backward adds the squared norm of each head's gradient at
            ``hidden_ND``, generation then classification, and the inner product of the two; not with
            ``impl="reference"``.

    Under autocast the states and the LM's weights are taken in autocast's dtype, as its matrix products would; the
    class head's product and all losses stay in fp32.

    Gradients flow to ``hidden_ND``, ``lm_weight_VD``, ``head_weight_CD``, ``head_bias_C``, ``lm_bias_V`` and the
    adapter, exactly, for any upstream gradient of the outputs. Double backward is not supported.

    Raises:
        ValueError: shapes, dtypes or options that do not match; target or label out of range (checked on CPU only; on
            an accelerator the check would synchronise with the device).
    """
    # Long because of its arguments and their documentation.
    device = hidden_ND.device.type
    hidden_ND, lm_weight_VD, lm_lora = _as_autocast_casts(hidden_ND, lm_weight_VD, lm_lora)
    with _without_autocast(device):
        impl = resolve_impl(impl, hidden_ND.device)
        check_tensors(
            *(hidden_ND, lm_weight_VD, head_weight_CD, head_bias_C, supervised_index_n, target_n, class_index_S),
            None if vocab_shards is None else vocab_shards.vocabulary,
        )
        check_shards(lm_weight_VD, vocab_shards, impl)
        check_labels(label_S, class_index_S, head_weight_CD.shape[0], classification)
        check_options(hidden_ND, lm_weight_VD, lm_bias_V, lm_lora, lm_weight_grad_VD, impl)
        if token_weight_n is not None and (reduction != "sum" or token_weight_n.shape != target_n.shape):
            raise ValueError(
                f"token_weight_n of shape {tuple(token_weight_n.shape)} with reduction={reduction!r}: expected shape "
                f"{tuple(target_n.shape)} and reduction='sum'; with reduction='none' multiply the returned losses"
            )
        if reduction not in ("none", "sum"):
            raise ValueError(f"reduction is {reduction!r}, expected 'none' or 'sum'; fix it")
        lora_nR = lora_VR = None
        if lm_lora is not None:
            lora_nR, lora_VR = (
                (hidden_ND[supervised_index_n] @ lm_lora.a_RD.T) * lm_lora.scale,
                _row_contiguous(lm_lora.b_VR),
            )
        if impl == "reference":
            pooled_SD = hidden_ND[class_index_S]
            if dropout_scale_SD is not None:
                pooled_SD = pooled_SD.to(dropout_scale_SD.dtype) * dropout_scale_SD
            loss, hit_n = reference.generation_losses(
                hidden_ND, lm_weight_VD, supervised_index_n, target_n, lm_bias_V, lora_nR, lora_VR, generation
            )
            if reduction == "sum":
                loss = (loss if token_weight_n is None else loss * token_weight_n).sum()
            classes = HeadInputs(pooled_SD, head_weight_CD, head_bias_C, label_S, classification)
            class_logits_SC, class_loss = reference.class_losses(classes)
            return DualHeadOutput(loss, class_logits_SC, class_loss.sum() if reduction == "sum" else class_loss, hit_n)
        call = _Call(
            impl,
            generation,
            classification,
            reduction == "sum",
            vocab_tile,
            launch,
            store_bytes,
            lm_weight_grad_VD,
            vocab_shards,
            hidden_grad_square,
        )
        tensors = (hidden_ND, lm_weight_VD, head_weight_CD, head_bias_C, lm_bias_V, lora_nR, lora_VR)
        indices = (supervised_index_n, target_n, class_index_S, label_S)
        return DualHeadOutput(*_DualHead.apply(*tensors, *indices, dropout_scale_SD, token_weight_n, call))


def _without_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast off; for devices that have none (meta), nothing."""
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else contextlib.nullcontext()


def _as_autocast_casts(
    hidden_ND: Tensor, lm_weight_VD: Tensor, lm_lora: LMLora | None
) -> tuple[Tensor, Tensor, LMLora | None]:
    """States and LM weights in autocast's dtype where it is on (fp64 stays); gradients return in their own."""
    device = hidden_ND.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return hidden_ND, lm_weight_VD, lm_lora
    if torch.float64 in (hidden_ND.dtype, lm_weight_VD.dtype):
        return hidden_ND, lm_weight_VD, lm_lora
    dtype = torch.get_autocast_dtype(device)
    if lm_lora is not None:
        lm_lora = LMLora(lm_lora.a_RD.to(dtype), lm_lora.b_VR.to(dtype), lm_lora.scale)
    return hidden_ND.to(dtype), lm_weight_VD.to(dtype), lm_lora


@dataclass(frozen=True)
class _Call:
    """The arguments that are neither differentiable tensors nor indices."""

    impl: str
    generation: GenerationOptions
    classification: ClassOptions
    sums: bool
    vocab_tile: int | None
    launch: Launch | None
    store_bytes: int
    lm_weight_grad_VD: Tensor | None
    vocab_shards: VocabShards | None
    hidden_grad_square: Tensor | None


class _DualHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        lm_weight_VD: Tensor,
        head_weight_CD: Tensor,
        head_bias_C: Tensor,
        lm_bias_V: Tensor | None,
        lora_nR: Tensor | None,
        lora_VR: Tensor | None,
        supervised_index_n: Tensor,
        target_n: Tensor,
        class_index_S: Tensor,
        label_S: Tensor,
        dropout_scale_SD: Tensor | None,
        token_weight_n: Tensor | None,
        call: _Call,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # The kernels need contiguous rows only; a transposed weight is rare, and copied.
        lm_weight_VD = _row_contiguous(lm_weight_VD)
        hidden_nD = hidden_ND[supervised_index_n]
        lm = LMInputs(
            *(hidden_nD, lm_weight_VD, target_n, lm_bias_V, lora_nR, lora_VR, call.generation), lm_weight_VD.shape[0]
        )
        pooled_SD = hidden_ND[class_index_S]
        if dropout_scale_SD is not None:
            pooled_SD = pooled_SD.to(torch.promote_types(pooled_SD.dtype, torch.float32)) * dropout_scale_SD
        classes = HeadInputs(pooled_SD, head_weight_CD, head_bias_C, label_S, call.classification)
        ctx.gathered = gathered = None
        if call.vocab_shards is not None:
            lm, ctx.gathered = lm, gathered = vocab_parallel.gather(lm, call.vocab_shards)
        ctx.fused = resolve_impl(call.impl, hidden_ND.device) == "triton"
        ctx.tile = call.vocab_tile or tiled.tile_rows(lm.target_n.numel(), lm_weight_VD.shape[0])
        ctx.carries = False
        if ctx.fused:
            both = fused.forward(
                lm, classes, token_weight_n=token_weight_n, launch=call.launch, store_bytes=call.store_bytes
            )
            out, class_logits_SC, class_loss_S = both.lm, both.class_logits_SC, both.class_loss_S
        else:
            if ctx.needs_input_grad[0] and not any(ctx.needs_input_grad[i] for i in (1, 4, 6)):
                ctx.carries = gathered is None and tiled.can_carry_expectation(lm)
            out = tiled.forward(lm, tile=ctx.tile, carry_expectation=ctx.carries)
            class_logits_SC = classes.logits()
            class_loss_S = classes.losses(class_logits_SC)
        saved, lse_n = out.saved, out.lse_n
        if gathered is not None:
            out, lse_n = vocab_parallel.forward(lm, gathered, out)
        loss, class_loss = out.loss_n, class_loss_S
        if call.sums and ctx.fused and gathered is None:
            loss, class_loss = both.loss_sum, both.class_loss_sum
        elif call.sums:
            loss = (loss if token_weight_n is None else loss * token_weight_n).sum()
            class_loss = class_loss_S.sum()
        ctx.call, ctx.vocabulary = call, lm.vocabulary
        ctx.hidden_shape, ctx.hidden_dtype, ctx.bias_dtype = hidden_ND.shape, hidden_ND.dtype, head_bias_C.dtype
        ctx.save_for_backward(
            # The compacted rows are saved only if the backward multiplies them again.
            lm.hidden_nD[:0] if ctx.carries else lm.hidden_nD,
            *(lm_weight_VD, lm.target_n, lm_bias_V, lora_nR, lora_VR, lse_n, saved, token_weight_n),
            *(
                pooled_SD,
                head_weight_CD,
                classes.slopes(class_logits_SC) if any(ctx.needs_input_grad) else None,
                dropout_scale_SD,
            ),
            *(supervised_index_n, class_index_S),
        )
        ctx.mark_non_differentiable(out.hit_n)
        return loss, class_logits_SC, class_loss, out.hit_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        with _without_autocast(grads[0].device.type):
            return _DualHead._backward(ctx, *grads)

    @staticmethod
    def _backward(
        ctx: Any, grad_loss: Tensor, grad_logits_SC: Tensor, grad_class_loss: Tensor, _: Tensor
    ) -> tuple[Any, ...]:
        call = ctx.call
        # Read once: checkpointing that is not reentrant computes them again at each reading, and refuses the second.
        tensors = ctx.saved_tensors
        hidden_nD, lm_weight_VD, target_n, lm_bias_V, lora_nR, lora_VR, lse_n, saved, token_weight_n = tensors[:9]
        pooled_SD, head_weight_CD, class_slope_SC, dropout_scale_SD, supervised_index_n, class_index_S = tensors[9:]
        wants_hidden, wants_lm, wants_head, wants_bias, *wants_more = ctx.needs_input_grad[:7]
        wide = lse_n.dtype

        delta_SC = class_slope_SC * grad_class_loss.expand(class_index_S.shape)[:, None] + grad_logits_SC
        grad_head_CD = (delta_SC.T @ pooled_SD.to(wide)).to(head_weight_CD.dtype) if wants_head else None
        grad_bias_C = delta_SC.sum(dim=0).to(ctx.bias_dtype) if wants_bias else None

        lm = LMInputs(
            *(hidden_nD, lm_weight_VD, target_n, lm_bias_V, lora_nR, lora_VR, call.generation), ctx.vocabulary
        )
        upstream_n = grad_loss.expand(supervised_index_n.shape)
        if token_weight_n is not None:
            upstream_n = upstream_n * token_weight_n
        upstream_n = upstream_n.to(wide).contiguous()
        local = fused if ctx.fused else tiled
        options: dict[str, Any] = {"wants_weight": wants_lm, "weight_grad_VD": call.lm_weight_grad_VD}
        options |= {"launch": call.launch} if ctx.fused else {"tile": ctx.tile}
        if ctx.carries:
            grads = tiled.backward_from_expectation(lm, lse_n, upstream_n, saved)
        elif ctx.gathered is not None:
            grads = vocab_parallel.backward(lm, ctx.gathered, lse_n, upstream_n, saved, local, **options)
        elif wants_hidden or wants_lm or any(wants_more):
            grads = local.backward(lm, lse_n, upstream_n, saved, **options)
        else:
            return (None, None, grad_head_CD, grad_bias_C, *[None] * 10)
        grad_hidden_ND = None
        if wants_hidden:
            grad_pooled_SD = delta_SC @ head_weight_CD.to(wide)
            if dropout_scale_SD is not None:
                grad_pooled_SD = grad_pooled_SD * dropout_scale_SD
            if call.hidden_grad_square is not None:
                squares = [torch.linalg.vector_norm(grad).square() for grad in (grads.hidden_nD, grad_pooled_SD)]
                met_SD = meeting(grads.hidden_nD, supervised_index_n, class_index_S, ctx.hidden_shape[0])
                call.hidden_grad_square.add_(torch.stack([*squares, (met_SD * grad_pooled_SD).sum()]))
            grad_hidden_ND = scatter(
                grads.hidden_nD,
                supervised_index_n,
                grad_pooled_SD,
                class_index_S,
                ctx.hidden_shape[0],
                ctx.hidden_dtype,
            )
        grad_lm_VD = grads.weight_VD if call.lm_weight_grad_VD is None else None
        more = [
            None if grad is None or not wanted else grad.to(of.dtype)
            for grad, wanted, of in zip(grads[2:], wants_more, (lm_bias_V, lora_nR, lora_VR), strict=True)
        ]
        return (grad_hidden_ND, grad_lm_VD, grad_head_CD, grad_bias_C, *more, *[None] * 7)


def _row_contiguous(weight_VD: Tensor) -> Tensor:
    return weight_VD if weight_VD.stride(1) == 1 else weight_VD.contiguous()
