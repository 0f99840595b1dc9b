"""KL divergence of a reference's next-token distribution from the model's, without a tokens x vocabulary tensor.

    KL(π₀ || π) = Σ_v π₀(v) · (log π₀(v) - log π(v))        logits: of the LM head, from the states

Computed in blocks of tokens, their gradient ``(π - π₀) W`` (times the slope of the logits, see
:mod:`clsgen_dist.model.lm_head`) with them in the forward pass: the LM head, which is the same on both sides and not
trained, is not needed by the backward pass. Cost: three products of ``tokens x V x D``, one block of ``[block, V]``
logits twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clsgen_dist.model.lm_head import LMHead

# T tokens, D hidden, V vocabulary

_BLOCK_ELEMENTS = 2**24
"""Logits of a block: 64 MB in fp32."""


def reference_divergence(hidden_TD: Tensor, reference_TD: Tensor, lm_head: LMHead) -> Tensor:
    """``[T]`` divergences, nats, fp32 (fp64 for fp64 states); differentiable once, in ``hidden_TD``.

    Args:
        hidden_TD: states of the model after the final norm.
        reference_TD: states of the reference for the same tokens; no gradient reaches them.
        lm_head: of both; no gradient reaches it.
    """
    divergence_T: Tensor = _Divergence.apply(hidden_TD, reference_TD.detach(), lm_head)
    return divergence_T


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, reference_TD: Tensor, lm_head: LMHead) -> Tensor:
        weight_VD = lm_head.weight_VD
        dtype = torch.promote_types(hidden_TD.dtype, torch.float32)
        gradient_TD, divergence_T = torch.zeros_like(hidden_TD), hidden_TD.new_zeros(len(hidden_TD), dtype=dtype)
        block = max(1, _BLOCK_ELEMENTS // len(weight_VD))
        for start in range(0, len(hidden_TD), block):
            at = slice(start, start + block)
            logits_BV = lm_head.logits(hidden_TD[at]).to(dtype)
            log_p_BV = logits_BV.log_softmax(dim=1)
            log_q_BV = lm_head.logits(reference_TD[at]).to(dtype).log_softmax(dim=1)
            q_BV = log_q_BV.exp()
            divergence_T[at] = (q_BV * (log_q_BV - log_p_BV)).sum(dim=1)
            gradient_BV = (log_p_BV.exp() - q_BV) * lm_head.transform.slope(logits_BV)
            gradient_TD[at] = gradient_BV.to(weight_VD.dtype) @ weight_VD
        ctx.save_for_backward(gradient_TD)
        return divergence_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor, None, None]:
        (gradient_TD,) = ctx.saved_tensors
        return (gradient_TD * grad_T[:, None]).to(gradient_TD.dtype), None, None
