"""Cross-entropy of a linear layer's outputs, without the outputs: the LM loss alone, for those who want only that.

Named as in torch's ``F.linear_cross_entropy``, apple's cut-cross-entropy and Liger, as far as those agree.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from clsgen_kernels import tiled
from clsgen_kernels.dual_head import compute
from clsgen_kernels.inputs import IGNORE, Call, ClassOptions, Execution, GenerationOptions, Tensors

# N targets, n of them counted, D hidden, V vocabulary


class LinearCrossEntropyOutput(NamedTuple):
    """What :func:`linear_cross_entropy` returns if more than the loss is asked for; None where it is not."""

    loss: Tensor
    lse: Tensor | None
    """Log-sum-exp of each target's logits, in the targets' shape, 0 where ignored; not differentiable."""
    z_loss: Tensor | None
    """The part of ``loss`` that is z-loss, reduced as the loss is; not differentiable."""
    predicted_tokens: Tensor | None
    """int64, the most likely token for each target, -1 where ignored."""


@overload
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = ...,
    reduction: Literal["mean", "sum", "none"] = ...,
    shift: bool | int = ...,
    label_smoothing: float = ...,
    z_loss: float = ...,
    softcap: float | None = ...,
    logit_scale: float = ...,
    return_lse: Literal[False] = ...,
    return_z_loss: Literal[False] = ...,
    return_predicted_tokens: Literal[False] = ...,
    impl: str = ...,
    execution: Execution = ...,
) -> Tensor: ...


@overload
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = ...,
    reduction: Literal["mean", "sum", "none"] = ...,
    shift: bool | int = ...,
    label_smoothing: float = ...,
    z_loss: float = ...,
    softcap: float | None = ...,
    logit_scale: float = ...,
    return_lse: bool = ...,
    return_z_loss: bool = ...,
    return_predicted_tokens: bool = ...,
    impl: str = ...,
    execution: Execution = ...,
) -> Tensor | LinearCrossEntropyOutput: ...


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = IGNORE,
    reduction: Literal["mean", "sum", "none"] = "mean",
    shift: bool | int = False,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    return_lse: bool = False,
    return_z_loss: bool = False,
    return_predicted_tokens: bool = False,
    impl: str = "auto",
    execution: Execution = Execution(),  # noqa: B008, it is frozen
) -> Tensor | LinearCrossEntropyOutput:
    """``cross_entropy(linear(hidden, weight, bias), target)``, in fp32, of the targets that count.

    Args:
        hidden: ``[..., D]`` states, any float dtype.
        weight: ``[V, D]``, same dtype.
        target: int64 ``[...]``, in ``[0, V)`` or ``ignore_index``.
        bias: ``[V]``, or None.
        ignore_index: a target that is left out. Others below 0 are refused, on the CPU.
        reduction: ``"none"``: in the targets' shape, 0 where ignored; ``"sum"``; ``"mean"`` over those that count, 0
            without any (where torch gives NaN).
        shift: the state at a position predicts the target this many further (True: 1), along the last dimension of
            ``target``; the result of ``"none"`` is that much shorter.
        label_smoothing, z_loss, softcap, logit_scale: see :class:`clsgen_kernels.GenerationOptions`.
        return_lse, return_z_loss, return_predicted_tokens: return a :class:`LinearCrossEntropyOutput`. The predicted
            tokens cost one more GEMM pass.
        impl, execution: as of :func:`clsgen_kernels.dual_head_loss`; no shards for predicted tokens.

    Ignored targets cost nothing. On a GPU finding them waits for the device; :func:`clsgen_kernels.dual_head_loss`
    takes positions instead. Under ``torch.compile``, where shapes must be known, they are computed and multiplied by 0.

    Class weights and class probabilities as targets are not supported: multiply the result of ``reduction="none"``.

    Raises:
        ValueError: shapes, dtypes or options that do not match; a target out of range (checked on the CPU only).
    """
    _check(hidden, target, reduction, int(shift))
    if shift:
        hidden, target = hidden[..., : -int(shift), :], target[..., int(shift) :]
    hidden_ND, target_N = hidden.flatten(0, -2), target.flatten()
    options = GenerationOptions(label_smoothing, z_loss, softcap, logit_scale)
    counted_N = target_N != ignore_index
    if torch.compiler.is_compiling():
        index_n, target_n = torch.arange(len(target_N), device=target.device), target_N.where(counted_N, IGNORE)
        count: Tensor | int = counted_N.sum().clamp(min=1)
    else:
        index_n = counted_N.nonzero()[:, 0]
        target_n, count = target_N[index_n], max(1, len(index_n))
        if target.device.type == "cpu" and len(target_n) and target_n.min() < 0:
            raise ValueError(
                f"linear_cross_entropy: target holds {int(target_n.min())}, expected 0..{len(weight) - 1} or "
                f"ignore_index {ignore_index}; pass the value that stands for no target as ignore_index"
            )
    given = _without_classes(hidden_ND, weight, bias, index_n, target_n)
    results = compute(given, Call(impl, options, ClassOptions(), reduction != "none", execution))

    def full(values_n: Tensor, rest: float = 0) -> Tensor:
        return values_n.new_full(target_N.shape, rest).index_copy(0, index_n, values_n).view(target.shape)

    def reduced(values_n: Tensor) -> Tensor:
        return full(values_n) if reduction == "none" else values_n.sum() / (count if reduction == "mean" else 1)

    loss = reduced(results.loss)
    if not (return_lse or return_z_loss or return_predicted_tokens):
        return loss
    lse_n = results.lse_n.where(target_n != IGNORE, 0)
    return LinearCrossEntropyOutput(
        loss,
        full(lse_n) if return_lse else None,
        reduced(z_loss * lse_n**2) if return_z_loss else None,
        full(_predicted(given, options, target_n), -1) if return_predicted_tokens else None,
    )


def _check(hidden: Tensor, target: Tensor, reduction: str, shift: int) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}, expected 'mean', 'sum' or 'none'; fix it")
    if target.shape != hidden.shape[:-1]:
        raise ValueError(
            f"linear_cross_entropy: target has shape {tuple(target.shape)}, expected {tuple(hidden.shape[:-1])} as "
            f"hidden has {tuple(hidden.shape)}; one target for each state"
        )
    if hidden.dim() < 2:
        raise ValueError(
            f"linear_cross_entropy: hidden has shape {tuple(hidden.shape)}, expected [..., D] with a dimension of "
            "positions; add one: hidden[None], target[None]"
        )
    if not 0 <= shift < max(1, target.shape[-1]):
        raise ValueError(
            f"linear_cross_entropy: shift is {shift}, expected 0 to {target.shape[-1] - 1}, within the last "
            "dimension of target; lower it, or drop it"
        )


def _without_classes(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, index_n: Tensor, target_n: Tensor
) -> Tensors:
    """A call without rows to classify."""
    none = target_n.new_empty(0)
    return Tensors(
        hidden_ND=hidden_ND,
        lm_weight_VD=weight_VD,
        head_weight_CD=hidden_ND.new_zeros(1, hidden_ND.shape[1]).detach(),
        head_bias_C=hidden_ND.new_zeros(1).detach(),
        lm_bias_V=bias_V,
        supervised_index_n=index_n,
        target_n=target_n,
        class_index_S=none,
        label_S=none,
        dropout_scale_SD=None,
        token_weight_n=None,
    )


@torch.no_grad()
def _predicted(given: Tensors, options: GenerationOptions, target_n: Tensor) -> Tensor:
    """``[n]`` the most likely tokens, -1 where ignored; the first of equals. A scale or a soft cap changes none."""
    found_n = tiled.most_likely(given.hidden_ND[given.supervised_index_n], given.lm_weight_VD, given.lm_bias_V)
    return found_n.where(target_n != IGNORE, -1)
