"""The Triton backward kernels: the gradient of the logits, and the matrix product that multiplies it with H and W.

:mod:`clsgen_kernels.fused` launches them. Names end in their shape: n supervised rows, D hidden, V vocabulary, K
slab of the vocabulary.
"""

# mypy: ignore-errors
# Arguments are pointers, tensors and constants of Triton's own language, and carry no types.

from __future__ import annotations

import triton
import triton.language as tl

from clsgen_kernels.triton_common import LOG2E, add_product, dot, grouped, tanh

# Counts that change from batch to batch must not compile new kernels, nor a count of 1 become a constant.
_GRADIENT_COUNTS = ["n", "width", "group"]
_MATMUL_COUNTS = ["rows", "columns", "depth"]


@triton.jit(do_not_specialize=_GRADIENT_COUNTS)
def gradient_kernel(
    hidden_nD,
    weight_VD,
    bias_V,
    target_n,
    lse_n,
    upstream_n,
    logits_nK,
    offset_Tn,
    grad_nK,
    n,
    V,
    D,
    first,
    width,
    group,
    hidden_stride,
    weight_stride,
    logits_stride,
    grad_stride,
    label_smoothing,
    smoothing_share,
    z_loss,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    STORED: tl.constexpr,
    STORED_COLUMNS: tl.constexpr,
    WIDTH_BY_16: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Gradient of the losses with respect to the raw logits ``[n, first:first+width]``, recomputed or stored."""
    # One function, since a Triton kernel is one, and half of it is its arguments.
    if WIDTH_BY_16:
        width = width // 16 * 16  # as in matmul_kernel
    row_tile, tile = grouped(tl.program_id(0), tl.cdiv(n, BLOCK_N), tl.cdiv(width, BLOCK_V), group)
    first_row = row_tile * BLOCK_N
    first_local = tile * BLOCK_V
    local_row = tl.arange(0, BLOCK_N)
    local_column = tl.arange(0, BLOCK_V)
    row = first_row + local_row
    column = first + first_local + local_column
    row_mask = row < n
    column_mask = local_column < width - first_local
    mask = row_mask[:, None] & column_mask[None, :]
    if STORED:
        if DESCRIPTORS:
            stored = tl.make_tensor_descriptor(logits_nK, [n, width], [logits_stride, 1], [BLOCK_N, BLOCK_V]).load(
                [first_row, first_local]
            )
        else:
            stored = tl.load(
                logits_nK
                + first_row.to(tl.int64) * logits_stride
                + first_local
                + (local_row[:, None] * logits_stride + local_column[None, :]),
                mask=mask,
                other=0.0,
            )
        # Each is stored less an offset of its row and its tile of the forward, STORED_COLUMNS wide.
        offset_Tn += row
        if STORED_COLUMNS % BLOCK_V == 0:
            first_tile = (first + first_local) // STORED_COLUMNS
            offset = tl.load(offset_Tn + first_tile.to(tl.int64) * n, mask=row_mask, other=0.0)[:, None]
        else:
            offset = tl.load(
                offset_Tn[:, None] + (column // STORED_COLUMNS).to(tl.int64)[None, :] * n, mask=mask, other=0.0
            )
        logits = stored.to(tl.float32) + offset
    else:
        end = first + width
        a_descriptor = hidden_nD
        b_descriptor = weight_VD
        if DESCRIPTORS:
            a_descriptor = tl.make_tensor_descriptor(hidden_nD, [n, D], [hidden_stride, 1], [BLOCK_N, BLOCK_D])
            b_descriptor = tl.make_tensor_descriptor(weight_VD, [end, D], [weight_stride, 1], [BLOCK_V, BLOCK_D])
        logits = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
        logits = add_product(
            logits, hidden_nD, a_descriptor, hidden_stride, first_row, n,
            weight_VD, b_descriptor, weight_stride, first + first_local, end, D,
            BLOCK_N, BLOCK_V, BLOCK_D, DESCRIPTORS, PRECISION, WIDEN,
        )  # fmt: skip
        if HAS_BIAS:
            logits += tl.load(bias_V + column, mask=column_mask, other=0.0).to(tl.float32)[None, :]
        if HAS_SOFTCAP:
            logits = softcap * tanh(logits / softcap)
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
    if DESCRIPTORS:
        tl.make_tensor_descriptor(grad_nK, [n, width], [grad_stride, 1], [BLOCK_N, BLOCK_V]).store(
            [first_row, first_local], grad.to(grad_nK.dtype.element_ty)
        )
    else:
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
    ROWS_BY_16: tl.constexpr,
    COLUMNS_BY_16: tl.constexpr,
    DEPTH_BY_16: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """``out (+)= a @ b``, summed in fp32, each element written once by one program.

    ``…_BY_16``: that length is a multiple of 16. Without it along the contiguous dimension of an operand, the mask
    would split its loads into elements.
    """
    if ROWS_BY_16:
        rows = rows // 16 * 16
    if COLUMNS_BY_16:
        columns = columns // 16 * 16
    if DEPTH_BY_16:
        depth = depth // 16 * 16
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
        sum = dot(left, right, sum, PRECISION, WIDEN)
        a_ptrs += BLOCK_K * a_inner_stride
        b_ptrs += BLOCK_K * b_inner_stride
    out_ptrs = out + row.to(tl.int64)[:, None] * out_stride + column[None, :]
    mask = row_mask[:, None] & column_mask[None, :]
    if ACCUMULATE:
        sum += tl.load(out_ptrs, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptrs, sum.to(out.dtype.element_ty), mask=mask)
