"""The classification head, and how a row's label becomes the targets of its loss.

The head is linear on the final-norm state, for every label space (:mod:`clsgen_dist.model.label_space`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from clsgen_kernels import ClassOptions
from torch import Tensor, nn

from clsgen_dist.model.label_space import Kind

# S rows, D hidden, C classes, K logits


class ClassificationHead(nn.Module):
    """A linear map to K logits; dropout on its input, in training only.

    Ordinal heads learn one direction ``[1, D]`` and a vector ``[K]``, of which :func:`cut_points` makes ordered biases.

    Args:
        weight_KD: initial weight (copied, in fp32); ordinal: ``[1, D]``.
        bias_K: initial parameters of the bias; None for zeros.
        dropout: probability of dropping an input.
        kind: the label space.
    """

    def __init__(self, weight_KD: Tensor, dropout: float, bias_K: Tensor | None = None, kind: Kind = "single") -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_KD.detach().to(torch.float32, copy=True))
        zeros = self.weight.detach().new_zeros(len(self.weight) if bias_K is None else len(bias_K))
        self.bias = nn.Parameter(zeros if bias_K is None else zeros + bias_K.to(torch.float32))
        self.dropout = dropout
        self.kind = kind

    def affine(self) -> tuple[Tensor, Tensor]:
        """Weight ``[K, D]`` and bias ``[K]`` of the logits."""
        return head_affine(self.weight, self.bias, self.kind)

    def dropout_scale(self, rows: int) -> Tensor | None:
        """A new ``[rows, D]`` mask of 0 and 1/(1-p), or None if nothing is dropped."""
        if not self.training or self.dropout == 0:
            return None
        keep = 1 - self.dropout
        width = self.weight.ds_shape[1] if hasattr(self.weight, "ds_shape") else self.weight.shape[1]
        return torch.full((rows, width), keep, device=self.weight.device).bernoulli_().div_(keep)


def head_affine(weight: Tensor, bias: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Weight ``[K, D]`` and bias ``[K]`` of the logits, from the head's parameters."""
    if kind != "ordinal":
        return weight, bias
    return weight.expand(bias.shape[0], -1).contiguous(), cut_points(bias.float())


def cut_points(bias_K: Tensor) -> Tensor:
    """``[K]`` descending biases: the first as it is, each later one lower by the softplus of its parameter."""
    return torch.cat([bias_K[:1], bias_K[:1] - F.softplus(bias_K[1:]).cumsum(dim=0)])


def cut_point_parameters(descending_K: Tensor) -> Tensor:
    """Inverse of :func:`cut_points`."""
    steps = -descending_K.diff()
    return torch.cat([descending_K[:1], torch.log(torch.expm1(steps))])


@dataclass(frozen=True)
class HeadSpec:
    """How the head starts."""

    classes: int
    kind: Kind = "single"
    dropout: float = 0.0
    label_tokens: Sequence[int] | None = None
    """The vocabulary's row with which each class starts, so that at the first step both heads read the classification
    token's state alike; an ordinal head starts with the last minus the first. None: zeros."""
    prior: Sequence[float] | None = None
    """Probability of each class by which the bias starts (single, ordinal: they sum to 1); None: equal classes."""
    trained: tuple[Tensor, Tensor] | None = None
    """Weight ``[K, D]`` and bias ``[K]`` to go on from, whatever the two fields above say."""

    def initial_weight(self, rows_CD: Tensor | None, width: int) -> Tensor:
        """The head's first weight, from the vocabulary's rows of ``label_tokens``."""
        if self.trained is not None:
            return self.trained[0][:1] if self.kind == "ordinal" else self.trained[0]
        if rows_CD is None:
            return torch.zeros(1 if self.kind == "ordinal" else self.classes, width)
        return (rows_CD[-1:] - rows_CD[:1]).float() if self.kind == "ordinal" else rows_CD.float()

    def initial_bias(self) -> Tensor | None:
        """The head's first bias parameters; None for zeros."""
        if self.trained is not None:
            return cut_point_parameters(self.trained[1]) if self.kind == "ordinal" else self.trained[1]
        if self.kind == "ordinal":
            prior_C = torch.tensor(self.prior or [1 / self.classes] * self.classes, dtype=torch.float64)
            cuts_K = torch.logit(1 - prior_C.cumsum(dim=0)[:-1], eps=1e-6)
            for k in range(1, len(cuts_K)):  # classes that (nearly) no row has still get a place
                cuts_K[k] = torch.minimum(cuts_K[k], cuts_K[k - 1] - 1e-2)
            return cut_point_parameters(cuts_K).float()
        if self.prior is None:
            return None
        prior_C = torch.tensor(self.prior, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
        return (torch.logit(prior_C) if self.kind == "multilabel" else prior_C.log()).float()


@dataclass(frozen=True)
class ClassLoss:
    """How a row's label becomes its loss; see :class:`clsgen_kernels.ClassOptions`."""

    kind: Kind = "single"
    class_weight: tuple[float, ...] | None = None
    focal_gamma: float = 0.0
    label_smoothing: float = 0.0
    bias_correction: tuple[float, ...] | None = None
    """``[K]`` added to the bias outside training: undoes what class weights and balanced sampling do to the odds."""

    def targets(self, label_S: Tensor, outputs: int) -> tuple[Tensor, ClassOptions]:
        """Targets as the fused loss takes them.

        Args:
            label_S: int64 ``[S]`` class, -1 without label; or float ``[S, C]``: of each class its share of the votes
                (single, ordinal) or its probability (multi-label), negative where unknown.
            outputs: logits of the head, K.
        """
        soft = label_S.is_floating_point()
        if self.kind == "multilabel":
            target_SC = label_S if soft else F.one_hot(label_S.clamp(min=0), outputs).float()
            known = target_SC >= 0 if soft else (label_S >= 0)[:, None]
            smoothed_SC = target_SC * (1 - self.label_smoothing) + self.label_smoothing / 2
            return torch.where(known, smoothed_SC, -1.0), self._options("multilabel")
        if not soft and self.label_smoothing == 0:
            return label_S, self._options("softmax" if self.kind == "single" else "ordinal")
        classes = outputs + (self.kind == "ordinal")
        known_S1 = label_S[:, :1] >= 0 if soft else (label_S >= 0)[:, None]
        q_SC = label_S if soft else F.one_hot(label_S.clamp(min=0), classes).float()
        q_SC = q_SC * (1 - self.label_smoothing) + self.label_smoothing / classes
        if self.kind == "single":
            return torch.where(known_S1, q_SC, -1.0), self._options("soft")
        above_SK = (1 - q_SC.cumsum(dim=1)[:, :-1]).clamp(min=0, max=1)
        return torch.where(known_S1, above_SK, -1.0), self._options("multilabel")

    def _options(self, kind: Literal["softmax", "soft", "multilabel", "ordinal"]) -> ClassOptions:
        return ClassOptions(kind, self.class_weight, self.focal_gamma)
