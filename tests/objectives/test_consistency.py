"""The consistency terms: against a plain formula in float64, and who learns from them."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import rel_entr

from clsgen_dist.config import parse_settings
from clsgen_dist.data.pack import dummy_batch
from clsgen_dist.errors import DataError, SettingsError
from clsgen_dist.model.backbone import label_start_tokens
from clsgen_dist.model.classification_head import ClassificationHead, ClassLoss
from clsgen_dist.model.forward_pass import ForwardPass
from clsgen_dist.model.label_space import LabelSpace, class_probabilities
from clsgen_dist.model.lm_head import LMHead, LogitTransform
from clsgen_dist.objectives.consistency import ConsistencySettings
from clsgen_dist.objectives.consistency_after import ConsistencyAfterSettings
from clsgen_dist.objectives.divergence import divergence, log_answers
from clsgen_dist.training.build_engine import loss_spec
from clsgen_dist.training.datasets import require_named_classes

KINDS = ("single", "multilabel", "ordinal")
TOKENS = (3, 7, 1, 9)  # of the names of four classes
START, END = torch.tensor([4, 9, 13]), torch.tensor([7, 9, 19])  # the second row has no explanation


def _forward(kind, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden_ND = (torch.randn(20, 8, generator=generator) * scale).to(dtype).requires_grad_()
    weight_VD = torch.randn(11, 8, generator=generator).to(dtype).requires_grad_()
    outputs = 3 if kind == "ordinal" else 4
    shape = (1, 8) if kind == "ordinal" else (outputs, 8)
    head = ClassificationHead(torch.randn(*shape, generator=generator), 0.0, torch.linspace(1, 0, outputs), kind)
    lm = SimpleNamespace(get_output_embeddings=lambda: SimpleNamespace(weight=weight_VD))
    lm_head = LMHead(lm, LogitTransform())
    batch = {"class_index_S": START, "end_index_S": END, "label_S": torch.tensor([0, 1, -1])}
    forward = ForwardPass(batch, hidden_ND, None, lm_head, head, head.affine(), START, ClassLoss(kind), TOKENS)
    return forward, weight_VD


def _answers(p_SC, kind):
    return np.stack([p_SC, 1 - p_SC], axis=2) if kind == "multilabel" else p_SC[:, None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_divergence_equals_the_formula(kind, scale):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 50, 4)) * scale
    if kind == "ordinal":
        logits = -np.sort(-logits)
    p, q = (_answers(class_probabilities(one, kind), kind) for one in logits)
    log_p, log_q = (log_answers(torch.from_numpy(one), kind) for one in logits)
    np.testing.assert_allclose(log_p.exp().sum(dim=2), 1, rtol=1e-12)
    np.testing.assert_allclose(divergence(log_p, log_q), rel_entr(p, q).sum(axis=(1, 2)), rtol=1e-7, atol=1e-12)


def test_an_ordinal_class_of_no_width_has_a_finite_logarithm():
    logits = torch.tensor([[2.0, 2.0, -1.0], [40.0, -40.0, -90.0]], dtype=torch.float32, requires_grad=True)
    log_p = log_answers(logits, "ordinal")
    divergence(log_p, log_answers(torch.zeros(2, 3) + torch.tensor([1.0, 0.0, -1.0]), "ordinal")).sum().backward()
    assert torch.isfinite(log_p).all() and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("learns", ["lm", "head", "both"])
@pytest.mark.parametrize("kind", ["single", "ordinal"])
def test_consistency_is_the_mean_divergence_of_head_and_lm(kind, learns):
    forward, weight_VD = _forward(kind)
    term = ConsistencySettings(learns=learns).term()
    total = term.sum(forward)
    states = forward.hidden_ND.detach().double()[START]
    head = forward.head
    weight_KD, bias_K = (t.detach().double() for t in head.affine())
    p = class_probabilities((states @ weight_KD.T + bias_K).numpy(), kind)
    q = torch.softmax(states @ weight_VD.detach().double()[list(TOKENS)].T, dim=1).numpy()
    assert float(total.detach()) == pytest.approx(rel_entr(p, q).sum(), rel=1e-5)
    total.backward()
    assert (head.weight.grad is not None) == (learns != "lm") and weight_VD.grad is None  # of the LM, the states learn
    others = torch.ones(20, dtype=torch.bool)
    others[START] = False
    assert not forward.hidden_ND.grad[others].any() and forward.hidden_ND.grad[START].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("learns", ["before", "after", "both"])
def test_consistency_after_is_the_divergence_of_both_readings(kind, learns):
    forward, _ = _forward(kind)
    term = ConsistencyAfterSettings(learns=learns).term()
    total = term.sum(forward)
    weight_KD, bias_K = (t.detach().double() for t in forward.head.affine())
    states = forward.hidden_ND.detach().double()
    after, before = (
        _answers(class_probabilities((states[at] @ weight_KD.T + bias_K).numpy(), kind), kind) for at in (END, START)
    )
    assert float(total.detach()) == pytest.approx(rel_entr(after, before).sum(), rel=1e-5)  # the row without: 0
    assert term.count(SimpleNamespace(is_explained=END != START)) == 2
    total.backward()
    learnt = {at: bool(forward.hidden_ND.grad[at].any()) for at in (4, 7, 9, 13, 19)}
    assert learnt[4] == learnt[13] == (learns != "after") and learnt[7] == learnt[19] == (learns != "before")


def test_gradients_equal_finite_differences():
    for kind in KINDS:
        logits = torch.tensor([[1.5, 0.2, -0.7], [0.3, -0.1, -2.0]], dtype=torch.float64, requires_grad=True)
        given = log_answers(torch.tensor([[0.9, 0.5, -0.2], [2.0, 1.0, 0.5]], dtype=torch.float64), kind)
        torch.autograd.gradcheck(lambda x, k=kind, g=given: divergence(log_answers(x, k), g), logits)
        torch.autograd.gradcheck(lambda x, k=kind, g=given: divergence(g, log_answers(x, k)), logits)


def test_rows_of_a_dummy_batch_count_for_no_term():
    argv = ["--objectives.consistency.weight=1", "--objectives.consistency_after.weight=1", "--model.decide=both"]
    terms = parse_settings(argv, default_config="configs/demo.yaml").objectives.terms("both")
    assert len(terms) == 5 and [term.count(dummy_batch(2)) for term in terms] == [0] * 5
    forward, _ = _forward("single")
    dummy = {"class_index_S": START, "end_index_S": START, "label_S": torch.tensor([-1, -1, -1])}
    nothing = dataclasses.replace(forward, batch=dummy)
    assert [float(term.sum(nothing).detach()) for term in terms[2:]] == [0] * 3


def test_explanations_that_do_not_begin_with_a_class_are_refused(encoder, row_dataset):
    names = LabelSpace.of(["benign", "malignant"])
    tokens = label_start_tokens(encoder, names.names)
    rows = [{"text": f"note {n}", "label": "benign", "explanation": "Benign: small."} for n in range(4)]
    require_named_classes(SimpleNamespace(train=row_dataset(rows)), tokens, names)
    others = [{**row, "explanation": "It is benign."} for row in rows]
    with pytest.raises(DataError, match="1 of 4 explanations begin with a class, such as 'Benign' or 'Malignant'"):
        require_named_classes(SimpleNamespace(train=row_dataset([*others[1:], rows[0]])), tokens, names)


def test_a_frozen_lm_cannot_learn():
    argv = ["--objectives.consistency.weight=1", "--model.finetune=head"]
    with pytest.raises(SettingsError, match="the LM is frozen and learns nothing; set objectives"):
        parse_settings(argv, default_config="configs/demo.yaml")


@pytest.mark.parametrize(
    ("flags", "kind", "tokens", "message"),
    [
        ({"consistency": 0.1}, "multilabel", (1, 2), "consistency.weight is 0.1 with multi-label rows"),
        ({"consistency": 0.1}, "single", None, "begin with the same token, .*: 'class a', 'class b'; set it to 0"),
        ({"consistency_after": 0.5}, "single", (1, 2), "decides before the explanation only; set model.decide to both"),
    ],
)
def test_terms_without_what_they_compare_are_refused(flags, kind, tokens, message):
    argv = [f"--objectives.{name}.weight={weight}" for name, weight in flags.items()]
    settings = parse_settings(argv, default_config="configs/demo.yaml")
    with pytest.raises(SettingsError, match=message):
        loss_spec(settings.objectives, LabelSpace.of(["class a", "class b"], kind=kind), None, name_tokens=tokens)
