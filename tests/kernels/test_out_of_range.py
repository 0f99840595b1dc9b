"""Targets and labels out of range on a GPU, where a check would wait for it: NaN in the loss and the gradients."""

from __future__ import annotations

import pytest
import torch
from cases import CLASSES, cast, make_case, run
from clsgen_kernels import ClassOptions, checks, fused
from clsgen_kernels.inputs import ELSEWHERE, GenerationOptions, HeadInputs, LMInputs

# n supervised tokens, S rows, C classes


@pytest.mark.parametrize("beyond", [65, 2**31 + 5, -7], ids=["by one", "past int32", "below 0"])
@pytest.mark.parametrize("frozen", [False, True], ids=["lm trained", "lm frozen"])
@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_a_target_beyond_the_vocabulary_is_nan(impl, frozen, beyond, monkeypatch):
    monkeypatch.setattr(checks, "_check_range", lambda *_, **__: None)
    tensors, indices, (up_n, up_SC, up_S) = make_case(vocabulary=65, width=16)
    tensors, upstream = cast(tensors, torch.float32), (up_n, up_SC * 0, up_S * 0)
    trained = ("hidden_ND",) if frozen else ("hidden_ND", "lm_weight_VD")
    good, good_grads = run(tensors, indices, upstream, trained=trained, impl=impl)
    wrong = 5
    indices["target_n"] = indices["target_n"].clone()
    indices["target_n"][wrong] = beyond
    got, grads = run(tensors, indices, upstream, trained=trained, impl=impl)
    others = torch.arange(len(up_n)) != wrong
    assert got["generation_loss"][wrong].isnan() and not got["token_hit"][wrong]
    assert torch.equal(got["generation_loss"][others], good["generation_loss"][others])
    rows = torch.arange(len(tensors["hidden_ND"])) != indices["supervised_index_n"][wrong]
    assert grads["hidden_ND"][~rows].isnan().all()
    assert torch.equal(grads["hidden_ND"][rows], good_grads["hidden_ND"][rows])


def test_a_target_in_another_ranks_rows_is_in_range():
    hidden, weight = torch.ones(2, 16), torch.ones(40, 16)
    lm = LMInputs(hidden, weight, torch.tensor([3, ELSEWHERE]), None, GenerationOptions(), 80)
    none = torch.zeros(0, dtype=torch.int64)
    out = fused.forward(lm, HeadInputs(hidden[:0], weight[:2], weight[:2, 0], none, ClassOptions())).lm
    assert out.lse_n.isfinite().all() and out.target_logit_n.tolist() == [16.0, 0.0]


@pytest.mark.parametrize("kind", CLASSES)
def test_a_label_out_of_range_is_nan(kind):
    classes = 1 if kind == "sigmoid" else 3
    tensors, indices, _ = make_case(kind=kind, classes=classes)
    tensors, wrong = cast(tensors, torch.float32), 1
    label = indices["label_S"].float() if kind == "soft" else indices["label_S"]
    none = torch.zeros(0, dtype=torch.int64)
    states, weight = tensors["hidden_ND"], tensors["lm_weight_VD"]
    lm = LMInputs(states[:0], weight, none, None, GenerationOptions(), len(weight))
    options = CLASSES[kind]

    def losses(label):
        pooled = states[indices["class_index_S"]]
        head = HeadInputs(pooled, tensors["head_weight_CD"], tensors["head_bias_C"], label, options)
        return fused.forward(lm, head).class_loss_S

    good = losses(label)
    beyond = label.clone()
    beyond[wrong] = {"softmax": 3, "ordinal": 4}.get(kind, 2)
    got = losses(beyond)
    assert good.isfinite().all() and got[wrong].isnan()
    others = torch.arange(len(got)) != wrong
    assert torch.equal(got[others], good[others])


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("kind", CLASSES)
def test_gradients_of_a_label_out_of_range_are_nan(kind, impl, monkeypatch):
    monkeypatch.setattr(checks, "_check_range", lambda *_, **__: None)
    tensors, indices, (up_n, up_SC, up_S) = make_case(kind=kind, classes=1 if kind == "sigmoid" else 3)
    tensors, upstream, wrong = cast(tensors, torch.float32), (up_n * 0, up_SC * 0, up_S), 1
    beyond = {"softmax": [3, -7], "ordinal": [4, -7], "sigmoid": [2, -7]}.get(kind, [2])
    for label in beyond:
        indices["label_S"] = indices["label_S"].float() if kind == "soft" else indices["label_S"].clone()
        indices["label_S"][wrong] = label
        got, grads = run(tensors, indices, upstream, trained=("hidden_ND",), impl=impl, classification=CLASSES[kind])
        others = torch.arange(len(up_S)) != wrong
        assert got["class_loss"][wrong].isnan() and got["class_loss"][others].isfinite().all()
        rows = torch.arange(len(tensors["hidden_ND"])) == indices["class_index_S"][wrong]
        assert grads["hidden_ND"][rows].isnan().all() and grads["hidden_ND"][~rows].isfinite().all()
