"""The fused dual-head loss: classification head and masked generation cross-entropy, one autograd function.

Independent of ``clsgen_dist``: tensors in, losses out. See :func:`dual_head_loss`.
"""

from clsgen_kernels.dual_head import DualHeadOutput, dual_head_loss, resolve_impl
from clsgen_kernels.inputs import ClassOptions, GenerationOptions, LMLora
from clsgen_kernels.vocab_shards import Ranks, VocabShards

__all__ = [
    "ClassOptions",
    "DualHeadOutput",
    "GenerationOptions",
    "LMLora",
    "Ranks",
    "VocabShards",
    "dual_head_loss",
    "resolve_impl",
]
