"""The plain-torch reference that every other implementation is tested against.

Materialises the logits of all ``N`` tokens, so it costs ``2·N·D·V`` FLOPs per pass and ``N·V`` floats of memory. For
tests, and to read; never chosen by ``impl="auto"``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clsgen_kernels.inputs import GenerationOptions, HeadInputs

# N tokens, n supervised tokens, D hidden, V vocabulary, R LoRA rank


def generation_losses(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    supervised_index_n: Tensor,
    target_n: Tensor,
    bias_V: Tensor | None,
    lora_nR: Tensor | None,
    lora_VR: Tensor | None,
    options: GenerationOptions,
) -> tuple[Tensor, Tensor]:
    """``[n]`` losses and ``[n]`` hits; the equation is in :class:`clsgen_kernels.GenerationOptions`."""
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    logits_nV = (hidden_ND @ weight_VD.T)[supervised_index_n].to(wide)
    if lora_nR is not None and lora_VR is not None:
        logits_nV = logits_nV + (lora_nR @ lora_VR.T).to(wide)
    if bias_V is not None:
        logits_nV = logits_nV + bias_V.to(wide)
    if options.softcap is not None:
        logits_nV = options.softcap * torch.tanh(logits_nV / options.softcap)
    counted_n = target_n >= 0
    lse_n = logits_nV.logsumexp(dim=1)
    target_logit_n = logits_nV.gather(1, target_n.clamp(min=0)[:, None])[:, 0]
    loss_n = lse_n - target_logit_n + options.label_smoothing * (target_logit_n - logits_nV.mean(dim=1))
    loss_n = loss_n + options.z_loss * lse_n**2
    hit_n = (target_logit_n >= logits_nV.amax(dim=1)) & counted_n
    return torch.where(counted_n, loss_n, 0.0), hit_n


def class_losses(classes: HeadInputs) -> tuple[Tensor, Tensor]:
    """``[S, C]`` class logits and ``[S]`` losses."""
    logits_SC = classes.logits()
    return logits_SC, classes.losses(logits_SC)
