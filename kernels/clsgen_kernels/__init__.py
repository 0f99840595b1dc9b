"""The fused dual-head loss: classification head and masked generation cross-entropy, one autograd function.

Knows nothing of ``clsgen_dist``: tensors in, losses out. See :func:`dual_head_loss`.
"""

from clsgen_kernels.dual_head import IMPLEMENTATIONS, DualHeadOutput, dual_head_loss, resolve_impl

__all__ = ["IMPLEMENTATIONS", "DualHeadOutput", "dual_head_loss", "resolve_impl"]
