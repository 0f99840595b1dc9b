"""Device code: three Triton kernels, nothing else. :mod:`clsgen_kernels.fused` launches them and says why.

Names end in their shape: n supervised rows, S pooled rows, D hidden, V vocabulary, C class logits, R LoRA rank, P
splits, E the inner dimension of the classification side.
Row offsets are 64 bit: 262144 rows of 8192 already pass 2³¹.
"""

# mypy: ignore-errors
# Arguments are pointers, tensors and constants of Triton's own language, and carry no types.

from __future__ import annotations

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)

# What a row's loss is made of.
SOFTMAX: tl.constexpr = tl.constexpr(0)
SIGMOID: tl.constexpr = tl.constexpr(1)  # independent logits, targets in a matrix (one logit: binary)
ORDINAL: tl.constexpr = tl.constexpr(2)  # cumulative logits: target of logit c is label > c


@triton.jit
def _dot(a, b, sum, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    # The interpreter multiplies the raw bits of bf16 operands: there they are widened first.
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sum, input_precision=PRECISION)


@triton.jit
def _add_product(
    sum,
    a_ptr,
    a_descriptor,
    a_stride,
    a_first,
    a_rows,
    b_ptr,
    b_descriptor,
    b_stride,
    b_first,
    b_rows,
    depth,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """``sum + a @ b.T`` along the whole inner dimension, of a tile of rows of each.

    Through tensor descriptors (the copy engine computes addresses and fills zeros past the end), or through pointers: a
    64-bit scalar and 32-bit offsets, since tensors of pointers would fill the registers.
    """
    if DESCRIPTORS:
        for start in range(0, depth, BLOCK_D):
            a = a_descriptor.load([a_first, start])
            b = b_descriptor.load([b_first, start])
            sum = _dot(a, b.T, sum, PRECISION, WIDEN)
    else:
        a_row = tl.arange(0, BLOCK_A)
        b_row = tl.arange(0, BLOCK_B)
        inner = tl.arange(0, BLOCK_D)
        a_ptr += a_first.to(tl.int64) * a_stride
        b_ptr += b_first.to(tl.int64) * b_stride
        for start in range(0, depth, BLOCK_D):
            inside = inner < depth - start
            a = tl.load(
                a_ptr + start + (a_row[:, None] * a_stride + inner[None, :]),
                mask=(a_row < a_rows - a_first)[:, None] & inside[None, :],
                other=0.0,
            )
            b = tl.load(
                b_ptr + start + (b_row[None, :] * b_stride + inner[:, None]),
                mask=(b_row < b_rows - b_first)[None, :] & inside[:, None],
                other=0.0,
            )
            sum = _dot(a, b, sum, PRECISION, WIDEN)
    return sum


@triton.jit
def _tanh(x):
    # 1 - 2 / (e^2x + 1): right at both ends, where e^2x is 0 or infinite.
    return 1.0 - 2.0 / (tl.exp2(x * (2.0 * LOG2E)) + 1.0)


@triton.jit
def _focal(negative_log, gamma):
    # (1 - p)^γ times -log p
    rest = tl.maximum(1.0 - tl.exp2(-negative_log * LOG2E), 1e-30)
    return negative_log * tl.exp2(gamma * tl.log2(rest))


# Counts that change from batch to batch make no new kernels, and a count of 1 no constant.
_FORWARD_COUNTS = ["n", "S", "C", "splits", "tiles_per_split", "row_tiles"]
_BACKWARD_COUNTS = ["n", "width"]
_MATMUL_COUNTS = ["rows", "columns", "depth"]


@triton.jit(do_not_specialize=_FORWARD_COUNTS)
def forward_kernel(
    # the vocabulary's side
    hidden_nD,
    weight_VD,
    bias_V,
    lora_nR,
    lora_VR,
    target_n,
    token_weight_n,
    # the classification side
    pooled_SE,
    head_CE,
    head_bias_C,
    label_S,
    label_SC,
    class_weight_C,
    # what the vocabulary's splits leave for the last of them
    maximum_Pn,
    total_Pn,
    target_logit_Pn,
    logit_sum_Pn,
    arrived,
    # results
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
    """A tile of rows times a share of the columns: of the vocabulary, or, in the last programs, of the classes."""
    program = tl.program_id(0)
    is_lm = program < row_tiles * splits
    # Neighbours share a split of the vocabulary, so that its weights are read once into L2.
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
    loss = tl.zeros((BLOCK_N,), tl.float32)  # so far: of independent classes; for smoothing, the sum of the logits
    while tile < last_tile:
        first_column = tile * BLOCK_V
        left = columns - first_column
        logits = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
        logits = _add_product(
            logits, a_ptr, a_descriptor, a_stride, first_row, rows,
            b_ptr, b_descriptor, b_stride, first_column, columns, depth,
            BLOCK_N, BLOCK_V, BLOCK_D, DESCRIPTORS, PRECISION, WIDEN,
        )  # fmt: skip
        if HAS_LORA:
            logits = _add_product(
                logits, lora_nR, lora_nR, lora_n_stride, first_row, rows,
                lora_VR, lora_VR, lora_V_stride, first_column, columns, rank,
                BLOCK_N, BLOCK_V, BLOCK_D, False, PRECISION, WIDEN,
            )  # fmt: skip
        if is_lm:
            if HAS_BIAS:
                logits += tl.load(bias_V + first_column + local_column, mask=local_column < left, other=0.0)[None, :]
            if HAS_SOFTCAP:
                logits = softcap * _tanh(logits / softcap)
            if STORE_LOGITS:
                tl.store(
                    logits_nV
                    + first_row.to(tl.int64) * V
                    + first_column
                    + (local_row[:, None] * V + local_column[None, :]),
                    logits.to(logits_nV.dtype.element_ty),
                    mask=row_mask[:, None] & (local_column < left)[None, :],
                )
            if HAS_SMOOTHING:
                loss += tl.sum(tl.where((local_column < left)[None, :], logits, 0.0), axis=1)
            target_logit += tl.sum(
                tl.where(local_column[None, :] == (target - first_column)[:, None], logits, 0.0), axis=1
            )
            logits = tl.where((local_column < left)[None, :], logits, float("-inf"))
            new_maximum = tl.maximum(maximum, tl.max(logits, axis=1))
            total = total * tl.exp2((maximum - new_maximum) * LOG2E)
            total += tl.sum(tl.exp2((logits - new_maximum[:, None]) * LOG2E), axis=1)
            maximum = new_maximum
        else:
            # A column at a time: classes are few, and a tile of addresses would fill the registers.
            for local in range(tl.minimum(left, BLOCK_V)):
                column = first_column + local
                logit = tl.sum(tl.where(local_column[None, :] == local, logits, 0.0), axis=1)
                logit += tl.load(head_bias_C + column)
                tl.store(class_logits_SC + row * C + column, logit, mask=row_mask)
                if KIND == SOFTMAX:
                    new_maximum = tl.maximum(maximum, logit)
                    total = total * tl.exp2((maximum - new_maximum) * LOG2E) + tl.exp2((logit - new_maximum) * LOG2E)
                    maximum = new_maximum
                    target_logit = tl.where(target == column, logit, target_logit)
                else:
                    if KIND == SIGMOID:
                        wanted = tl.load(label_SC + row * C + column, mask=row_mask, other=-1.0)
                    else:
                        wanted = tl.where(target > column, 1.0, 0.0)
                    # log(1 + e^x) - x y, without overflow
                    part = tl.maximum(logit, 0.0) + tl.log(1.0 + tl.exp2(-tl.abs(logit) * LOG2E)) - logit * wanted
                    part = tl.where(wanted >= 0, part, 0.0)
                    if HAS_FOCAL:
                        part = _focal(part, focal_gamma)
                    if HAS_CLASS_WEIGHT:
                        part *= tl.load(class_weight_C + column)
                    loss += part
        tile += 1

    if is_lm:
        place = split * n + row
        tl.store(maximum_Pn + place, maximum, mask=row_mask)
        tl.store(total_Pn + place, total, mask=row_mask)
        tl.store(target_logit_Pn + place, target_logit, mask=row_mask)
        if HAS_SMOOTHING:
            tl.store(logit_sum_Pn + place, loss, mask=row_mask)
        tl.debug_barrier()  # every thread's part is written before the program is counted
        if tl.atomic_add(arrived + row_tile, 1, sem="acq_rel", scope="gpu") == splits - 1:
            # The last split to arrive folds all of them, in their order: the result does not depend on who it is.
            maximum = tl.full((BLOCK_N,), float("-inf"), tl.float32)
            total = tl.zeros((BLOCK_N,), tl.float32)
            target_logit = tl.zeros((BLOCK_N,), tl.float32)
            logit_sum = tl.zeros((BLOCK_N,), tl.float32)
            for part_split in range(splits):
                place = part_split * n + row
                part_maximum = tl.load(maximum_Pn + place, mask=row_mask, other=0.0, cache_modifier=".cg")
                part_total = tl.load(total_Pn + place, mask=row_mask, other=1.0, cache_modifier=".cg")
                new_maximum = tl.maximum(maximum, part_maximum)
                total = total * tl.exp2((maximum - new_maximum) * LOG2E) + part_total * tl.exp2(
                    (part_maximum - new_maximum) * LOG2E
                )
                maximum = new_maximum
                target_logit += tl.load(target_logit_Pn + place, mask=row_mask, other=0.0, cache_modifier=".cg")
                if HAS_SMOOTHING:
                    logit_sum += tl.load(logit_sum_Pn + place, mask=row_mask, other=0.0, cache_modifier=".cg")
            # The folded sums stay in the first split's place: a sharded vocabulary folds on over the ranks.
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
        if KIND == SOFTMAX:
            loss = maximum + tl.log(total) - target_logit
            if HAS_FOCAL:
                loss = _focal(loss, focal_gamma)
            if HAS_CLASS_WEIGHT:
                loss *= tl.load(class_weight_C + target, mask=row_mask & (target >= 0), other=0.0)
        loss = tl.where(target >= 0, loss, 0.0)
        tl.store(class_loss_S + row, loss, mask=row_mask)
        tl.store(tile_loss + row_tiles + row_tile, tl.sum(tl.where(row_mask, loss, 0.0), axis=0))


@triton.jit(do_not_specialize=_BACKWARD_COUNTS)
def gradient_kernel(
    hidden_nD,
    weight_VD,
    bias_V,
    lora_nR,
    lora_VR,
    target_n,
    lse_n,
    upstream_n,
    logits_nV,
    grad_nK,
    n,
    V,
    D,
    R,
    first,
    width,
    hidden_stride,
    weight_stride,
    lora_n_stride,
    lora_V_stride,
    grad_stride,
    label_smoothing,
    smoothing_share,
    z_loss,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_LORA: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    STORED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Gradient of the losses by the raw logits ``[n, first:first+width]``, recomputed or from the stored logits."""
    first_row = tl.program_id(0) * BLOCK_N
    first_local = tl.program_id(1) * BLOCK_V
    local_row = tl.arange(0, BLOCK_N)
    local_column = tl.arange(0, BLOCK_V)
    row = first_row + local_row
    column = first + first_local + local_column
    row_mask = row < n
    column_mask = local_column < width - first_local
    mask = row_mask[:, None] & column_mask[None, :]
    if STORED:
        logits = tl.load(
            logits_nV
            + first_row.to(tl.int64) * V
            + (first + first_local)
            + (local_row[:, None] * V + local_column[None, :]),
            mask=mask,
            other=0.0,
        ).to(tl.float32)
    else:
        end = first + width
        a_descriptor = hidden_nD
        b_descriptor = weight_VD
        if DESCRIPTORS:
            a_descriptor = tl.make_tensor_descriptor(hidden_nD, [n, D], [hidden_stride, 1], [BLOCK_N, BLOCK_D])
            b_descriptor = tl.make_tensor_descriptor(weight_VD, [end, D], [weight_stride, 1], [BLOCK_V, BLOCK_D])
        logits = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
        logits = _add_product(
            logits, hidden_nD, a_descriptor, hidden_stride, first_row, n,
            weight_VD, b_descriptor, weight_stride, first + first_local, end, D,
            BLOCK_N, BLOCK_V, BLOCK_D, DESCRIPTORS, PRECISION, WIDEN,
        )  # fmt: skip
        if HAS_LORA:
            logits = _add_product(
                logits, lora_nR, lora_nR, lora_n_stride, first_row, n,
                lora_VR, lora_VR, lora_V_stride, first + first_local, end, R,
                BLOCK_N, BLOCK_V, BLOCK_D, False, PRECISION, WIDEN,
            )  # fmt: skip
        if HAS_BIAS:
            logits += tl.load(bias_V + column, mask=column_mask, other=0.0)[None, :]
        if HAS_SOFTCAP:
            logits = softcap * _tanh(logits / softcap)
    target = tl.load(target_n + row, mask=row_mask, other=-1).to(tl.int32)
    lse = tl.load(lse_n + row, mask=row_mask, other=0.0)
    upstream = tl.load(upstream_n + row, mask=row_mask, other=0.0)
    upstream = tl.where(target >= 0, upstream, 0.0)
    grad = tl.exp2((logits - lse[:, None]) * LOG2E) * (1.0 + 2.0 * z_loss * lse)[:, None] - smoothing_share
    grad -= tl.where(column[None, :] == target[:, None], 1.0 - label_smoothing, 0.0)
    if HAS_SOFTCAP:
        ratio = logits / softcap
        grad *= 1.0 - ratio * ratio
    grad *= upstream[:, None]
    tl.store(
        grad_nK
        + first_row.to(tl.int64) * grad_stride
        + first_local
        + (local_row[:, None] * grad_stride + local_column[None, :]),
        grad.to(grad_nK.dtype.element_ty),
        mask=mask,
    )


@triton.jit(do_not_specialize=_MATMUL_COUNTS)
def matmul_kernel(
    a,
    b,
    out,
    rows,
    columns,
    depth,
    a_row_stride,
    a_inner_stride,
    b_inner_stride,
    b_column_stride,
    out_stride,
    ACCUMULATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """``out (+)= a @ b``, summed in fp32, each element written once by one program."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    row_mask = row < rows
    column_mask = column < columns
    a_ptrs = a + row.to(tl.int64)[:, None] * a_row_stride + inner.to(tl.int64)[None, :] * a_inner_stride
    b_ptrs = b + inner.to(tl.int64)[:, None] * b_inner_stride + column.to(tl.int64)[None, :] * b_column_stride
    sum = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, depth, BLOCK_K):
        inside = inner < depth - start
        left = tl.load(a_ptrs, mask=row_mask[:, None] & inside[None, :], other=0.0)
        right = tl.load(b_ptrs, mask=inside[:, None] & column_mask[None, :], other=0.0)
        sum = _dot(left, right, sum, PRECISION, WIDEN)
        a_ptrs += BLOCK_K * a_inner_stride
        b_ptrs += BLOCK_K * b_inner_stride
    out_ptrs = out + row.to(tl.int64)[:, None] * out_stride + column[None, :]
    mask = row_mask[:, None] & column_mask[None, :]
    if ACCUMULATE:
        sum += tl.load(out_ptrs, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptrs, sum.to(out.dtype.element_ty), mask=mask)
