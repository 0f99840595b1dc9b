"""The plain-torch reference that every other implementation is tested against.

Materialises the logits of all ``N`` tokens, so it costs ``2·N·D·V`` FLOPs per pass and ``N·V`` floats of memory. For
tests, and to read; never chosen by ``impl="auto"``. It shares no formula with the implementations that it judges.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clsgen_kernels.inputs import Call, ClassOptions, GenerationOptions, Results, Tensors

# N tokens, n supervised tokens, S rows, D hidden, V vocabulary, C classes


def both(given: Tensors, call: Call) -> Results:
    """Both heads' losses."""
    loss_n, hit_n, lse_n = generation_losses(given, call.generation)
    pooled_SD = given.hidden_ND[given.class_index_S]
    if given.dropout_scale_SD is not None:
        pooled_SD = pooled_SD.to(given.dropout_scale_SD.dtype) * given.dropout_scale_SD
    wide = torch.promote_types(pooled_SD.dtype, torch.float32)
    logits_SC = pooled_SD.to(wide) @ given.head_weight_CD.to(wide).T + given.head_bias_C.to(wide)
    class_loss_S = class_losses(logits_SC, given.label_S, call.classification)
    if not call.sums:
        return Results(loss_n, logits_SC, class_loss_S, hit_n, lse_n.detach())
    weighted_n = loss_n if given.token_weight_n is None else loss_n * given.token_weight_n
    return Results(weighted_n.sum(), logits_SC, class_loss_S.sum(), hit_n, lse_n.detach())


def generation_losses(given: Tensors, options: GenerationOptions) -> tuple[Tensor, Tensor, Tensor]:
    """``[n]`` losses, hits and log-sum-exps; the equation is in :class:`clsgen_kernels.GenerationOptions`."""
    wide = torch.promote_types(given.hidden_ND.dtype, torch.float32)
    logits_nV = (given.hidden_ND @ given.lm_weight_VD.T)[given.supervised_index_n].to(wide)
    if given.lm_bias_V is not None:
        logits_nV = logits_nV + given.lm_bias_V.to(wide)
    logits_nV = logits_nV * options.logit_scale
    if options.softcap is not None:
        logits_nV = options.softcap * torch.tanh(logits_nV / options.softcap)
    counted_n = given.target_n >= 0
    lse_n = logits_nV.logsumexp(dim=1)
    target_logit_n = logits_nV.gather(1, given.target_n.clamp(min=0)[:, None])[:, 0]
    loss_n = lse_n - target_logit_n + options.label_smoothing * (target_logit_n - logits_nV.mean(dim=1))
    loss_n = loss_n + options.z_loss * lse_n**2
    hit_n = (target_logit_n >= logits_nV.amax(dim=1)) & counted_n
    return torch.where(counted_n, loss_n, 0.0), hit_n, lse_n


def class_losses(logits_SC: Tensor, label_S: Tensor, options: ClassOptions) -> Tensor:
    """``[S]`` losses from the definitions in :class:`clsgen_kernels.ClassOptions`: ``-Σ w q (1 - p)^γ log p``.

    With no loss function of torch and none of the kernels' code. 0 where nothing is known.
    """
    outputs = logits_SC.shape[1]
    label_SC = (label_S if label_S.dim() == 2 else label_S[:, None]).to(logits_SC.dtype)
    weight_C = logits_SC.new_tensor(options.class_weight or [1.0] * outputs)
    number_C = torch.arange(outputs, device=logits_SC.device)
    if options.kind in ("softmax", "soft"):
        log_p_SC = logits_SC - logits_SC.logsumexp(dim=1, keepdim=True)
        share_SC = label_SC.clamp(min=0) if options.kind == "soft" else (label_SC == number_C).to(logits_SC.dtype)
        # 1 - p as the sum of the others: right where p rounds to 1.
        others_CC = 1 - torch.eye(outputs, dtype=logits_SC.dtype, device=logits_SC.device)
        return -(weight_C * share_SC * _focus(log_p_SC.exp() @ others_CC, options) * log_p_SC).sum(dim=1)
    # Logit c says "yes": of class c, or (ordinal) "above class c".
    yes_SC = (label_SC > number_C).to(logits_SC.dtype) if options.kind == "ordinal" else label_SC.clamp(min=0)
    zero = torch.zeros_like(logits_SC)
    part_SC = yes_SC * torch.logaddexp(zero, -logits_SC) + (1 - yes_SC) * torch.logaddexp(zero, logits_SC)
    part_SC = part_SC * _focus(-torch.expm1(-part_SC), options) if options.focal_gamma else part_SC
    return torch.where(label_SC < 0, zero, weight_C * part_SC).sum(dim=1)


def _focus(rest: Tensor, options: ClassOptions) -> Tensor | float:
    """``(1 - p)^γ``."""
    return rest**options.focal_gamma if options.focal_gamma else 1.0
