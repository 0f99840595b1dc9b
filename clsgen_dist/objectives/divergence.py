"""Divergence of two readings of the classes, in every label space: what the consistency terms are made of.

    single, ordinal   KL(p || q) = Σ_c p_c log(p_c / q_c) over the classes
    multilabel        the same for yes and no of each class, summed over the classes

An ordinal head's classes have the probabilities σ(a) - σ(b) between neighbouring cut points, whose logarithm is
log σ(a) + log σ(-b) + log(1 - e^(b-a)) (exact where σ(a) and σ(b) are close).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from clsgen_dist.model.label_space import Kind

# S rows, C classes, K logits of the head, Q questions (multi-label: one a class, else 1), A answers of each


def log_answers(logits_SK: Tensor, kind: Kind) -> Tensor:
    """``[S, Q, A]`` log probabilities of the answers: the classes, or yes and no of each."""
    import torch
    import torch.nn.functional as F

    if kind == "single":
        return logits_SK.log_softmax(dim=1)[:, None]
    if kind == "multilabel":
        return torch.stack([F.logsigmoid(logits_SK), F.logsigmoid(-logits_SK)], dim=2)
    # Cut points are ordered, but floating point may be off by its last digit.
    step = (logits_SK[:, :-1] - logits_SK[:, 1:]).clamp(min=1e-6)
    between = F.logsigmoid(logits_SK[:, :-1]) + F.logsigmoid(-logits_SK[:, 1:]) + torch.log(-torch.expm1(-step))
    return torch.cat([F.logsigmoid(-logits_SK[:, :1]), between, F.logsigmoid(logits_SK[:, -1:])], dim=1)[:, None]


def divergence(log_p_SQA: Tensor, log_q_SQA: Tensor) -> Tensor:
    """``[S]`` KL(p || q) in nats, summed over the questions."""
    return (log_p_SQA.exp() * (log_p_SQA - log_q_SQA)).sum(dim=(1, 2))
