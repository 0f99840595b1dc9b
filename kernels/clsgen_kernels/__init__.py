"""The fused dual-head loss: classification head and masked generation cross-entropy, one autograd function.

Independent of ``clsgen_dist``: tensors in, losses out. See :func:`dual_head_loss`, and :func:`linear_cross_entropy`
for the LM head alone.
"""

from clsgen_kernels.dual_head import DualHeadOutput, dual_head_loss
from clsgen_kernels.implementation import resolve_impl
from clsgen_kernels.inputs import ClassOptions, Execution, GenerationOptions
from clsgen_kernels.linear_cross_entropy import LinearCrossEntropyOutput, linear_cross_entropy
from clsgen_kernels.vocab_shards import Ranks, VocabShards

__all__ = [
    "ClassOptions",
    "DualHeadOutput",
    "Execution",
    "GenerationOptions",
    "LinearCrossEntropyOutput",
    "Ranks",
    "VocabShards",
    "dual_head_loss",
    "linear_cross_entropy",
    "resolve_impl",
]
