"""The head and its targets in every label space, against plain formulas in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clsgen_kernels import dual_head_loss
from hypothesis import given
from hypothesis import strategies as st

from clsgen_dist.errors import SettingsError
from clsgen_dist.model.classification_head import (
    ClassificationHead,
    ClassLoss,
    cut_point_parameters,
    cut_points,
    head_affine,
)
from clsgen_dist.model.label_space import LabelSpace, class_probabilities

# S rows, C classes, K logits


def _losses(logits_SK, labels, options: ClassLoss) -> torch.Tensor:
    """Losses ``[S]`` of the fused loss's torch implementation for these logits."""
    targets, class_options = options.targets(labels, logits_SK.shape[1])
    rows = len(logits_SK)
    if targets.is_floating_point():
        targets = targets.double()
    return dual_head_loss(
        torch.eye(rows, dtype=torch.float64),
        torch.zeros(3, rows, dtype=torch.float64),
        logits_SK.T.contiguous(),
        torch.zeros(logits_SK.shape[1], dtype=torch.float64),
        supervised_index_n=torch.zeros(0, dtype=torch.int64),
        target_n=torch.zeros(0, dtype=torch.int64),
        class_index_S=torch.arange(rows),
        label_S=targets,
        classification=class_options,
        impl="torch",
    ).class_loss


def _logits(rows, outputs):
    return torch.randn(rows, outputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


NOT_KNOWN = [-1.0, -1.0, -1.0]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_single_is_cross_entropy(smoothing):
    logits, labels = _logits(4, 3), torch.tensor([2, -1, 0, 1])
    expected = F.cross_entropy(logits, labels, reduction="none", ignore_index=-1, label_smoothing=smoothing)
    torch.testing.assert_close(_losses(logits, labels, ClassLoss(label_smoothing=smoothing)), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_votes_are_cross_entropy_with_their_shares(smoothing):
    logits = _logits(3, 3)
    votes = torch.tensor([[0.5, 0.25, 0.25], NOT_KNOWN, [0.0, 1.0, 0.0]], dtype=torch.float64)
    expected = F.cross_entropy(logits, votes.clamp(min=0), reduction="none", label_smoothing=smoothing)
    expected[1] = 0
    torch.testing.assert_close(_losses(logits, votes, ClassLoss(label_smoothing=smoothing)), expected)


def test_multilabel_is_binary_cross_entropy_over_the_known_classes():
    logits = _logits(3, 3)
    labels = torch.tensor([[1.0, 0.0, -1.0], NOT_KNOWN, [0.3, 1.0, 0.0]], dtype=torch.float64)
    each = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0), reduction="none")
    expected = torch.where(labels >= 0, each, 0).sum(dim=1)
    torch.testing.assert_close(_losses(logits, labels, ClassLoss("multilabel")), expected)


def test_a_batch_without_any_label_has_no_loss_in_any_space():
    for kind, outputs in (("single", 3), ("multilabel", 3), ("ordinal", 2)):
        losses = _losses(_logits(2, outputs), torch.tensor([-1, -1]), ClassLoss(kind, label_smoothing=0.1))
        assert losses.tolist() == [0.0, 0.0], kind


def test_ordinal_loss_sums_over_the_cut_points():
    logits = _logits(4, 2)
    expected = [
        -sum(
            math.log(p if label > k else 1 - p) for k, p in enumerate(torch.sigmoid(row).tolist())
        ) if label >= 0 else 0.0
        for row, label in zip(logits, (0, 2, 1, -1), strict=True)
    ]  # fmt: skip
    losses = _losses(logits, torch.tensor([0, 2, 1, -1]), ClassLoss("ordinal"))
    assert losses.tolist() == pytest.approx(expected)
    one_hot = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 1, 0], NOT_KNOWN], dtype=torch.float64)
    torch.testing.assert_close(_losses(logits, one_hot, ClassLoss("ordinal")), losses)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6))
def test_cut_points_descend_whatever_is_learnt_and_can_be_inverted(parameters):
    cuts = cut_points(torch.tensor(parameters, dtype=torch.float64))
    assert (cuts.diff() < 0).all()
    torch.testing.assert_close(cut_points(cut_point_parameters(cuts)), cuts)


def test_an_ordinal_head_has_one_direction():
    head = ClassificationHead(torch.ones(1, 4), 0.0, torch.tensor([0.5, 0.1, -0.3]), "ordinal")
    weight, bias = head.affine()
    assert weight.shape == (3, 4) and weight.is_contiguous() and (bias.diff() < 0).all()
    torch.manual_seed(0)
    probabilities = class_probabilities((torch.randn(50, 4) @ weight.T + bias).detach().numpy(), "ordinal")
    assert probabilities.shape == (50, 4) and (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    (weight.sum() + bias.sum()).backward()
    assert head.weight.grad.shape == (1, 4) and (head.weight.grad == 3).all() and (head.bias.grad != 0).all()


def test_other_heads_are_as_they_are():
    weight, bias = torch.ones(3, 4), torch.arange(3.0)
    assert head_affine(weight, bias, "multilabel") == (weight, bias)


def test_probabilities_of_each_space():
    logits = np.array([[0.3, -1.2, 2.0]])
    np.testing.assert_allclose(class_probabilities(logits, "single").sum(), 1)
    np.testing.assert_allclose(class_probabilities(logits, "multilabel"), 1 / (1 + np.exp(-logits)))
    above = 1 / (1 + np.exp(-np.array([2.0, 0.3, -1.2])))
    found = class_probabilities(np.array([[2.0, 0.3, -1.2]]), "ordinal")[0]
    np.testing.assert_allclose(found, [1 - above[0], above[0] - above[1], above[1] - above[2], above[2]])


def test_a_label_space_knows_its_logits():
    assert LabelSpace.of(["a", "b", "c"]).outputs == 3 and not LabelSpace.of(["a", "b", "c"]).is_binary
    assert LabelSpace.of(["a", "b", "c"], kind="ordinal").outputs == 2
    assert LabelSpace.of(["a"], kind="multilabel").outputs == 1 and LabelSpace.of(["a", "b"]).is_binary
    with pytest.raises(SettingsError, match=r"the label space is \['a'\], expected two or more classes"):
        LabelSpace.of(["a"], kind="ordinal")
