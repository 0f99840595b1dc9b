"""The plain-torch reference: what every other path is held against.

Materialises the logits of all ``N`` tokens, so it costs ``2·N·D·V`` FLOPs a pass and ``N·V`` floats of memory. For
tests and for reading; never chosen by ``impl="auto"``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# N tokens, n supervised tokens, S sequences, D hidden, V vocabulary, C classes


def reference_losses(
    hidden_ND: Tensor,
    lm_weight_VD: Tensor,
    head_weight_CD: Tensor,
    head_bias_C: Tensor,
    supervised_index_n: Tensor,
    target_n: Tensor,
    class_index_S: Tensor,
    label_S: Tensor,
    dropout_scale_SD: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Same contract as :func:`clsgen_kernels.dual_head_loss`, in five lines of plain torch."""
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    logits_NV = (hidden_ND @ lm_weight_VD.T).to(wide)
    generation_loss_n = F.cross_entropy(logits_NV[supervised_index_n], target_n, reduction="none")
    pooled_SD = hidden_ND[class_index_S].to(wide) * (1.0 if dropout_scale_SD is None else dropout_scale_SD)
    class_logits_SC = F.linear(pooled_SD, head_weight_CD.to(wide), head_bias_C.to(wide))
    class_loss_S = F.cross_entropy(class_logits_SC, label_S, reduction="none", ignore_index=-1)
    return generation_loss_n, class_logits_SC, class_loss_S
