"""Vocabulary-tiled cross-entropy over supervised rows: the CPU path, and the fallback wherever Triton is not.

    loss_i = lse_i - h_i·w_{t_i},   lse_i = log Σ_v exp(h_i·w_v)
    dh_i   = g_i (Σ_v p_iv w_v - w_{t_i}),   dW_v = Σ_i g_i (p_iv - [v = t_i]) h_i

The ``n x V`` logits never exist: a tile of the vocabulary is multiplied, folded into a running maximum and sum (the
online softmax, Milakov & Gimelshein 2018, arXiv 1805.02867) and dropped.

Price, in GEMM passes of ``2·n·D·V`` FLOPs, and extra memory besides the gradients:

- LM weight trained: 1 pass forward, 3 backward (recompute, dh, dW); ``n·tile`` floats.
- LM weight frozen (LoRA): the forward also carries ``E_i = Σ_v p_iv w_v`` along its online softmax, so it takes 2
  passes and the backward none: ``dh_i = g_i (E_i - w_{t_i})``; ``n·tile + n·D`` floats.
- No gradient wanted: 1 pass.

Per-token upstream gradients ``g_i`` are exact in every case.
"""

from __future__ import annotations

import torch
from torch import Tensor

# n supervised tokens, D hidden, V vocabulary, T vocabulary rows of one tile

_TILE_ELEMENTS = 2**21  # logits held at a time: 8 MiB in fp32, around the last-level cache of a core
_TILE_ROWS = (512, 8192)


def tile_rows(n_tokens: int, vocabulary: int) -> int:
    """Vocabulary rows per tile so that one tile of logits stays cache-sized, within bounds GEMM likes."""
    low, high = _TILE_ROWS
    return min(vocabulary, max(low, min(high, _TILE_ELEMENTS // max(n_tokens, 1))))


def forward(
    hidden_nD: Tensor, weight_VD: Tensor, target_n: Tensor, tile: int, *, carry_expectation: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Losses ``[n]``, log-sum-exps ``[n]`` and, if asked, the expected output embedding ``E [n, D]``; all fp32."""
    n, vocabulary = hidden_nD.shape[0], weight_VD.shape[0]
    wide = torch.promote_types(hidden_nD.dtype, torch.float32)
    maximum_n = hidden_nD.new_full((n,), -torch.inf, dtype=wide)
    total_n = hidden_nD.new_zeros((n,), dtype=wide)
    expected_nD = torch.zeros_like(hidden_nD, dtype=wide) if carry_expectation else None
    buffer = hidden_nD.new_empty(n * tile)
    for start in range(0, vocabulary, tile):
        weight_TD = weight_VD[start : start + tile]
        logits_nT = _logits(hidden_nD, weight_TD, buffer, wide)
        new_maximum_n = torch.maximum(maximum_n, logits_nT.amax(dim=1))
        rescale_n = torch.exp(maximum_n - new_maximum_n)
        exp_nT = logits_nT.sub_(new_maximum_n[:, None]).exp_()
        total_n.mul_(rescale_n).add_(exp_nT.sum(dim=1))
        if expected_nD is not None:
            expected_nD.mul_(rescale_n[:, None])
            _add_matmul(expected_nD, exp_nT, weight_TD)
        maximum_n = new_maximum_n
    if expected_nD is not None:
        expected_nD.div_(total_n[:, None])
    lse_n = maximum_n + total_n.log()
    target_logit_n = (hidden_nD.to(wide) * weight_VD[target_n].to(wide)).sum(dim=1)
    return lse_n - target_logit_n, lse_n, expected_nD


def backward_frozen_weight(expected_nD: Tensor, weight_VD: Tensor, target_n: Tensor, upstream_n: Tensor) -> Tensor:
    """``dh_i = g_i (E_i - w_{t_i})``, fp32 ``[n, D]``."""
    return (expected_nD - weight_VD[target_n].to(expected_nD.dtype)) * upstream_n[:, None]


def backward(
    hidden_nD: Tensor, weight_VD: Tensor, target_n: Tensor, lse_n: Tensor, upstream_n: Tensor, tile: int
) -> tuple[Tensor, Tensor]:
    """Gradients ``dh [n, D]`` (fp32) and ``dW [V, D]`` (the weight's dtype, each row written once)."""
    n, vocabulary = hidden_nD.shape[0], weight_VD.shape[0]
    wide = lse_n.dtype
    grad_hidden_nD = torch.zeros_like(hidden_nD, dtype=wide)
    grad_weight_VD = torch.empty_like(weight_VD)
    buffer = hidden_nD.new_empty(n * tile)
    rows_n = torch.arange(n, device=hidden_nD.device)
    for start in range(0, vocabulary, tile):
        weight_TD = weight_VD[start : start + tile]
        grad_nT = _logits(hidden_nD, weight_TD, buffer, wide).sub_(lse_n[:, None]).exp_().mul_(upstream_n[:, None])
        # Tokens whose target lies outside this tile subtract zero from its first column: no data-dependent shape.
        column_n = target_n - start
        inside_n = (column_n >= 0) & (column_n < weight_TD.shape[0])
        grad_nT[rows_n, column_n.where(inside_n, 0)] -= upstream_n * inside_n
        narrow_nT = grad_nT.to(hidden_nD.dtype)
        torch.mm(narrow_nT.T, hidden_nD, out=grad_weight_VD[start : start + tile])
        _add_matmul(grad_hidden_nD, narrow_nT, weight_TD)
    return grad_hidden_nD, grad_weight_VD


def _logits(hidden_nD: Tensor, weight_TD: Tensor, buffer: Tensor, wide: torch.dtype) -> Tensor:
    out_nT = buffer[: hidden_nD.shape[0] * weight_TD.shape[0]].view(hidden_nD.shape[0], weight_TD.shape[0])
    return torch.mm(hidden_nD, weight_TD.T, out=out_nT).to(wide)


def _add_matmul(sum_nD: Tensor, left_nT: Tensor, right_TD: Tensor) -> None:
    """``sum += left @ right``, the product in the weight's dtype, the sum in the sum's."""
    if sum_nD.dtype == right_TD.dtype:
        sum_nD.addmm_(left_nT, right_TD)
    else:
        sum_nD.add_(left_nT.to(right_TD.dtype) @ right_TD)
