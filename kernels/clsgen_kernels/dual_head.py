"""One autograd function for both heads: per-token generation losses, class logits, per-row classification losses.

Equivalent plain torch (``impl="reference"``, read :mod:`clsgen_kernels.reference`)::

    generation_loss = cross_entropy((hidden @ lm_weight.T)[supervised_index], target, reduction="none")
    class_logits    = hidden[class_index] @ head_weight.T + head_bias
    class_loss      = cross_entropy(class_logits, label, reduction="none", ignore_index=-1)

What ``impl="torch"`` does instead: supervised rows are compacted first, and the vocabulary is walked in tiles (see
:mod:`clsgen_kernels.tiled` for the equations and the price), so that no tokens x vocabulary tensor is ever made.
The classification side is a ``S x D x C`` product: its price is nothing beside the vocabulary's.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from clsgen_kernels import tiled
from clsgen_kernels.reference import reference_losses

# N tokens, n supervised tokens, S sequences, D hidden, V vocabulary, C classes

IMPLEMENTATIONS = ("auto", "reference", "torch")


class DualHeadOutput(NamedTuple):
    """What the two heads leave behind; all fp32 (fp64 for fp64 inputs)."""

    generation_loss: Tensor
    """``[n]`` cross-entropy per supervised token in nats, or with ``reduction="sum"`` their weighted sum, a scalar."""
    class_logits: Tensor
    """``[S, C]`` logits of the classification head; differentiable."""
    class_loss: Tensor
    """``[S]`` cross-entropy per row in nats; 0 for rows without label."""


def resolve_impl(impl: str) -> str:
    """The implementation that ``impl`` stands for on this machine; ValueError for a name that is none."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl {impl!r} is not one of {', '.join(IMPLEMENTATIONS)}; use impl='auto' if unsure")
    return "torch" if impl == "auto" else impl


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
    reduction: Literal["none", "sum"] = "none",
    impl: str = "auto",
    vocab_tile: int | None = None,
) -> DualHeadOutput:
    """Both heads' losses on the final-norm hidden states of a batch of packed or padded tokens.

    Args:
        hidden_ND: ``[N, D]`` hidden states after the final norm, any float dtype.
        lm_weight_VD: ``[V, D]`` output embedding (tied or not), same dtype as ``hidden_ND``.
        head_weight_CD, head_bias_C: the classification head; used in fp32 whatever they are stored in.
        supervised_index_n: int64 ``[n]`` positions in ``N`` that predict a supervised token; distinct; may be empty.
        target_n: int64 ``[n]`` the tokens they predict, in ``[0, V)``.
        class_index_S: int64 ``[S]`` position in ``N`` of each row's classification token; distinct; may be empty.
        label_S: int64 ``[S]`` class of each row in ``[0, C)``, or -1 for a row without label.
        dropout_scale_SD: ``[S, D]`` factor on the pooled states (a scaled dropout mask), or None.
        token_weight_n: ``[n]`` weights of the generation losses; only with ``reduction="sum"``.
        reduction: ``"none"`` for per-token generation losses, ``"sum"`` for their weighted sum.
        impl: ``"auto"``, ``"torch"`` (vocabulary tiles) or ``"reference"`` (all logits; for tests).
        vocab_tile: vocabulary rows per tile for ``impl="torch"``; None picks them from ``n``.

    Gradients flow to ``hidden_ND``, ``lm_weight_VD``, ``head_weight_CD`` and ``head_bias_C``, exactly, for any upstream
    gradient of the three outputs. No double backward.

    Raises:
        ValueError: shapes, dtypes or options that do not fit together; target or label out of range (checked on CPU;
            on an accelerator the check would cost a synchronisation).
    """
    impl = resolve_impl(impl)
    _check(hidden_ND, lm_weight_VD, head_weight_CD, head_bias_C, supervised_index_n, target_n, class_index_S, label_S)
    if token_weight_n is not None and (reduction != "sum" or token_weight_n.shape != target_n.shape):
        raise ValueError(
            f"token_weight_n of shape {tuple(token_weight_n.shape)} with reduction={reduction!r}: expected shape "
            f"{tuple(target_n.shape)} and reduction='sum'; with reduction='none' weigh the returned losses"
        )
    if reduction not in ("none", "sum"):
        raise ValueError(f"reduction {reduction!r} is neither 'none' nor 'sum'")
    tensors = (hidden_ND, lm_weight_VD, head_weight_CD, head_bias_C)
    indices = (supervised_index_n, target_n, class_index_S, label_S)
    if impl == "reference":
        outputs = reference_losses(*tensors, *indices, dropout_scale_SD)
    else:
        tile = vocab_tile or tiled.tile_rows(target_n.numel(), lm_weight_VD.shape[0])
        outputs = _TiledDualHead.apply(*tensors, *indices, dropout_scale_SD, tile)
    generation_loss_n, class_logits_SC, class_loss_S = outputs
    if reduction == "sum":
        weighted_n = generation_loss_n if token_weight_n is None else generation_loss_n * token_weight_n
        return DualHeadOutput(weighted_n.sum(), class_logits_SC, class_loss_S)
    return DualHeadOutput(generation_loss_n, class_logits_SC, class_loss_S)


class _TiledDualHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        lm_weight_VD: Tensor,
        head_weight_CD: Tensor,
        head_bias_C: Tensor,
        supervised_index_n: Tensor,
        target_n: Tensor,
        class_index_S: Tensor,
        label_S: Tensor,
        dropout_scale_SD: Tensor | None,
        tile: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        frozen_weight = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
        hidden_nD = hidden_ND[supervised_index_n]
        generation_loss_n, lse_n, expected_nD = tiled.forward(
            hidden_nD, lm_weight_VD, target_n, tile, carry_expectation=frozen_weight
        )
        wide = lse_n.dtype
        pooled_SD = hidden_ND[class_index_S].to(wide)
        if dropout_scale_SD is not None:
            pooled_SD = pooled_SD * dropout_scale_SD
        class_logits_SC = F.linear(pooled_SD, head_weight_CD.to(wide), head_bias_C.to(wide))
        class_loss_S = F.cross_entropy(class_logits_SC, label_S, reduction="none", ignore_index=-1)

        ctx.tile = tile
        ctx.hidden_shape, ctx.hidden_dtype = hidden_ND.shape, hidden_ND.dtype
        ctx.head_dtypes = head_weight_CD.dtype, head_bias_C.dtype
        # The compacted rows are kept only where the backward multiplies them again.
        ctx.save_for_backward(
            None if frozen_weight else hidden_nD,
            expected_nD,
            lm_weight_VD,
            lse_n,
            supervised_index_n,
            target_n,
            pooled_SD,
            dropout_scale_SD,
            head_weight_CD,
            class_logits_SC,
            class_index_S,
            label_S,
        )
        return generation_loss_n, class_logits_SC, class_loss_S

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss_n: Tensor, grad_logits_SC: Tensor, grad_class_loss_S: Tensor) -> tuple[Any, ...]:
        (hidden_nD, expected_nD, lm_weight_VD, lse_n, supervised_index_n, target_n, *classification) = ctx.saved_tensors
        pooled_SD, dropout_scale_SD, head_weight_CD, class_logits_SC, class_index_S, label_S = classification
        wants_hidden, wants_lm, wants_head, wants_bias = ctx.needs_input_grad[:4]
        wide = lse_n.dtype

        labelled_S = label_S >= 0
        delta_SC = torch.softmax(class_logits_SC, dim=1)
        delta_SC = delta_SC - F.one_hot(label_S.where(labelled_S, 0), delta_SC.shape[1]).to(wide)
        delta_SC = delta_SC * (grad_class_loss_S * labelled_S)[:, None] + grad_logits_SC
        grad_head_CD = (delta_SC.T @ pooled_SD).to(ctx.head_dtypes[0]) if wants_head else None
        grad_bias_C = delta_SC.sum(dim=0).to(ctx.head_dtypes[1]) if wants_bias else None

        grad_lm_VD = grad_hidden_ND = None
        if expected_nD is not None:
            grad_nD = tiled.backward_frozen_weight(expected_nD, lm_weight_VD, target_n, grad_loss_n)
        elif wants_lm:
            grad_nD, grad_lm_VD = tiled.backward(hidden_nD, lm_weight_VD, target_n, lse_n, grad_loss_n, ctx.tile)
        if wants_hidden:
            grad_pooled_SD = delta_SC @ head_weight_CD.to(wide)
            if dropout_scale_SD is not None:
                grad_pooled_SD = grad_pooled_SD * dropout_scale_SD
            grad_hidden_ND = torch.zeros(ctx.hidden_shape, dtype=wide, device=lse_n.device)
            grad_hidden_ND.index_add_(0, supervised_index_n, grad_nD)
            grad_hidden_ND.index_add_(0, class_index_S, grad_pooled_SD)
            grad_hidden_ND = grad_hidden_ND.to(ctx.hidden_dtype)
        return grad_hidden_ND, grad_lm_VD, grad_head_CD, grad_bias_C, None, None, None, None, None, None


def _check(
    hidden_ND: Tensor,
    lm_weight_VD: Tensor,
    head_weight_CD: Tensor,
    head_bias_C: Tensor,
    supervised_index_n: Tensor,
    target_n: Tensor,
    class_index_S: Tensor,
    label_S: Tensor,
) -> None:
    def refuse(what: str) -> None:
        raise ValueError(f"dual_head_loss: {what}")

    if hidden_ND.dim() != 2:
        refuse(f"hidden_ND has shape {tuple(hidden_ND.shape)}, expected [tokens, hidden]; flatten batch and time first")
    width = hidden_ND.shape[1]
    for name, weight in (("lm_weight_VD", lm_weight_VD), ("head_weight_CD", head_weight_CD)):
        if weight.numel() == 0:
            refuse(f"{name} has 0 elements: under ZeRO-3 call this inside the engine's forward, where it is gathered")
        if weight.dim() != 2 or weight.shape[1] != width:
            refuse(f"{name} has shape {tuple(weight.shape)}, expected [*, {width}] as hidden_ND is {width} wide")
    if lm_weight_VD.dtype != hidden_ND.dtype:
        refuse(f"lm_weight_VD is {lm_weight_VD.dtype}, hidden_ND {hidden_ND.dtype}; cast one of them")
    if head_bias_C.shape != head_weight_CD.shape[:1]:
        refuse(f"head_bias_C has shape {tuple(head_bias_C.shape)}, expected [{head_weight_CD.shape[0]}]")
    for name, index, other in (
        ("supervised_index_n", supervised_index_n, target_n),
        ("class_index_S", class_index_S, label_S),
    ):
        if index.dim() != 1 or index.shape != other.shape or index.dtype != torch.int64 or other.dtype != torch.int64:
            refuse(
                f"{name} is {index.dtype} {tuple(index.shape)} beside {other.dtype} {tuple(other.shape)}; "
                "expected two int64 vectors of one length"
            )
    if hidden_ND.device.type == "cpu":
        _check_range("supervised_index_n", supervised_index_n, 0, hidden_ND.shape[0])
        _check_range("class_index_S", class_index_S, 0, hidden_ND.shape[0])
        _check_range("target_n", target_n, 0, lm_weight_VD.shape[0])
        _check_range("label_S", label_S, -1, head_weight_CD.shape[0])


def _check_range(name: str, values: Tensor, low: int, end: int) -> None:
    if values.numel() and (values.min() < low or values.max() >= end):
        raise ValueError(
            f"dual_head_loss: {name} holds values from {values.min()} to {values.max()}, expected {low}..{end - 1}"
        )
