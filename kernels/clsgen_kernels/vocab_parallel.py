"""Move tokens, not weights: the LM head stays sharded by vocabulary rows, and is never gathered.

Rank r keeps the rows ``W_r [V_r, D]`` (in rank order, ragged if need be). Its supervised states go to all ranks, each
computes every token's share over its own rows, and what is reduced is three numbers a token:

    lse   = max_r lse_r + log Σ_r exp(lse_r - max)          logit_t = that of the rank that owns t
    dH_n  = Σ_r (G_r W_r)     reduce-scattered to the tokens' ranks
    dW_r  = G_rᵀ H            complete where it is: already sharded

Seven collectives whatever the ranks' token counts, none included: forward, counts, states, targets, maxima, sums;
backward, upstream gradients, hidden gradients. Traffic per rank, n tokens over all: ``n·D`` states in, ``n·D`` fp32
gradients through, instead of ``V·D`` weights in and ``V·D`` gradients out.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from clsgen_kernels.inputs import Forward, LMGradients, LMInputs

# n supervised tokens of all ranks, m of this one, M the most of any, D hidden, V vocabulary, r ranks

_ELSEWHERE = 2**30
"""A target that another rank's rows hold: counted, and found in no column here."""


class Shares(NamedTuple):
    """How tokens and vocabulary are spread over the group."""

    group: Any
    tokens: list[int]
    first_row: int
    """Of this rank's vocabulary rows."""
    vocabulary: int

    @property
    def mine(self) -> slice:
        """This rank's tokens among all."""
        rank = dist.get_rank(self.group)
        start = sum(self.tokens[:rank])
        return slice(start, start + self.tokens[rank])


def gather(lm: LMInputs, group: Any) -> tuple[LMInputs, Shares]:
    """All ranks' tokens beside this rank's vocabulary rows; targets count from its first row."""
    if lm.bias_V is not None or lm.lora_nR is not None:
        raise ValueError("impl 'vocab_parallel' takes no LM bias and no adapter on the LM head; use another impl")
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    counts = torch.tensor([lm.hidden_nD.shape[0], lm.weight_VD.shape[0]], device=lm.hidden_nD.device)
    all_counts = torch.empty(ranks, 2, dtype=counts.dtype, device=counts.device)
    dist.all_gather_into_tensor(all_counts, counts[None], group=group)
    tokens, rows = all_counts.T.tolist()
    if 0 in rows:
        raise ValueError(f"the ranks hold {rows} vocabulary rows, expected at least one each; use fewer ranks")
    shares = Shares(group, tokens, sum(rows[:rank]), sum(rows))
    hidden_nD, target_n = _all_gather(lm.hidden_nD, shares), _all_gather(lm.target_n, shares)
    local_n = target_n - shares.first_row
    here_n = (local_n >= 0) & (local_n < rows[rank])
    local_n = torch.where(target_n >= 0, torch.where(here_n, local_n, _ELSEWHERE), target_n)
    return lm._replace(hidden_nD=hidden_nD, target_n=local_n, vocabulary=shares.vocabulary), shares


def forward(lm: LMInputs, shares: Shares, part: Forward) -> tuple[Forward, Tensor]:
    """This rank's losses and hits from all ranks' parts; and all tokens' ``lse_n``, which the backward needs."""
    maxima_2n = torch.stack([part.lse_n, part.maximum_n])
    dist.all_reduce(maxima_2n, dist.ReduceOp.MAX, group=shares.group)
    sums = [torch.exp(part.lse_n - maxima_2n[0]), part.target_logit_n]
    if part.logit_sum_n is not None:
        sums.append(part.logit_sum_n)
    sums_kn = torch.stack(sums)
    dist.all_reduce(sums_kn, group=shares.group)
    lse_n = maxima_2n[0] + sums_kn[0].log()
    mine = shares.mine
    out = lm.losses(lm.target_n[mine], lse_n[mine], maxima_2n[1, mine], *(s[mine] for s in sums_kn[1:]))
    return out, lse_n


def backward(
    lm: LMInputs, shares: Shares, lse_n: Tensor, upstream_m: Tensor, saved: Tensor | None, local: ModuleType, **how: Any
) -> LMGradients:
    """Gradients of this rank's tokens' states and of its vocabulary rows, by ``local``'s backward."""
    upstream_n = _all_gather(upstream_m, shares)
    grads: LMGradients = local.backward(lm, lse_n, upstream_n, saved, **how)
    most, width = max(shares.tokens), lm.hidden_nD.shape[1]
    padded_rMD = grads.hidden_nD.new_zeros(len(shares.tokens), most, width)
    for into, rows in zip(padded_rMD, grads.hidden_nD.split(shares.tokens), strict=True):
        into[: rows.shape[0]] = rows
    grad_MD = torch.empty_like(padded_rMD[0])
    dist.reduce_scatter_tensor(grad_MD, padded_rMD.view(-1, width), group=shares.group)
    return grads._replace(hidden_nD=grad_MD[: upstream_m.shape[0]])


def _all_gather(rows: Tensor, shares: Shares) -> Tensor:
    """All ranks' rows, in rank order, without the padding that the collective needs."""
    most = max(shares.tokens)
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    everything = rows.new_empty(len(shares.tokens) * most, *rows.shape[1:])
    dist.all_gather_into_tensor(everything, padded, group=shares.group)
    kept = everything.view(len(shares.tokens), most, *rows.shape[1:])
    return torch.cat([part[:count] for part, count in zip(kept, shares.tokens, strict=True)])
