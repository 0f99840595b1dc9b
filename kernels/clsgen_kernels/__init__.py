"""The fused dual-head loss: classification head and masked generation cross-entropy, one autograd function.

Independent of ``clsgen_dist``: tensors in, losses out. See :func:`dual_head_loss`.
"""

from clsgen_kernels.dual_head import DualHeadOutput, dual_head_loss
from clsgen_kernels.implementation import resolve_impl
from clsgen_kernels.inputs import ClassOptions, Execution, GenerationOptions

__all__ = [
    "ClassOptions",
    "DualHeadOutput",
    "Execution",
    "GenerationOptions",
    "dual_head_loss",
    "resolve_impl",
]
