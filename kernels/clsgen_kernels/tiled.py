"""Vocabulary-tiled cross-entropy over supervised rows: the CPU path, and the fallback where Triton is not available.

    loss_i = lse_i - h_i·w_{t_i},   lse_i = log Σ_v exp(h_i·w_v)
    dh_i   = g_i (Σ_v p_iv w_v - w_{t_i}),   dW_v = Σ_i g_i (p_iv - [v = t_i]) h_i

The ``n x V`` logits are never materialised: each tile of the vocabulary is multiplied, reduced into a running maximum
and sum (online softmax, Milakov & Gimelshein 2018, arXiv 1805.02867) and discarded.

Cost, in GEMM passes of ``2·n·D·V`` FLOPs, and memory in addition to the gradients:

- LM weight trained: 1 pass forward, 2 backward (dh, dW) with stored logits, 3 where they are recomputed; ``n·tile``
  floats. They are stored as multiplied, before bias and soft cap, so the gradients are those of recomputed ones.
- LM weight frozen (LoRA on the backbone): the forward also carries ``E_i = Σ_v p_iv w_v`` along its online softmax, so
  it takes 2 passes and the backward none: ``dh_i = g_i ((1 + 2 z lse_i) E_i - w_{t_i})``; ``n·tile + n·D`` floats.
  With smoothing or a soft cap it recomputes instead: 1 and 2 passes.
- No gradient required: 1 pass.

Per-token upstream gradients ``g_i`` are exact in every case.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clsgen_kernels.inputs import ELSEWHERE, Forward, GenerationOptions, LMGradients, LMInputs

# n supervised tokens, D hidden, V vocabulary, T vocabulary rows of one tile

_TILE_ELEMENTS = 2**21  # logits in memory at a time: 8 MiB in fp32, about the last-level cache of a core
_TILE_ROWS = (512, 8192)


def tile_rows(n_tokens: int, vocabulary: int) -> int:
    """Vocabulary rows per tile: one tile of logits fits in the cache, within bounds that keep GEMM efficient."""
    low, high = _TILE_ROWS
    return min(vocabulary, max(low, min(high, _TILE_ELEMENTS // max(n_tokens, 1))))


def can_carry_expectation(options: GenerationOptions) -> bool:
    """Whether the expected output embedding is enough to compute the hidden states' gradient."""
    return options.label_smoothing == 0 and options.softcap is None


def forward(lm: LMInputs, *, tile: int, carry_expectation: bool = False, stored_snK: Tensor | None = None) -> Forward:
    """Losses, log-sum-exps and hits; with ``carry_expectation``, ``E [n, D]`` is returned.

    Logits of the first tiles are left in ``stored_snK``, whose K is the tile.
    """
    hidden_nD, weight_VD, target_n, options = lm.hidden_nD, lm.weight_VD, lm.target_n, lm.options
    n, vocabulary = hidden_nD.shape[0], weight_VD.shape[0]
    wide = torch.promote_types(hidden_nD.dtype, torch.float32)
    maximum_n = hidden_nD.new_full((n,), -torch.inf, dtype=wide)
    total_n = hidden_nD.new_zeros((n,), dtype=wide)
    logit_sum_n = torch.zeros_like(total_n) if options.label_smoothing else None
    target_logit_n = torch.zeros_like(total_n)
    expected_nD = torch.zeros_like(hidden_nD, dtype=wide) if carry_expectation else None
    buffer = hidden_nD.new_empty(n * tile)
    for number, start in enumerate(range(0, vocabulary, tile)):
        product_nT = _product(lm, start, tile, buffer)
        if (stored_nT := _stored(stored_snK, number, product_nT.shape[1])) is not None:
            stored_nT.copy_(product_nT)
        logits_nT = _logits(lm, start, product_nT, wide)
        column_n, inside_n = _columns(target_n, start, logits_nT.shape[1])
        target_logit_n += torch.where(inside_n, logits_nT.gather(1, column_n[:, None])[:, 0], 0)
        if logit_sum_n is not None:
            logit_sum_n += logits_nT.sum(dim=1)
        new_maximum_n = torch.maximum(maximum_n, logits_nT.amax(dim=1))
        # Not minus infinity, where a bias excludes all so far.
        base_n = new_maximum_n.masked_fill(new_maximum_n == -torch.inf, 0)
        rescale_n = torch.exp(maximum_n - base_n)
        exp_nT = logits_nT.sub_(base_n[:, None]).exp_()
        total_n.mul_(rescale_n).add_(exp_nT.sum(dim=1))
        if expected_nD is not None:
            expected_nD.mul_(rescale_n[:, None])
            _add_matmul(expected_nD, exp_nT, weight_VD[start : start + tile])
        maximum_n = new_maximum_n
    if expected_nD is not None:
        expected_nD.div_(total_n[:, None])
    # A target beyond the vocabulary: NaN in the loss and, through the log-sum-exp, in the gradients.
    beyond_n = (target_n >= vocabulary) & (target_n != ELSEWHERE)
    lse_n = (maximum_n + total_n.log()).masked_fill(beyond_n, torch.nan)
    return lm.losses(target_n, lse_n, maximum_n, target_logit_n, logit_sum_n)._replace(expected_nD=expected_nD)


def backward_from_expectation(lm: LMInputs, lse_n: Tensor, upstream_n: Tensor, expected_nD: Tensor) -> LMGradients:
    """The hidden states' gradient when the LM weight is frozen."""
    target_embedding_nD = lm.weight_VD[lm.target_n.clamp(0, len(lm.weight_VD) - 1)].to(expected_nD.dtype)
    scale_n = 1 + 2 * lm.options.z_loss * lse_n
    upstream_n = torch.where(lm.target_n >= 0, upstream_n, 0)
    return LMGradients((expected_nD * scale_n[:, None] - target_embedding_nD) * upstream_n[:, None])


def backward(
    lm: LMInputs,
    lse_n: Tensor,
    upstream_n: Tensor,
    stored_snK: Tensor | None,
    *,
    tile: int,
    weight_grad_VD: Tensor | None = None,
    accumulates: bool = False,
    hidden_grad_nD: Tensor | None = None,
) -> LMGradients:
    """Gradients of the weighted losses, each vocabulary row of ``dW`` written once, that of the hidden states in fp32.

    Args:
        lm: what the forward got.
        lse_n: log-sum-exps of the forward.
        upstream_n: gradient of each token's loss.
        stored_snK: logits that the forward stored; those of other tiles are recomputed.
        tile: vocabulary rows of a tile.
        weight_grad_VD: ``dW`` is written here, unless None. Its memory may hold the stored logits, in the way that
            :mod:`clsgen_kernels.stored_logits` describes.
        accumulates: ``dW`` is added to ``weight_grad_VD``, which is fp32.
        hidden_grad_nD: memory for the hidden states' gradient.
    """
    hidden_nD, weight_VD, options = lm.hidden_nD, lm.weight_VD, lm.options
    n, vocabulary = hidden_nD.shape[0], weight_VD.shape[0]
    wide = lse_n.dtype
    grad_nD = torch.zeros_like(hidden_nD, dtype=wide) if hidden_grad_nD is None else hidden_grad_nD.zero_()
    grad_bias_V = None if lm.bias_V is None else torch.empty_like(lm.bias_V, dtype=wide)
    buffer = hidden_nD.new_empty(n * tile)
    rows_n = torch.arange(n, device=hidden_nD.device)
    upstream_n = torch.where(lm.target_n >= 0, upstream_n, 0)
    for number, start in enumerate(range(0, vocabulary, tile)):
        part = slice(start, min(start + tile, vocabulary))
        if (stored_nT := _stored(stored_snK, number, part.stop - start)) is not None:
            product_nT = buffer[: stored_nT.numel()].view(stored_nT.shape).copy_(stored_nT)
        else:
            product_nT = _product(lm, start, tile, buffer)
        logits_nT = _logits(lm, start, product_nT, wide)
        slope_nT = None if options.softcap is None else 1 - (logits_nT / options.softcap) ** 2
        grad_nT = logits_nT.sub_(lse_n[:, None]).exp_().mul_((upstream_n * (1 + 2 * options.z_loss * lse_n))[:, None])
        # Tokens whose target lies outside this tile subtract zero from its first column: no data-dependent shape.
        column_n, inside_n = _columns(lm.target_n, start, grad_nT.shape[1])
        grad_nT[rows_n, column_n] -= (1 - options.label_smoothing) * upstream_n * inside_n
        if options.label_smoothing:
            grad_nT -= (options.label_smoothing / lm.vocabulary * upstream_n)[:, None]
        if slope_nT is not None:
            grad_nT *= slope_nT
        narrow_nT = grad_nT.to(hidden_nD.dtype)
        if weight_grad_VD is not None and accumulates:
            weight_grad_VD[part] += narrow_nT.T @ hidden_nD
        elif weight_grad_VD is not None:
            torch.mm(narrow_nT.T, hidden_nD, out=weight_grad_VD[part])
        _add_matmul(grad_nD, narrow_nT, weight_VD[part])
        if grad_bias_V is not None:
            torch.sum(grad_nT, dim=0, out=grad_bias_V[part])
    return LMGradients(grad_nD, weight_grad_VD, grad_bias_V)


def most_likely(hidden_nD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """int64 ``[n]``: the row of ``hidden @ weight.T + bias`` that is largest, the first of equals; one GEMM pass."""
    n, vocabulary = hidden_nD.shape[0], weight_VD.shape[0]
    options = GenerationOptions()
    lm = LMInputs(hidden_nD, weight_VD, hidden_nD.new_zeros(n, dtype=torch.int64), bias_V, options, vocabulary)
    wide, tile = torch.promote_types(hidden_nD.dtype, torch.float32), tile_rows(n, vocabulary)
    best_n = hidden_nD.new_full((n,), -torch.inf, dtype=wide)
    found_n = torch.zeros_like(lm.target_n)
    buffer = hidden_nD.new_empty(n * tile)
    for start in range(0, vocabulary, tile):
        top_n, column_n = _logits(lm, start, _product(lm, start, tile, buffer), wide).max(dim=1)
        found_n = torch.where(top_n > best_n, column_n + start, found_n)
        best_n = torch.maximum(best_n, top_n)
    return found_n


def _product(lm: LMInputs, start: int, tile: int, buffer: Tensor) -> Tensor:
    weight_TD = lm.weight_VD[start : start + tile]
    n, count = lm.hidden_nD.shape[0], weight_TD.shape[0]
    return torch.mm(lm.hidden_nD, weight_TD.T, out=buffer[: n * count].view(n, count))


def _stored(stored_snK: Tensor | None, number: int, count: int) -> Tensor | None:
    """``[n, count]`` where the products of a tile are stored, if they are."""
    return stored_snK[number, :, :count] if stored_snK is not None and number < len(stored_snK) else None


def _logits(lm: LMInputs, start: int, product_nT: Tensor, wide: torch.dtype) -> Tensor:
    """The products with bias and soft cap, in place if they have the wide dtype."""
    logits_nT = product_nT.to(wide)
    if lm.bias_V is not None:
        logits_nT += lm.bias_V[start : start + logits_nT.shape[1]].to(wide)
    if lm.options.softcap is not None:
        logits_nT.div_(lm.options.softcap).tanh_().mul_(lm.options.softcap)
    return logits_nT


def _columns(target_n: Tensor, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Each target's column in the tile (0 if outside), and whether it is inside."""
    column_n = target_n - start
    inside_n = (column_n >= 0) & (column_n < count) & (target_n >= 0)
    return column_n.where(inside_n, 0), inside_n


def _add_matmul(sum_nD: Tensor, left_nT: Tensor, right_TD: Tensor) -> None:
    """``sum += left @ right``: the product in the weight's dtype, the addition in that of ``sum``."""
    if sum_nD.dtype == right_TD.dtype:
        sum_nD.addmm_(left_nT, right_TD)
    else:
        sum_nD.add_(left_nT.to(right_TD.dtype) @ right_TD)
