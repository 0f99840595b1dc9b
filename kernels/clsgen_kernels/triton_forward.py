"""The Triton forward kernel. :mod:`clsgen_kernels.fused` launches it and explains the algorithm.

Names end in their shape: n supervised rows, S pooled rows, D hidden, V vocabulary, C class logits, R LoRA rank, P
splits of the vocabulary, E the inner dimension of the classification head.
"""

# mypy: ignore-errors
# Arguments are pointers, tensors and constants of Triton's own language, and carry no types.

from __future__ import annotations

import triton
import triton.language as tl

from clsgen_kernels.triton_common import LOG2E, add_product, tanh

# Loss of the classification head, see clsgen_kernels.ClassOptions.
SOFTMAX: tl.constexpr = tl.constexpr(0)
SIGMOID: tl.constexpr = tl.constexpr(1)  # independent logits, targets in a matrix (one logit: binary)
ORDINAL: tl.constexpr = tl.constexpr(2)  # cumulative logits: target of logit c is label > c
SOFT: tl.constexpr = tl.constexpr(3)  # softmax against a distribution over the classes, in a matrix


@triton.jit
def _focal(negative_log, gamma):
    # (1 - p)^γ times -log p
    rest = tl.maximum(1.0 - tl.exp2(-negative_log * LOG2E), 1e-30)
    return negative_log * tl.exp2(gamma * tl.log2(rest))


# Counts that change from batch to batch must not compile new kernels, nor a count of 1 become a constant.
_COUNTS = ["n", "S", "C", "splits", "tiles_per_split", "row_tiles"]


@triton.jit(do_not_specialize=_COUNTS)
def forward_kernel(
    # LM head
    hidden_nD,
    weight_VD,
    bias_V,
    lora_nR,
    lora_VR,
    target_n,
    token_weight_n,
    # classification head
    pooled_SE,
    head_CE,
    head_bias_C,
    label_S,
    label_SC,
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
    logits_nV,
    class_logits_SC,
    class_loss_S,
    tile_loss,
    n,
    V,
    D,
    R,
    S,
    C,
    E,
    splits,
    tiles_per_split,
    row_tiles,
    hidden_stride,
    weight_stride,
    lora_n_stride,
    lora_V_stride,
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
    HAS_LORA: tl.constexpr,
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
    """A tile of rows times a split of the vocabulary, or, in the last programs, times all classes."""
    # One function, since a Triton kernel is one: helpers would take and return its dozen running values.
    program = tl.program_id(0)
    is_lm = program < row_tiles * splits
    # Neighbouring programs share a split of the vocabulary, so that its weights are read into L2 once.
    split = program // row_tiles
    row_tile = program % row_tiles
    a_ptr = hidden_nD
    b_ptr = weight_VD
    a_stride = hidden_stride
    b_stride = weight_stride
    rows = n
    columns = V
    depth = D
    tile = split * tiles_per_split
    last_tile = tl.minimum(tile + tiles_per_split, tl.cdiv(V, BLOCK_V))
    rank = R
    target_ptr = target_n
    if not is_lm:
        row_tile = program - row_tiles * splits
        a_ptr = pooled_SE
        b_ptr = head_CE
        a_stride = pooled_stride
        b_stride = head_stride
        rows = S
        columns = C
        depth = E
        tile = 0
        last_tile = tl.cdiv(C, BLOCK_V)
        rank = 0
        target_ptr = label_S

    first_row = row_tile * BLOCK_N
    local_row = tl.arange(0, BLOCK_N)
    local_column = tl.arange(0, BLOCK_V)
    row = first_row + local_row
    row_mask = row < rows
    a_descriptor = a_ptr
    b_descriptor = b_ptr
    if DESCRIPTORS:
        a_descriptor = tl.make_tensor_descriptor(a_ptr, [rows, depth], [a_stride, 1], [BLOCK_N, BLOCK_D])
        b_descriptor = tl.make_tensor_descriptor(b_ptr, [columns, depth], [b_stride, 1], [BLOCK_V, BLOCK_D])
    target = tl.load(target_ptr + row, mask=row_mask, other=-1).to(tl.int32)
    maximum = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    target_logit = tl.zeros((BLOCK_N,), tl.float32)
    loss = tl.zeros((BLOCK_N,), tl.float32)  # running sum: over independent classes; of the logits, for label smoothing
    while tile < last_tile:
        first_column = tile * BLOCK_V
        remaining = columns - first_column
        logits = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
        logits = add_product(
            logits, a_ptr, a_descriptor, a_stride, first_row, rows,
            b_ptr, b_descriptor, b_stride, first_column, columns, depth,
            BLOCK_N, BLOCK_V, BLOCK_D, DESCRIPTORS, PRECISION, WIDEN,
        )  # fmt: skip
        if HAS_LORA:
            logits = add_product(
                logits, lora_nR, lora_nR, lora_n_stride, first_row, rows,
                lora_VR, lora_VR, lora_V_stride, first_column, columns, rank,
                BLOCK_N, BLOCK_V, BLOCK_D, False, PRECISION, WIDEN,
            )  # fmt: skip
        if is_lm:
            if HAS_BIAS:
                logits += tl.load(bias_V + first_column + local_column, mask=local_column < remaining, other=0.0)[
                    None, :
                ]
            if HAS_SOFTCAP:
                logits = softcap * tanh(logits / softcap)
            if STORE_LOGITS:
                if DESCRIPTORS:
                    tl.make_tensor_descriptor(logits_nV, [n, V], [logits_stride, 1], [BLOCK_N, BLOCK_V]).store(
                        [first_row, first_column], logits.to(logits_nV.dtype.element_ty)
                    )
                else:
                    tl.store(
                        logits_nV
                        + first_row.to(tl.int64) * logits_stride
                        + first_column
                        + (local_row[:, None] * logits_stride + local_column[None, :]),
                        logits.to(logits_nV.dtype.element_ty),
                        mask=row_mask[:, None] & (local_column < remaining)[None, :],
                    )
            if HAS_SMOOTHING:
                loss += tl.sum(tl.where((local_column < remaining)[None, :], logits, 0.0), axis=1)
            target_logit += tl.sum(
                tl.where(local_column[None, :] == (target - first_column)[:, None], logits, 0.0), axis=1
            )
            logits = tl.where((local_column < remaining)[None, :], logits, float("-inf"))
            new_maximum = tl.maximum(maximum, tl.max(logits, axis=1))
            total = total * tl.exp2((maximum - new_maximum) * LOG2E)
            total += tl.sum(tl.exp2((logits - new_maximum[:, None]) * LOG2E), axis=1)
            maximum = new_maximum
        else:
            # One column at a time: classes are few, and a tile of addresses would fill the registers.
            for local in range(tl.minimum(remaining, BLOCK_V)):
                column = first_column + local
                logit = tl.sum(tl.where(local_column[None, :] == local, logits, 0.0), axis=1)
                logit += tl.load(head_bias_C + column)
                tl.store(class_logits_SC + row * C + column, logit, mask=row_mask)
                if KIND == SOFTMAX or KIND == SOFT:  # noqa: SIM109, Triton compares one by one
                    new_maximum = tl.maximum(maximum, logit)
                    total = total * tl.exp2((maximum - new_maximum) * LOG2E) + tl.exp2((logit - new_maximum) * LOG2E)
                    maximum = new_maximum
                if KIND == SOFTMAX:
                    target_logit = tl.where(target == column, logit, target_logit)
                elif KIND == SOFT:
                    share = tl.load(label_SC + row * C + column, mask=row_mask, other=0.0)
                    if HAS_CLASS_WEIGHT:
                        share *= tl.load(class_weight_C + column)
                    target_logit += share * logit
                    loss += share
                else:
                    if KIND == SIGMOID:
                        class_target = tl.load(label_SC + row * C + column, mask=row_mask, other=-1.0)
                    else:
                        class_target = tl.where(target > column, 1.0, 0.0)
                    # log(1 + e^x) - x y, without overflow
                    part = tl.maximum(logit, 0.0) + tl.log(1.0 + tl.exp2(-tl.abs(logit) * LOG2E)) - logit * class_target
                    part = tl.where(class_target >= 0, part, 0.0)
                    if HAS_FOCAL:
                        part = _focal(part, focal_gamma)
                    if HAS_CLASS_WEIGHT:
                        part *= tl.load(class_weight_C + column)
                    loss += part
        tile += 1

    if is_lm:
        slot = split * n + row
        tl.store(maximum_Pn + slot, maximum, mask=row_mask)
        tl.store(total_Pn + slot, total, mask=row_mask)
        tl.store(target_logit_Pn + slot, target_logit, mask=row_mask)
        if HAS_SMOOTHING:
            tl.store(logit_sum_Pn + slot, loss, mask=row_mask)
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
                total = total * tl.exp2((maximum - new_maximum) * LOG2E) + part_total * tl.exp2(
                    (part_maximum - new_maximum) * LOG2E
                )
                maximum = new_maximum
                target_logit += tl.load(target_logit_Pn + slot, mask=row_mask, other=0.0, cache_modifier=".cg")
                if HAS_SMOOTHING:
                    logit_sum += tl.load(logit_sum_Pn + slot, mask=row_mask, other=0.0, cache_modifier=".cg")
            # The first split's slot keeps the result: a sharded vocabulary reduces it further, over the ranks.
            tl.store(maximum_Pn + row, maximum, mask=row_mask)
            tl.store(target_logit_Pn + row, target_logit, mask=row_mask)
            if HAS_SMOOTHING:
                tl.store(logit_sum_Pn + row, logit_sum, mask=row_mask)
            lse = maximum + tl.log(total)
            loss = lse - target_logit
            if HAS_SMOOTHING:
                loss += label_smoothing * target_logit - smoothing_share * logit_sum
            loss += z_loss * lse * lse
            counted = target >= 0
            loss = tl.where(counted, loss, 0.0)
            tl.store(loss_n + row, loss, mask=row_mask)
            tl.store(lse_n + row, lse, mask=row_mask)
            tl.store(hit_n + row, ((target_logit >= maximum) & counted).to(tl.int8), mask=row_mask)
            if HAS_TOKEN_WEIGHT:
                loss *= tl.load(token_weight_n + row, mask=row_mask, other=0.0)
            tl.store(tile_loss + row_tile, tl.sum(tl.where(row_mask, loss, 0.0), axis=0))
    else:
        if KIND == SOFT:
            loss = (maximum + tl.log(total)) * loss - target_logit
        if KIND == SOFTMAX:
            loss = maximum + tl.log(total) - target_logit
            if HAS_FOCAL:
                loss = _focal(loss, focal_gamma)
            if HAS_CLASS_WEIGHT:
                loss *= tl.load(class_weight_C + target, mask=row_mask & (target >= 0), other=0.0)
        loss = tl.where(target >= 0, loss, 0.0)
        tl.store(class_loss_S + row, loss, mask=row_mask)
        tl.store(tile_loss + row_tiles + row_tile, tl.sum(tl.where(row_mask, loss, 0.0), axis=0))
