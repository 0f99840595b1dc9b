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
import torch.distributed as dist
from torch import Tensor

from clsgen_kernels.inputs import ELSEWHERE, Forward, LMGradients, LMInputs

# n supervised tokens of all ranks, m of this rank, M the maximum over ranks, D hidden, V vocabulary, r ranks


class Sharding(NamedTuple):
    """How tokens and vocabulary are distributed over the group."""

    group: Any
    tokens: list[int]
    first_row: int
    """This rank's first vocabulary row."""
    vocabulary: int

    @property
    def local(self) -> slice:
        """This rank's tokens among all ranks'."""
        rank = dist.get_rank(self.group)
        start = sum(self.tokens[:rank])
        return slice(start, start + self.tokens[rank])


def gather(lm: LMInputs, group: Any) -> tuple[LMInputs, Sharding]:
    """All ranks' tokens with this rank's vocabulary rows; targets are relative to its first row."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    counts = torch.tensor([lm.hidden_nD.shape[0], lm.weight_VD.shape[0]], device=lm.hidden_nD.device)
    all_counts = torch.empty(ranks, 2, dtype=counts.dtype, device=counts.device)
    dist.all_gather_into_tensor(all_counts, counts[None], group=group)
    tokens, rows = all_counts.T.tolist()
    if 0 in rows:
        raise ValueError(f"the ranks hold {rows} vocabulary rows, expected at least one each; use fewer ranks")
    sharding = Sharding(group, tokens, sum(rows[:rank]), sum(rows))
    hidden_nD, target_n = _all_gather(lm.hidden_nD, sharding), _all_gather(lm.target_n, sharding)
    local_n = target_n - sharding.first_row
    here_n = (local_n >= 0) & (local_n < rows[rank])
    # A target beyond the whole vocabulary keeps its number, which the loss turns into NaN.
    elsewhere_n = (target_n >= 0) & (target_n < sharding.vocabulary) & ~here_n
    local_n = torch.where(here_n, local_n, target_n).masked_fill(elsewhere_n, ELSEWHERE)
    return lm._replace(hidden_nD=hidden_nD, target_n=local_n, vocabulary=sharding.vocabulary), sharding


def forward(lm: LMInputs, sharding: Sharding, part: Forward) -> tuple[Forward, Tensor]:
    """This rank's losses and hits from all ranks' partial results, and all tokens' ``lse_n`` for the backward."""
    maxima_2n = torch.stack([part.lse_n, part.maximum_n])
    dist.all_reduce(maxima_2n, dist.ReduceOp.MAX, group=sharding.group)
    sums = [torch.exp(part.lse_n - maxima_2n[0]), part.target_logit_n]
    if part.logit_sum_n is not None:
        sums.append(part.logit_sum_n)
    sums_kn = torch.stack(sums)
    dist.all_reduce(sums_kn, group=sharding.group)
    lse_n = maxima_2n[0] + sums_kn[0].log()
    mine = sharding.local
    out = lm.losses(lm.target_n[mine], lse_n[mine], maxima_2n[1, mine], *(s[mine] for s in sums_kn[1:]))
    return out, lse_n


def backward(
    lm: LMInputs,
    sharding: Sharding,
    lse_n: Tensor,
    upstream_m: Tensor,
    saved: Tensor | None,
    local: ModuleType,
    **options: Any,
) -> LMGradients:
    """Gradients of this rank's hidden states and vocabulary rows, computed by ``local.backward``."""
    upstream_n = _all_gather(upstream_m, sharding)
    grads: LMGradients = local.backward(lm, lse_n, upstream_n, saved, **options)
    most, width = max(sharding.tokens), lm.hidden_nD.shape[1]
    padded_rMD = grads.hidden_nD.new_zeros(len(sharding.tokens), most, width)
    for into, rows in zip(padded_rMD, grads.hidden_nD.split(sharding.tokens), strict=True):
        into[: rows.shape[0]] = rows
    grad_MD = torch.empty_like(padded_rMD[0])
    dist.reduce_scatter_tensor(grad_MD, padded_rMD.view(-1, width), group=sharding.group)
    return grads._replace(hidden_nD=grad_MD[: upstream_m.shape[0]])


def _all_gather(rows: Tensor, sharding: Sharding) -> Tensor:
    """All ranks' rows in rank order, without the padding that the collective needs."""
    most = max(sharding.tokens)
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    gathered = rows.new_empty(len(sharding.tokens) * most, *rows.shape[1:])
    dist.all_gather_into_tensor(gathered, padded, group=sharding.group)
    kept = gathered.view(len(sharding.tokens), most, *rows.shape[1:])
    return torch.cat([part[:count] for part, count in zip(kept, sharding.tokens, strict=True)])
