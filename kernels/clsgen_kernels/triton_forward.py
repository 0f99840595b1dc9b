"""The Triton forward kernel. :mod:`clsgen_kernels.fused` launches it and explains the algorithm.

Names end in their shape: n supervised rows, S pooled rows, D hidden, V vocabulary, C class logits, P
splits of the vocabulary.
"""

# mypy: ignore-errors
# Arguments are pointers, tensors and constants of Triton's own language, and carry no types.

from __future__ import annotations

import triton
import triton.language as tl

from clsgen_kernels.inputs import ELSEWHERE
from clsgen_kernels.triton_classes import class_head
from clsgen_kernels.triton_common import LOG2E, add_product, grouped, or_zero, tanh

_ELSEWHERE: tl.constexpr = tl.constexpr(ELSEWHERE)

# Counts that change from batch to batch must not compile new kernels, nor a count of 1 become a constant.
_COUNTS = ["n", "S", "C", "splits", "tiles_per_split", "row_tiles", "class_tiles", "group", "stored_columns"]


@triton.jit(do_not_specialize=_COUNTS)
def forward_kernel(
    # LM head
    hidden_nD,
    weight_VD,
    bias_V,
    target_n,
    token_weight_n,
    # classification head
    pooled_SD,
    head_CD,
    head_bias_C,
    label,
    class_weight_C,
    # partial results of the vocabulary splits, reduced by the last of them to finish
    maximum_Pn,
    total_Pn,
    target_logit_Pn,
    logit_sum_Pn,
    arrived,
    # outputs
    loss_n,
    lse_n,
    hit_n,
    maximum_n,
    target_logit_n,
    logit_sum_n,
    logits_snK,
    offset_Tn,
    class_logits_SC,
    class_loss_S,
    tile_loss,
    n,
    V,
    D,
    S,
    C,
    splits,
    tiles_per_split,
    row_tiles,
    class_tiles,
    group,
    stored_columns,
    slab,
    hidden_stride,
    weight_stride,
    slab_stride,
    logits_stride,
    pooled_stride,
    head_stride,
    label_smoothing,
    smoothing_share,
    z_loss,
    softcap,
    focal_gamma,
    KIND: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_TOKEN_WEIGHT: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    HAS_FOCAL: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    STORE_LOGITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """A tile of rows times all classes, in the first programs, or times a split of the vocabulary."""
    # One function, since a Triton kernel is one: helpers would take and return its dozen running values.
    program = tl.program_id(0)
    if program < class_tiles:
        class_head(
            program, pooled_SD, head_CD, head_bias_C, label, class_weight_C, class_logits_SC, class_loss_S, tile_loss,
            S, C, D, pooled_stride, head_stride, focal_gamma, KIND, HAS_CLASS_WEIGHT, HAS_FOCAL,
            BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
    else:
        row_tile, split = grouped(program - class_tiles, row_tiles, splits, group)
        tile = split * tiles_per_split
        last_tile = tl.minimum(tile + tiles_per_split, tl.cdiv(V, BLOCK_V))
        first_row = row_tile * BLOCK_N
        local_row = tl.arange(0, BLOCK_N)
        local_column = tl.arange(0, BLOCK_V)
        row = first_row + local_row
        row_mask = row < n
        a_descriptor = hidden_nD
        b_descriptor = weight_VD
        if DESCRIPTORS:
            a_descriptor = tl.make_tensor_descriptor(hidden_nD, [n, D], [hidden_stride, 1], [BLOCK_N, BLOCK_D])
            b_descriptor = tl.make_tensor_descriptor(weight_VD, [V, D], [weight_stride, 1], [BLOCK_V, BLOCK_D])
        target = tl.load(target_n + row, mask=row_mask, other=-1)
        beyond = (target >= V) & (target != _ELSEWHERE)
        target = target.to(tl.int32)
        maximum = tl.full((BLOCK_N,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_N,), tl.float32)
        target_logit = tl.zeros((BLOCK_N,), tl.float32)
        logit_sum = tl.zeros((BLOCK_N,), tl.float32)  # for label smoothing
        while tile < last_tile:
            first_column = tile * BLOCK_V
            remaining = V - first_column
            logits = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
            logits = add_product(
                logits, hidden_nD, a_descriptor, hidden_stride, first_row, n,
                weight_VD, b_descriptor, weight_stride, first_column, V, D,
                BLOCK_N, BLOCK_V, BLOCK_D, DESCRIPTORS, PRECISION, WIDEN,
            )  # fmt: skip
            if HAS_BIAS:
                bias = tl.load(bias_V + first_column + local_column, mask=local_column < remaining, other=0.0)
                logits += bias.to(tl.float32)[None, :]
            if HAS_SOFTCAP:
                logits = softcap * tanh(logits / softcap)
            if HAS_SMOOTHING:
                logit_sum += tl.sum(tl.where((local_column < remaining)[None, :], logits, 0.0), axis=1)
            target_logit += tl.sum(
                tl.where(local_column[None, :] == (target - first_column)[:, None], logits, 0.0), axis=1
            )
            logits = tl.where((local_column < remaining)[None, :], logits, float("-inf"))
            tile_maximum = tl.max(logits, axis=1)
            if STORE_LOGITS:
                # Less the tile's largest logit of the row, which is kept in fp32: those that matter are then near 0,
                # where rounding is fine. A tile lies in one slab. The rows of a slab that is not stored are past the
                # end, so nothing is written.
                offset = or_zero(tile_maximum)
                if logits_snK.dtype.element_ty == tl.float32:
                    offset = tl.zeros_like(offset)  # nothing is rounded
                tl.store(offset_Tn + tile.to(tl.int64) * n + row, offset, mask=row_mask)
                below = (logits - offset[:, None]).to(logits_snK.dtype.element_ty)
                number = first_column // slab
                first_local = first_column - number * slab  # not %, which loses that it is a multiple of 16
                stored_nK = logits_snK + number.to(tl.int64) * slab_stride
                stored_row = tl.where(first_column < stored_columns, first_row, n)
                if DESCRIPTORS:
                    tl.make_tensor_descriptor(stored_nK, [n, slab], [logits_stride, 1], [BLOCK_N, BLOCK_V]).store(
                        [stored_row, first_local], below
                    )
                else:
                    tl.store(
                        stored_nK
                        + stored_row.to(tl.int64) * logits_stride
                        + first_local
                        + (local_row[:, None] * logits_stride + local_column[None, :]),
                        below,
                        mask=(local_row < n - stored_row)[:, None],
                    )
            new_maximum = tl.maximum(maximum, tile_maximum)
            base = or_zero(new_maximum)
            total = total * tl.exp2((maximum - base) * LOG2E)
            total += tl.sum(tl.exp2((logits - base[:, None]) * LOG2E), axis=1)
            maximum = new_maximum
            tile += 1

        slot = split * n + row
        tl.store(maximum_Pn + slot, maximum, mask=row_mask)
        tl.store(total_Pn + slot, total, mask=row_mask)
        tl.store(target_logit_Pn + slot, target_logit, mask=row_mask)
        if HAS_SMOOTHING:
            tl.store(logit_sum_Pn + slot, logit_sum, mask=row_mask)
        if HAS_TOKEN_WEIGHT:
            token_weight = tl.load(token_weight_n + row, mask=row_mask, other=0.0).to(tl.float32)
        tl.debug_barrier()  # all threads have written before the program is counted
        if tl.atomic_add(arrived + row_tile, 1, sem="acq_rel", scope="gpu") == splits - 1:
            # The last split to arrive reduces all of them, in order: the result does not depend on which one it is.
            maximum = tl.full((BLOCK_N,), float("-inf"), tl.float32)
            total = tl.zeros((BLOCK_N,), tl.float32)
            target_logit = tl.zeros((BLOCK_N,), tl.float32)
            logit_sum = tl.zeros((BLOCK_N,), tl.float32)
            for part_split in range(splits):
                slot = part_split * n + row
                part_maximum = tl.load(maximum_Pn + slot, mask=row_mask, other=0.0, cache_modifier=".cg")
                part_total = tl.load(total_Pn + slot, mask=row_mask, other=1.0, cache_modifier=".cg")
                new_maximum = tl.maximum(maximum, part_maximum)
                base = or_zero(new_maximum)
                total = total * tl.exp2((maximum - base) * LOG2E) + part_total * tl.exp2((part_maximum - base) * LOG2E)
                maximum = new_maximum
                target_logit += tl.load(target_logit_Pn + slot, mask=row_mask, other=0.0, cache_modifier=".cg")
                if HAS_SMOOTHING:
                    logit_sum += tl.load(logit_sum_Pn + slot, mask=row_mask, other=0.0, cache_modifier=".cg")
            # Outputs of their own: other warps of this program may still read the splits' slots.
            tl.store(maximum_n + row, maximum, mask=row_mask)
            tl.store(target_logit_n + row, target_logit, mask=row_mask)
            if HAS_SMOOTHING:
                tl.store(logit_sum_n + row, logit_sum, mask=row_mask)
            # A target beyond the vocabulary: NaN in loss and, through the log-sum-exp, in the gradients.
            lse = tl.where(beyond, float("nan"), maximum + tl.log(total))
            loss = lse - target_logit
            if HAS_SMOOTHING:
                loss += label_smoothing * target_logit - smoothing_share * logit_sum
            loss += z_loss * lse * lse
            counted = (target >= 0) | beyond
            loss = tl.where(counted, loss, 0.0)
            tl.store(loss_n + row, loss, mask=row_mask)
            tl.store(lse_n + row, lse, mask=row_mask)
            tl.store(hit_n + row, ((target_logit >= maximum) & counted & (lse == lse)).to(tl.int8), mask=row_mask)
            if HAS_TOKEN_WEIGHT:
                loss *= token_weight
            tl.store(tile_loss + class_tiles + row_tile, tl.sum(tl.where(row_mask, loss, 0.0), axis=0))
