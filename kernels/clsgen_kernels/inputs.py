"""Inputs of the two heads, options, and the results of an implementation: the types that all implementations share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# n supervised tokens, S pooled rows, D hidden, V vocabulary, C class logits, R LoRA rank


IGNORE = -100
"""A target that is ignored, as in ``torch.nn.functional.cross_entropy``."""

ELSEWHERE = 2**30
"""A target in another rank's vocabulary rows: counted, but in no column of this rank."""


@dataclass(frozen=True)
class GenerationOptions:
    """Options of the generation loss, for a token with raw logits ``raw`` and target ``t``.

        l       = cap·tanh(raw / cap)                                     with ``softcap``
        loss    = lse(l) - (1-ε) l_t - ε mean(l) + z lse(l)²              ε ``label_smoothing``, z ``z_loss``

    Soft-capping: Gemma 2, arXiv 2408.00118; z-loss: PaLM, arXiv 2204.02311; smoothing: Szegedy 2016, arXiv 1512.00567.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, expected from 0 to below 1")
        if self.z_loss < 0:
            raise ValueError(f"z_loss is {self.z_loss}, expected 0 or more")
        if self.softcap is not None and self.softcap <= 0:
            raise ValueError(f"softcap is {self.softcap}, expected above 0, or None to switch it off")


@dataclass(frozen=True)
class ClassOptions:
    """How class logits become a row's loss.

    ``kind``: ``"softmax"`` over C classes; ``"soft"``, a softmax against a distribution q over them, ``-Σ q log p``;
    ``"sigmoid"``, one logit for two classes; ``"multilabel"``, C independent logits; ``"ordinal"``, C cumulative logits
    of C+1 ordered classes, logit c for "above class c" (McCullagh 1980). For the last two, the row's loss is the sum
    over its logits: the negative log-likelihood of its labels. ``class_weight`` multiplies the loss per class
    (``"ordinal"``: per logit; ``"sigmoid"``: its one logit). ``focal_gamma`` multiplies by ``(1 - p_t)^γ`` (Lin 2017,
    arXiv 1708.02002); not with ``"soft"``.
    """

    kind: Literal["softmax", "soft", "sigmoid", "multilabel", "ordinal"] = "softmax"
    class_weight: tuple[float, ...] | None = None
    focal_gamma: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in (kinds := ("softmax", "soft", "sigmoid", "multilabel", "ordinal")):
            raise ValueError(f"kind {self.kind!r} is not one of {', '.join(kinds)}")
        if self.kind == "soft" and self.focal_gamma:
            raise ValueError(
                f"focal_gamma is {self.focal_gamma}, expected 0 for kind 'soft', which has no target class"
            )
        if self.focal_gamma < 0:
            raise ValueError(f"focal_gamma is {self.focal_gamma}, expected 0 or more")


class LMLora(NamedTuple):
    """An adapter on the LM head: its logits are ``h·Wᵀ + scale·(h·Aᵀ)·Bᵀ`` (Hu 2021, arXiv 2106.09685)."""

    a_RD: Tensor
    b_VR: Tensor
    scale: float


class LMInputs(NamedTuple):
    """Inputs of the generation loss, supervised rows already compacted."""

    hidden_nD: Tensor
    weight_VD: Tensor
    target_n: Tensor
    """Negative: ignored, with loss and gradient 0."""
    bias_V: Tensor | None
    lora_nR: Tensor | None
    """``scale·h·Aᵀ``; its product with ``lora_VR`` is added to the logits."""
    lora_VR: Tensor | None
    options: GenerationOptions
    vocabulary: int
    """Rows of the full vocabulary, of which ``weight_VD`` may hold only some."""

    def losses(
        self,
        target_n: Tensor,
        lse_n: Tensor,
        maximum_n: Tensor,
        target_logit_n: Tensor,
        logit_sum_n: Tensor | None = None,
    ) -> Forward:
        """Losses and hits of tokens from their sums over the vocabulary."""
        loss_n = lse_n - target_logit_n
        if logit_sum_n is not None:
            loss_n = loss_n + self.options.label_smoothing * (target_logit_n - logit_sum_n / self.vocabulary)
        if self.options.z_loss:
            loss_n = loss_n + self.options.z_loss * lse_n**2
        counted_n = target_n >= 0
        hit_n = (target_logit_n >= maximum_n) & counted_n
        loss_n = torch.where(counted_n, loss_n, 0)
        return Forward(loss_n, lse_n, hit_n, maximum_n, target_logit_n, logit_sum_n, None)


class HeadInputs(NamedTuple):
    """Inputs of the classification loss."""

    pooled_SD: Tensor
    """In the hidden states' dtype, or fp32 after dropout."""
    weight_CD: Tensor
    bias_C: Tensor
    label_S: Tensor
    """``[S]`` class, -1 without label; ``"multilabel"`` and ``"soft"``: ``[S, C]``, negative where unknown."""
    options: ClassOptions

    def weights_C(self) -> Tensor:
        """The class weights on the head's device."""
        return torch.tensor(self.options.class_weight, dtype=torch.float32, device=self.bias_C.device)

    def logits(self) -> Tensor:
        """``[S, C]`` logits, in plain torch, in fp32 or wider."""
        wide = torch.promote_types(self.pooled_SD.dtype, torch.float32)
        return F.linear(self.pooled_SD.to(wide), self.weight_CD.to(wide), self.bias_C.to(wide))

    def losses(self, logits_SC: Tensor) -> Tensor:
        """``[S]`` losses, in plain torch; 0 for rows without label."""
        kind, label_S = self.options.kind, self.label_S
        weights_C = None if self.options.class_weight is None else self.weights_C().to(logits_SC.dtype)
        if kind == "softmax":
            known_S = label_S >= 0
            part_S = F.cross_entropy(logits_SC, label_S, reduction="none", ignore_index=-1)
            part_S = self._focal(part_S)
            return part_S if weights_C is None else part_S * weights_C[label_S.where(known_S, 0)]
        if kind == "soft":
            known_S = label_S[:, 0] >= 0
            target_SC = label_S.to(logits_SC.dtype) if weights_C is None else label_S.to(logits_SC.dtype) * weights_C
            part_S = -(target_SC * torch.log_softmax(logits_SC, dim=1)).sum(dim=1)
            return torch.where(known_S, part_S, 0.0)
        if kind == "ordinal":
            target_SC = (label_S[:, None] > torch.arange(logits_SC.shape[1], device=label_S.device)).to(logits_SC.dtype)
            known_SC = (label_S >= 0)[:, None].expand_as(logits_SC)
        else:
            label_SC = label_S.view(label_S.shape[0], -1)
            target_SC, known_SC = label_SC.to(logits_SC.dtype), label_SC >= 0
        part_SC = F.binary_cross_entropy_with_logits(logits_SC, target_SC.clamp(min=0), reduction="none")
        part_SC = self._focal(part_SC)
        if weights_C is not None:
            part_SC = part_SC * weights_C
        return torch.where(known_SC, part_SC, 0.0).sum(dim=1)

    def slopes(self, logits_SC: Tensor) -> Tensor:
        """``[S, C]`` derivative of each row's loss with respect to its logits; rows are independent."""
        with torch.enable_grad():
            logits_SC = logits_SC.detach().requires_grad_()
            return torch.autograd.grad(self.losses(logits_SC).sum(), logits_SC)[0]

    def _focal(self, negative_log: Tensor) -> Tensor:
        gamma = self.options.focal_gamma
        if gamma == 0:
            return negative_log
        return negative_log * (-torch.expm1(-negative_log)).clamp(min=1e-30) ** gamma


class Forward(NamedTuple):
    """Result of an implementation's forward for the generation loss; fp32 (fp64 for fp64 inputs)."""

    loss_n: Tensor
    lse_n: Tensor
    hit_n: Tensor
    """Whether no token is more likely than the target (a tie counts as a hit)."""
    maximum_n: Tensor
    target_logit_n: Tensor
    logit_sum_n: Tensor | None
    """Only with label smoothing."""
    saved: Tensor | None
    """Saved for the implementation's own backward."""


class LMGradients(NamedTuple):
    """Result of an implementation's backward; None where not requested."""

    hidden_nD: Tensor
    weight_VD: Tensor | None = None
    bias_V: Tensor | None = None
    lora_nR: Tensor | None = None
    lora_VR: Tensor | None = None
