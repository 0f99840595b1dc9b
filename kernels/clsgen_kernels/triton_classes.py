"""The classification head in the Triton forward: a branch and tile of its own, which take no registers of the LM's.

Names end in their shape: S pooled rows, D hidden, C class logits.
"""

# mypy: ignore-errors
# Arguments are pointers, tensors and constants of Triton's own language, and carry no types.

from __future__ import annotations

import triton
import triton.language as tl

from clsgen_kernels.triton_common import LOG2E, add_product

# Loss of the classification head, see clsgen_kernels.ClassOptions.
SOFTMAX: tl.constexpr = tl.constexpr(0)
SIGMOID: tl.constexpr = tl.constexpr(1)  # independent logits, targets in a matrix (one logit: binary)
ORDINAL: tl.constexpr = tl.constexpr(2)  # cumulative logits: target of logit c is label > c
SOFT: tl.constexpr = tl.constexpr(3)  # softmax against a distribution over the classes, in a matrix
BLOCK_C: tl.constexpr = tl.constexpr(16)  # columns at a time: the narrowest that a matrix product takes


@triton.jit
def _focal(negative_log, gamma):
    # (1 - p)^γ times -log p
    rest = tl.maximum(1.0 - tl.exp2(-negative_log * LOG2E), 1e-30)
    return negative_log * tl.exp2(gamma * tl.log2(rest))


@triton.jit
def class_head(
    row_tile,
    pooled_SD,
    head_CD,
    head_bias_C,
    label_ptr,
    class_weight_C,
    class_logits_SC,
    class_loss_S,
    tile_loss,
    S,
    C,
    D,
    pooled_stride,
    head_stride,
    focal_gamma,
    KIND: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_FOCAL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Logits and losses of a tile of rows, multiplied at fp32 precision whatever the dtypes.

    ``label_ptr``: ``[S]`` classes, or ``[S, C]`` targets for SIGMOID and SOFT. A label out of range makes its loss NaN.
    """
    first_row = row_tile * BLOCK_N
    row = first_row + tl.arange(0, BLOCK_N)
    row_mask = row < S
    local_column = tl.arange(0, BLOCK_C)
    label = tl.zeros((BLOCK_N,), tl.int32)
    if KIND == SOFTMAX or KIND == ORDINAL:  # noqa: SIM109, Triton compares one by one
        label = tl.load(label_ptr + row, mask=row_mask, other=-1).to(tl.int32)
    elif KIND == SOFT:
        unknown = tl.load(label_ptr + row * C, mask=row_mask & (C > 0), other=-1.0).to(tl.float32) < 0
        label = tl.where(unknown, -1, 0)
    maximum = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    target_logit = tl.zeros((BLOCK_N,), tl.float32)
    loss = tl.zeros((BLOCK_N,), tl.float32)
    for first_column in range(0, C, BLOCK_C):
        logits = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        logits = add_product(
            logits, pooled_SD, pooled_SD, pooled_stride, first_row, S,
            head_CD, head_CD, head_stride, first_column, C, D,
            BLOCK_N, BLOCK_C, BLOCK_D, False, PRECISION, True,
        )  # fmt: skip
        for local in range(tl.minimum(C - first_column, BLOCK_C)):
            column = first_column + local
            logit = tl.sum(tl.where(local_column[None, :] == local, logits, 0.0), axis=1)
            logit += tl.load(head_bias_C + column).to(tl.float32)
            tl.store(class_logits_SC + row * C + column, logit, mask=row_mask)
            if KIND == SOFTMAX or KIND == SOFT:  # noqa: SIM109
                new_maximum = tl.maximum(maximum, logit)
                total = total * tl.exp2((maximum - new_maximum) * LOG2E) + tl.exp2((logit - new_maximum) * LOG2E)
                maximum = new_maximum
            if KIND == SOFTMAX:
                target_logit = tl.where(label == column, logit, target_logit)
            elif KIND == SOFT:
                share = tl.load(label_ptr + row * C + column, mask=row_mask, other=0.0).to(tl.float32)
                share = tl.where(share > 1.0, float("nan"), share)
                if HAS_CLASS_WEIGHT:
                    share *= tl.load(class_weight_C + column)
                target_logit += share * logit
                loss += share
            else:
                if KIND == SIGMOID:
                    target = tl.load(label_ptr + row * C + column, mask=row_mask, other=-1.0).to(tl.float32)
                    target = tl.where(target > 1.0, float("nan"), target)
                else:
                    target = tl.where(label > column, 1.0, 0.0)
                # log(1 + e^x) - x y, without overflow
                part = tl.maximum(logit, 0.0) + tl.log(1.0 + tl.exp2(-tl.abs(logit) * LOG2E)) - logit * target
                part = tl.where(target < 0, 0.0, part)
                if HAS_FOCAL:
                    part = _focal(part, focal_gamma)
                if HAS_CLASS_WEIGHT:
                    part *= tl.load(class_weight_C + column)
                loss += part
    if KIND == SOFT:
        loss = (maximum + tl.log(total)) * loss - target_logit
    if KIND == SOFTMAX:
        loss = maximum + tl.log(total) - target_logit
        if HAS_FOCAL:
            loss = _focal(loss, focal_gamma)
        if HAS_CLASS_WEIGHT:
            loss *= tl.load(class_weight_C + label, mask=(label >= 0) & (label < C), other=0.0)
        loss = tl.where(label < C, loss, float("nan"))
    if KIND == ORDINAL:
        loss = tl.where(label <= C, loss, float("nan"))
    loss = tl.where(label >= 0, loss, 0.0)
    tl.store(class_loss_S + row, loss, mask=row_mask)
    tl.store(tile_loss + row_tile, tl.sum(tl.where(row_mask, loss, 0.0), axis=0))
