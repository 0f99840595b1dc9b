"""Cost model of the losses, by algorithm: FLOPs, bytes moved, extra memory. A model, not a measurement.

bf16 weights and states, fp32 accumulation. N tokens, n of them supervised, D hidden, V vocabulary. Hidden states are
assumed to stay in the L2 cache during one pass over the vocabulary (an H100 holds about 1600 rows of D=8192); weights
and logits are not. Every pass of ``2·rows·D·V`` FLOPs reads the weights once.

    naive(r)     logits of r rows: written, cast to fp32, softmaxed, and their fp32 gradient cast back: 30 bytes each;
                 3 passes; weights read twice, dW written
    ours         n rows; forward 1 pass, backward recompute 1, dW 1, dH 1; weights read 3 times, dW written; the
                 workspace G (2 bytes a logit) written once and read twice; dH read and written for each slab
    stored       as ours, without the recompute: logits written once and read once
    liger        token chunks, all N rows, as published: 3 passes; weights read twice and dW read and written a chunk
    cce          (row, vocabulary) tiles, as published: 4 passes; each tile reads and writes its part of dE, dC
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil


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


def ours(rows: int, width: int, vocabulary: int, *, stored: bool = False) -> Cost:
    """The Triton path with a trained weight; ``stored`` keeps bf16 logits for the backward."""
    logits, weight = rows * vocabulary, width * vocabulary
    slab = min(vocabulary, max(8192, 25 * 2**20 // (2 * rows)))  # as clsgen_kernels.launch chooses, up to 1 GiB
    slabs = ceil(vocabulary / slab)
    extra = 2 * rows * slab + rows * width * (2 + 4)  # plus the compacted rows and their fp32 gradient
    moved = 2 * weight * (3 if stored else 4) + 6 * logits + slabs * rows * width * (2 + 2 + 8)
    if stored:
        return Cost(6.0 * rows * weight, moved + 4 * logits, extra + 2 * logits)
    return Cost(8.0 * rows * weight, moved, extra)


def liger(tokens: int, width: int, vocabulary: int) -> Cost:
    """Liger's chunks: as many rows as keep a chunk of logits no larger than the hidden states."""
    logits, weight = tokens * vocabulary, width * vocabulary
    chunks = ceil(vocabulary / width)
    return Cost(6.0 * tokens * weight, 12 * logits + chunks * (2 + 2 + 4) * weight, 4 * logits / chunks)


def cce(rows: int, width: int, vocabulary: int, tile: int = 128) -> Cost:
    """Cut cross-entropy without skipping small softmax blocks: each tile adds into both gradients."""
    weight = width * vocabulary
    adds = 4 * width * (vocabulary * ceil(rows / tile) + rows * ceil(vocabulary / tile))
    return Cost(8.0 * rows * weight, 4 * weight + adds, 0)
