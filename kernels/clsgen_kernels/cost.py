"""Cost model of the losses, by algorithm: FLOPs, bytes moved, extra memory. A model, not a measurement.

bf16 weights and states, fp32 accumulation. N tokens, n of them supervised, D hidden, V vocabulary; an H100, whose L2
cache holds 50 MB. Every pass is ``2·rows·D·V`` FLOPs. The vendor's products read each operand once.

    naive(r)     logits of r rows: written, cast to fp32, softmaxed, and their fp32 gradient cast back: 30 bytes each;
                 3 passes; weights read twice, dW written. torch's ``linear_cross_entropy`` by default does no less.
    ours         n rows; forward 1 pass, backward recompute 1, dW 1, dH 1; the workspace G (2 bytes a logit) written
                 once and read twice; dH read and written for each slab; dW written. Our kernels' passes read the
                 weights once for each group of row tiles, and the states again for each wave where L2 cannot hold both.
                 Stored logits are written once and read once instead of being recomputed, and have an offset a tile
    liger        token chunks, all N rows, as published: 3 passes; weights read twice and dW read and written a chunk
    chunked      token chunks with bf16 logits, turned into their gradient in place (quack: 4096 rows; Liger's kernels
                 for Hopper in CuTe of 2026, pull request 1356, taken with 1024 rows as on Blackwell): 3 passes, 10
                 bytes a logit; weights read twice and dW read and written a chunk
    cce          (row, vocabulary) tiles, as published: 4 passes; each tile reads and writes its part of dE, dC
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from clsgen_kernels.launch import BY_TARGET, STORE_BYTES
from clsgen_kernels.stored_logits import choose_storage

L2_BYTES = 50e6
"""Of an H100."""
GROUP_BYTES = BY_TARGET["sm_90"].group_bytes
WAVE = 132 * BY_TARGET["sm_90"].forward.rows * BY_TARGET["sm_90"].forward.columns
"""Logits that the multiprocessors of an H100 compute at a time."""


@dataclass(frozen=True)
class Cost:
    """FLOPs, bytes moved, and peak bytes in addition to inputs and their gradients."""

    flops: float
    moved_bytes: float
    extra_bytes: float

    def seconds(self, flops_per_s: float, bytes_per_s: float) -> float:
        """Roofline time without overlap of compute and memory traffic."""
        return self.flops / flops_per_s + self.moved_bytes / bytes_per_s


def naive(rows: int, width: int, vocabulary: int) -> Cost:
    """All logits of ``rows`` rows, in fp32, as ``cross_entropy(h @ W.T)`` materialises them."""
    logits, weight = rows * vocabulary, width * vocabulary
    return Cost(6.0 * rows * weight, 30 * logits + 6 * weight, 10 * logits)


def _pass_bytes(rows: int, width: int, vocabulary: int) -> float:
    """Bytes that one pass of our kernel reads: a wave of programs is ``high`` rows by ``wide`` columns."""
    high = min(rows, max(128, GROUP_BYTES // (2 * width)))
    wide = min(vocabulary, WAVE // high)
    groups = ceil(rows / high)
    state_reads = 1 if 2 * width * (high + wide) <= L2_BYTES else ceil(vocabulary / wide)
    return 2 * width * (groups * vocabulary + rows * state_reads)


def ours(rows: int, width: int, vocabulary: int, *, store_bytes: int = STORE_BYTES) -> Cost:
    """The Triton path, W trained, at most half of the tokens supervised; see ``Execution.store_bytes``."""
    logits, weight = rows * vocabulary, width * vocabulary
    slab = BY_TARGET["sm_90"].slab(rows, vocabulary, 2)
    slabs = ceil(vocabulary / slab)
    storage = None
    if store_bytes:
        storage = choose_storage(rows, vocabulary, width, slab, element_size=2, learns=True, store_bytes=store_bytes)
    stored = 0.0 if storage is None else storage.slabs / slabs
    products = 4 * weight + slabs * rows * width * (2 + 8)  # W read, dW written; H read, dH read and written
    moved = _pass_bytes(rows, width, vocabulary) * (2 - stored) + products + (6 + 4 * stored) * logits
    # The compacted rows; beside them the workspace, and later the rows' gradient as it is scattered.
    extra = 2 * rows * width + 2 * rows * max(slab, width)
    if storage is not None:
        extra += 4 * rows * ceil(vocabulary / BY_TARGET["sm_90"].forward.columns)
        extra += 0 if storage.in_gradient else 2 * rows * slab * storage.slabs
    return Cost((8 - 2 * stored) * rows * weight, moved, extra)


def liger(tokens: int, width: int, vocabulary: int) -> Cost:
    """Liger's chunks: as many rows as keep a chunk of logits no larger than the hidden states."""
    logits, weight = tokens * vocabulary, width * vocabulary
    chunks = ceil(vocabulary / width)
    return Cost(6.0 * tokens * weight, 12 * logits + chunks * (2 + 2 + 4) * weight, 4 * logits / chunks)


def chunked(rows: int, width: int, vocabulary: int, chunk: int) -> Cost:
    """Chunks of ``chunk`` rows, their bf16 logits overwritten by the gradient, as quack and Liger's CuTe kernels do."""
    logits, weight, chunks = rows * vocabulary, width * vocabulary, ceil(rows / chunk)
    moved = 10 * logits + (4 * chunks + 4 * (chunks - 1) + 2) * weight
    return Cost(6.0 * rows * weight, moved, 2 * min(rows, chunk) * vocabulary)


def cce(rows: int, width: int, vocabulary: int, tile: int = 128) -> Cost:
    """Cut cross-entropy without skipping small softmax blocks: each tile adds into both gradients."""
    weight = width * vocabulary
    adds = 4 * width * (vocabulary * ceil(rows / tile) + rows * ceil(vocabulary / tile))
    return Cost(8.0 * rows * weight, 4 * weight + adds, 0)
