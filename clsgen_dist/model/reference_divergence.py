"""KL divergence of a reference's next-token distribution from the model's, without a tokens x vocabulary tensor.

    KL(π₀ || π) = Σ_v π₀(v) · (log π₀(v) - log π(v))        logits: of the LM head, from the states

Computed in blocks of tokens, their gradient ``(π - π₀) W`` (times the slope of the logits, see
:mod:`clsgen_dist.model.lm_head`) with them in the forward pass: the LM head, which is the same on both sides and not
trained, is not needed by the backward pass. Cost: three products of ``tokens x V x D``, one block of ``[block, V]``
logits twice. With an LM head in shards every rank takes all ranks' tokens, and its own rows of W.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from clsgen_kernels import VocabShards
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
        lm_head: of both; no gradient reaches it. In shards it makes this collective.
    """
    divergence_T: Tensor = _Divergence.apply(hidden_TD, reference_TD.detach(), lm_head)
    return divergence_T


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, reference_TD: Tensor, lm_head: LMHead) -> Tensor:
        if lm_head.shards is None:
            divergence_T, gradient_TD = _in_blocks(hidden_TD, reference_TD, lm_head)
        else:
            ranks = lm_head.shards.ranks
            (tokens,) = ranks.counts(len(hidden_TD), device=hidden_TD.device)
            every_TD, every_reference_TD = (ranks.all_gather(states, tokens) for states in (hidden_TD, reference_TD))
            divergence_T, gradient_TD = _in_blocks(every_TD, every_reference_TD, lm_head)
            gradient_TD = ranks.reduce_scatter(gradient_TD, tokens)
            divergence_T = ranks.sums(divergence_T).split(tokens)[ranks.rank]
        ctx.save_for_backward(gradient_TD.to(hidden_TD.dtype))
        return divergence_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor, None, None]:
        (gradient_TD,) = ctx.saved_tensors
        return (gradient_TD * grad_T[:, None]).to(gradient_TD.dtype), None, None


def _in_blocks(hidden_TD: Tensor, reference_TD: Tensor, lm_head: LMHead) -> tuple[Tensor, Tensor]:
    """Divergences ``[T]`` and their gradients ``[T, D]``: those parts of the sums that this rank's rows give."""
    shards, weight_VD, bias_V = lm_head.shards, lm_head.weight_VD, lm_head.bias_V
    dtype = torch.promote_types(hidden_TD.dtype, torch.float32)
    # Added to the wide products, which are not rounded again.
    wide_bias = 0 if bias_V is None else bias_V.to(dtype)
    divergence_T = hidden_TD.new_zeros(len(hidden_TD), dtype=dtype)
    gradient_TD = torch.zeros_like(hidden_TD, dtype=hidden_TD.dtype if shards is None else dtype)
    starts = (0, len(weight_VD)) if shards is None else shards.starts
    most = max(end - start for start, end in itertools.pairwise(starts))  # ranks with fewer rows take the same blocks
    block = max(1, _BLOCK_ELEMENTS // most)
    for start in range(0, len(hidden_TD), block):
        at = slice(start, start + block)
        logits_BV, reference_BV = (
            lm_head.transform((states[at].to(weight_VD.dtype) @ weight_VD.T).to(dtype) + wide_bias)
            for states in (hidden_TD, reference_TD)
        )
        log_p_BV, log_q_BV = _log_softmax(logits_BV, shards), _log_softmax(reference_BV, shards)
        q_BV = log_q_BV.exp()
        divergence_T[at] = (q_BV * (log_q_BV - log_p_BV)).sum(dim=1)
        gradient_BV = (log_p_BV.exp() - q_BV) * lm_head.transform.slope(logits_BV)
        gradient_TD[at] = gradient_BV.to(weight_VD.dtype) @ weight_VD
    return divergence_T, gradient_TD


def _log_softmax(logits_BV: Tensor, shards: VocabShards | None) -> Tensor:
    """``[B, V]`` log-probabilities, over the rows of all ranks."""
    if shards is None:
        return logits_BV.log_softmax(dim=1)
    lse_B = logits_BV.logsumexp(dim=1)
    most_B = shards.ranks.maxima(lse_B.clone())
    lse_B = most_B + shards.ranks.sums(torch.exp(lse_B - most_B)).log()
    return logits_BV - lse_B[:, None]
