"""Inputs of the two heads, options, and the results of an implementation: the types that all implementations share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clsgen_kernels.launch import STORE_BYTES, Launch
from clsgen_kernels.vocab_shards import VocabShards

# n supervised tokens, S pooled rows, D hidden, V vocabulary, C class logits


IGNORE = -100
"""A target that is ignored, as in ``torch.nn.functional.cross_entropy``."""

BEYOND = 2**30 + 1
"""In place of a negative target or label that stands for nothing: the loss is NaN, as for any beyond the last."""
ELSEWHERE = 2**30
"""A target in another rank's vocabulary rows: counted, but in no column of this rank."""


@dataclass(frozen=True)
class GenerationOptions:
    """Options of the generation loss, for a token with state ``h``, target ``t``, LM weight W and bias b.

        raw     = s (h Wᵀ + b)                                            s ``logit_scale``
        l       = cap·tanh(raw / cap)                                     with ``softcap``
        loss    = lse(l) - (1-ε) l_t - ε mean(l) + z lse(l)²              ε ``label_smoothing``, z ``z_loss``

    Soft-capping: Gemma 2, arXiv 2408.00118; z-loss: PaLM, arXiv 2204.02311; smoothing: Szegedy 2016, arXiv 1512.00567.

    The scale multiplies the supervised states once, in their dtype: exact for a power of two (Cohere's 1/16, Granite's
    1/8 and 1/16), else one rounding of each element, as fine as that of the states themselves.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    logit_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, expected from 0 to 1")
        if self.z_loss < 0:
            raise ValueError(f"z_loss is {self.z_loss}, expected 0 or more")
        if self.softcap is not None and self.softcap <= 0:
            raise ValueError(f"softcap is {self.softcap}, expected above 0, or None to switch it off")
        if self.logit_scale <= 0:
            raise ValueError(f"logit_scale is {self.logit_scale}, expected above 0; 1 leaves logits as they are")


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


@dataclass(frozen=True, eq=False)
class Execution:
    """How the losses are computed and where gradients go; the values do not depend on it, but for rounding."""

    vocab_tile: int | None = None
    """Vocabulary rows per tile of ``impl="torch"``; None chooses by the number of tokens."""
    launch: Launch | None = None
    """Tiles of ``impl="triton"``; None uses the table in :mod:`clsgen_kernels.launch`."""
    store_bytes: int = STORE_BYTES
    """Logits are stored for the backward instead of recomputed, which saves one of four GEMM passes: in the memory of
    the LM weight's gradient, if it learns, as far as it holds them; with ``impl="triton"`` in their own, if they take
    no more bytes than this and the gradient does not hold all. 0 always recomputes. See
    :mod:`clsgen_kernels.stored_logits`."""
    vocab_shards: VocabShards | None = None
    """The LM weight stays sharded over ranks: ``lm_weight_VD`` (and ``lm_bias_V``) are this rank's rows, targets index
    the full vocabulary. Every rank must call the loss, and run backward through the generation loss or none of them.
    Not with ``impl="reference"``. See :mod:`clsgen_kernels.vocab_parallel`."""
    lm_weight_grad_VD: Tensor | None = None
    """fp32 ``[V, D]`` to which the backward adds the LM weight's gradient instead of returning it, so that sums over
    many micro-batches stay in fp32."""
    hidden_grad_square: Tensor | None = None
    """fp32 ``[3]`` to which the backward adds the squared norms of the heads' gradients at ``hidden_ND``, generation's
    then classification's, and the inner product of the two; not with ``impl="reference"``."""


class Tensors(NamedTuple):
    """The tensors of a call; the first five are differentiable."""

    hidden_ND: Tensor
    lm_weight_VD: Tensor
    head_weight_CD: Tensor
    head_bias_C: Tensor
    lm_bias_V: Tensor | None
    supervised_index_n: Tensor
    target_n: Tensor
    class_index_S: Tensor
    label_S: Tensor
    dropout_scale_SD: Tensor | None
    token_weight_n: Tensor | None


class Wants(NamedTuple):
    """Which gradients are asked for."""

    hidden: bool = False
    lm_weight: bool = False
    head_weight: bool = False
    head_bias: bool = False
    lm_bias: bool = False

    @property
    def of_generation(self) -> bool:
        """Whether the generation loss has a gradient to give."""
        return self.hidden or self.lm_weight or self.lm_bias


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments that are no tensors."""

    impl: str
    generation: GenerationOptions
    classification: ClassOptions
    sums: bool
    execution: Execution


class Results(NamedTuple):
    """What the forward returns."""

    loss: Tensor
    """``[n]``, or with ``sums`` a scalar; so is ``class_loss``."""
    class_logits_SC: Tensor
    class_loss: Tensor
    hit_n: Tensor
    lse_n: Tensor


class LMInputs(NamedTuple):
    """Inputs of the generation loss, supervised rows already compacted, states and bias times the logit scale."""

    hidden_nD: Tensor
    weight_VD: Tensor
    target_n: Tensor
    """Negative: ignored, with loss and gradient 0."""
    bias_V: Tensor | None
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
        return Forward(loss_n, lse_n, hit_n, maximum_n, target_logit_n, logit_sum_n)


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
        """fp32 class weights on the head's device."""
        assert self.options.class_weight is not None
        return _on_device(self.options.class_weight, self.bias_C.device)

    def logits(self) -> Tensor:
        """``[S, C]`` logits, in plain torch, in fp32 or wider."""
        wide = torch.promote_types(self.pooled_SD.dtype, torch.float32)
        return F.linear(self.pooled_SD.to(wide), self.weight_CD.to(wide), self.bias_C.to(wide))

    def losses(self, logits_SC: Tensor) -> Tensor:
        """``[S]`` losses, in plain torch; 0 for rows without label."""
        kind, label_S = self.options.kind, self.label_S
        weights_C = None if self.options.class_weight is None else self.weights_C().to(logits_SC.dtype)
        if kind == "softmax":
            class_S = label_S.clamp(max=logits_SC.shape[1] - 1)
            part_S = self._focal(F.cross_entropy(logits_SC, class_S, reduction="none", ignore_index=-1))
            part_S = part_S if weights_C is None else part_S * weights_C[class_S.clamp(min=0)]
            return part_S.masked_fill(label_S >= logits_SC.shape[1], torch.nan)
        if kind == "soft":
            known_S = label_S[:, 0] >= 0
            target_SC = _or_nan(label_S.to(logits_SC.dtype))
            target_SC = target_SC if weights_C is None else target_SC * weights_C
            part_S = -(target_SC * torch.log_softmax(logits_SC, dim=1)).sum(dim=1)
            return torch.where(known_S, part_S, 0.0)
        target_SC, known_SC = self._binary_targets(logits_SC)
        part_SC = F.binary_cross_entropy_with_logits(logits_SC, target_SC, reduction="none")
        part_SC = self._focal(part_SC)
        if weights_C is not None:
            part_SC = part_SC * weights_C
        return torch.where(known_SC, part_SC, 0.0).sum(dim=1)

    def slopes(self, logits_SC: Tensor) -> Tensor:
        """``[S, C]`` derivative of each row's loss with respect to its logits; rows are independent."""
        options, label_S = self.options, self.label_S
        weights_C = 1 if options.class_weight is None else self.weights_C().to(logits_SC.dtype)
        if options.kind == "soft":
            target_SC = _or_nan(label_S.clamp(min=0).to(logits_SC.dtype)) * weights_C
            return torch.softmax(logits_SC, dim=1) * target_SC.sum(dim=1, keepdim=True) - target_SC
        if options.kind == "softmax":
            classes_C = torch.arange(logits_SC.shape[1], device=label_S.device)
            target_SC = (label_S[:, None] == classes_C).to(logits_SC.dtype)
            target_SC = target_SC.masked_fill((label_S >= len(classes_C))[:, None], torch.nan)
            log_p_SC = torch.log_softmax(logits_SC, dim=1)
            factor_S1 = self._focal_slope(-(target_SC * log_p_SC).sum(dim=1, keepdim=True))
            return (log_p_SC.exp() - target_SC) * factor_S1 * (target_SC * weights_C).sum(dim=1, keepdim=True)
        target_SC, known_SC = self._binary_targets(logits_SC)
        part_SC = F.binary_cross_entropy_with_logits(logits_SC, target_SC, reduction="none")
        slope_SC = (torch.sigmoid(logits_SC) - target_SC) * self._focal_slope(part_SC) * weights_C
        return torch.where(known_SC, slope_SC, 0.0)

    def _binary_targets(self, logits_SC: Tensor) -> tuple[Tensor, Tensor]:
        """``[S, C]`` targets of independent logits, and which are known."""
        if self.options.kind == "ordinal":
            thresholds_C = torch.arange(logits_SC.shape[1], device=self.label_S.device)
            target_SC = (self.label_S[:, None] > thresholds_C).to(logits_SC.dtype)
            target_SC = target_SC.masked_fill((self.label_S > len(thresholds_C))[:, None], torch.nan)
            return target_SC, (self.label_S >= 0)[:, None].expand_as(logits_SC)
        label_SC = self._by_logit()
        return _or_nan(label_SC.to(logits_SC.dtype).clamp(min=0)), label_SC >= 0

    def _by_logit(self) -> Tensor:
        """``[S, C]`` labels; of ``"sigmoid"`` ``[S, 1]``."""
        return self.label_S if self.label_S.dim() == 2 else self.label_S[:, None]

    def _focal(self, negative_log: Tensor) -> Tensor:
        gamma = self.options.focal_gamma
        return negative_log if gamma == 0 else negative_log * _less_than_certain(negative_log) ** gamma

    def _focal_slope(self, negative_log: Tensor) -> Tensor | float:
        """Derivative of :meth:`_focal`."""
        gamma = self.options.focal_gamma
        if gamma == 0:
            return 1.0
        rest = _less_than_certain(negative_log)
        return rest**gamma + gamma * negative_log * rest ** (gamma - 1) * torch.exp(-negative_log)


def _or_nan(target_SC: Tensor) -> Tensor:
    """The targets, NaN where one is above 1: on a GPU it cannot be refused without waiting."""
    return target_SC.masked_fill(target_SC > 1, torch.nan)


def _less_than_certain(negative_log: Tensor) -> Tensor:
    """``1 - p``, above 0."""
    return (-torch.expm1(-negative_log)).clamp(min=1e-30)


_COPIED: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}


def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """The values as an fp32 tensor, copied to each device once: a copy from the host waits for the device."""
    if (values, device) in _COPIED:
        return _COPIED[values, device]
    with torch.inference_mode(False):
        copied = torch.tensor(values, dtype=torch.float32, device=device)
    if type(copied) is Tensor:  # not a fake one
        _COPIED[values, device] = copied
    return copied


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
    expected_nD: Tensor | None = None
    """Expected embeddings, of the torch path: see :mod:`clsgen_kernels.tiled`."""
    offset_Tn: Tensor | None = None
    """fp32, of the kernels: what each tile of stored logits has been lowered by."""


class LMGradients(NamedTuple):
    """Result of an implementation's backward; None where not requested."""

    hidden_nD: Tensor
    weight_VD: Tensor | None = None
    bias_V: Tensor | None = None
