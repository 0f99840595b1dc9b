"""What the Triton kernels share: the order of programs, the tile product along the inner dimension, and tanh.

Row offsets are 64-bit: 262144 rows of 8192 already exceed 2³¹ elements.
"""

# mypy: ignore-errors
# Arguments are pointers, tensors and constants of Triton's own language, and carry no types.

from __future__ import annotations

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def grouped(program, row_tiles, column_tiles, group):
    """Row tile and column tile (or split of the columns) of a program.

    ``group`` row tiles at a time pass over all columns, so that their states stay in the L2 cache; within a group
    neighbouring programs share a column tile, so that its weights are read into L2 once.
    """
    in_group = group * column_tiles
    first = program // in_group * group
    rows = tl.minimum(row_tiles - first, group)
    local = program % in_group
    return first + local % rows, local // rows


@triton.jit
def dot(a, b, sum, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    # The interpreter multiplies the raw bits of bf16 operands, so there they are widened first.
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sum, input_precision=PRECISION)


@triton.jit
def add_product(
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
    """``sum + a @ b.T`` for one tile of rows of each, over the full inner dimension.

    Through tensor descriptors (the copy engine computes addresses and fills zeros past the end), or through pointers: a
    64-bit scalar and 32-bit offsets, since tensors of pointers would fill the registers.
    """
    if DESCRIPTORS:
        for start in range(0, depth, BLOCK_D):
            a = a_descriptor.load([a_first, start])
            b = b_descriptor.load([b_first, start])
            sum = dot(a, b.T, sum, PRECISION, WIDEN)
    else:
        a_row = tl.arange(0, BLOCK_A)
        b_row = tl.arange(0, BLOCK_B)
        inner = tl.arange(0, BLOCK_D)
        a_ptr += tl.cast(a_first, tl.int64) * a_stride
        b_ptr += tl.cast(b_first, tl.int64) * b_stride
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
            sum = dot(a, b, sum, PRECISION, WIDEN)
    return sum


@triton.jit
def or_zero(maximum):
    """The largest logits, 0 where a bias of minus infinity excludes all: what is subtracted must not be infinite."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit
def tanh(x):
    # 1 - 2 / (e^2x + 1): exact in both limits, where e^2x is 0 or infinite.
    return 1.0 - 2.0 / (tl.exp2(x * (2.0 * LOG2E)) + 1.0)
