"""Move tokens, not weights: the LM head stays sharded by vocabulary rows and is never gathered.

Rank r holds the rows ``W_r [V_r, D]`` (in rank order, possibly ragged). Supervised states are all-gathered, each rank
computes partial sums of every token over its own rows, and three numbers per token are all-reduced:

    lse   = max_r lse_r + log Σ_r exp(lse_r - max)          logit_t from the rank that owns t
    dH_n  = Σ_r (G_r W_r)     reduce-scattered to the tokens' ranks
    dW_r  = G_rᵀ H            complete on its rank, no collective

Seven collectives whatever the ranks' token counts (zero is allowed): forward, counts, states, targets, maxima, sums;
backward, upstream gradients, hidden gradients. Traffic per rank, n tokens over all ranks: ``n·D`` states received,
``n·D`` fp32 gradients reduce-scattered, instead of ``V·D`` weights received and ``V·D`` gradients sent.

The technique is Megatron-LM's vocabulary-parallel cross-entropy (Shoeybi et al. 2019, arXiv 1909.08053, section 3).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clsgen_kernels.inputs import ELSEWHERE, Forward, LMGradients, LMInputs
from clsgen_kernels.vocab_shards import VocabShards

# n supervised tokens of all ranks, m of this rank, D hidden, V vocabulary, r ranks


class Gathered(NamedTuple):
    """How the tokens of all ranks are distributed over them."""

    shards: VocabShards
    tokens: list[int]

    @property
    def local(self) -> slice:
        """This rank's tokens among all ranks'."""
        rank = self.shards.ranks.rank
        start = sum(self.tokens[:rank])
        return slice(start, start + self.tokens[rank])


def gather(lm: LMInputs, shards: VocabShards) -> tuple[LMInputs, Gathered]:
    """All ranks' tokens with this rank's vocabulary rows; targets are relative to its first row."""
    ranks = shards.ranks
    (tokens,) = ranks.counts(lm.hidden_nD.shape[0], device=lm.hidden_nD.device)
    hidden_nD, target_n = ranks.all_gather(lm.hidden_nD, tokens), ranks.all_gather(lm.target_n, tokens)
    local_n = target_n - shards.first_row
    here_n = (local_n >= 0) & (local_n < shards.held)
    # A target beyond the whole vocabulary keeps its number, which the loss turns into NaN.
    elsewhere_n = (target_n >= 0) & (target_n < shards.vocabulary) & ~here_n
    local_n = torch.where(here_n, local_n, target_n).masked_fill(elsewhere_n, ELSEWHERE)
    return lm._replace(hidden_nD=hidden_nD, target_n=local_n, vocabulary=shards.vocabulary), Gathered(shards, tokens)


def forward(lm: LMInputs, gathered: Gathered, part: Forward) -> tuple[Forward, Tensor]:
    """This rank's losses and hits from all ranks' partial results, and all tokens' ``lse_n`` for the backward."""
    ranks = gathered.shards.ranks
    maxima_2n = ranks.maxima(torch.stack([part.lse_n, part.maximum_n]))
    sums = [torch.exp(part.lse_n - maxima_2n[0]), part.target_logit_n]
    if part.logit_sum_n is not None:
        sums.append(part.logit_sum_n)
    sums_kn = ranks.sums(torch.stack(sums))
    lse_n = maxima_2n[0] + sums_kn[0].log()
    mine = gathered.local
    out = lm.losses(lm.target_n[mine], lse_n[mine], maxima_2n[1, mine], *(s[mine] for s in sums_kn[1:]))
    return out, lse_n


def backward(
    lm: LMInputs,
    gathered: Gathered,
    lse_n: Tensor,
    upstream_m: Tensor,
    stored_snK: Tensor | None,
    local: ModuleType,
    **options: Any,
) -> LMGradients:
    """Gradients of this rank's hidden states and vocabulary rows, computed by ``local.backward``."""
    ranks, tokens = gathered.shards.ranks, gathered.tokens
    grads: LMGradients = local.backward(lm, lse_n, ranks.all_gather(upstream_m, tokens), stored_snK, **options)
    return grads._replace(hidden_nD=ranks.reduce_scatter(grads.hidden_nD, tokens))
