"""The retention term: the divergence from the untrained model in float64, and what is replayed when."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import rel_entr

from clsgen_dist.config import parse_settings
from clsgen_dist.data.example import Columns
from clsgen_dist.data.pack import REPLAYED, Sample, collate, dummy_batch, pack_groups
from clsgen_dist.data.tables.build import open_table
from clsgen_dist.data.tables.replay import ReplayTexts
from clsgen_dist.data.tables.spec import TableSpec
from clsgen_dist.errors import DataError, SettingsError
from clsgen_dist.model import reference_divergence as module
from clsgen_dist.model.adapters import adapters_off
from clsgen_dist.model.dual_head import LossSpec
from clsgen_dist.model.lm_head import LMHead, LogitTransform
from clsgen_dist.model.reference_divergence import reference_divergence
from clsgen_dist.objectives.retention import RetentionSettings


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((7, 5), (7, 5), (11, 5))]
    return draw[0].requires_grad_(), draw[1], draw[2]


@pytest.mark.parametrize("block", [2**24, 22])
@pytest.mark.parametrize("changed", [False, True], ids=["plain logits", "scale, bias and soft cap"])
def test_divergences_equal_the_formula(states, block, changed, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", block)
    hidden, reference, weight = states
    bias = torch.linspace(-1, 1, 11, dtype=torch.float64) if changed else None
    layer = SimpleNamespace(weight=weight, bias=bias)
    transform = LogitTransform(scale=0.7, softcap=2.0) if changed else LogitTransform()
    head = LMHead(SimpleNamespace(get_output_embeddings=lambda: layer), transform)
    found = reference_divergence(hidden, reference, head)
    products = [x.detach() @ weight.T for x in (hidden, reference)]
    logits = [2 * torch.tanh(0.7 * (x + bias) / 2) for x in products] if changed else products
    p, q = (x.softmax(dim=1).numpy() for x in logits)
    np.testing.assert_allclose(found.detach().numpy(), rel_entr(q, p).sum(axis=1), rtol=1e-10)
    assert torch.autograd.gradcheck(lambda h: reference_divergence(h, reference, head), hidden)
    assert float(reference_divergence(reference, reference, head).abs().max()) < 1e-12
    assert reference_divergence(hidden[:0], reference[:0], head).shape == (0,)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("method", ["kl", "replay"])
def test_the_terms_sum_equals_that_of_plain_transformers(method, layout, model):
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 99, n).astype(np.int32) for n in (6, 2, 9)]
    rows = [Sample(texts[0], texts[1], 1, rejected=texts[2]), Sample(texts[2], texts[0], 0)]
    batch = collate(rows, replayed=texts)
    assert batch.role_S.tolist()[-3:] == [REPLAYED] * 3 and batch.of_S.tolist()[-3:] == [3, 4, 5]
    term = RetentionSettings(method=method).term()
    model.loss_spec, model.layout = LossSpec("torch", terms=(term,)), layout
    model.train().zero_grad()
    (total,) = model(**batch.inputs()).term_sums
    total.backward()
    gradients = {name: p.grad.clone() for name, p in model.lm.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected = torch.zeros((), dtype=torch.float64)
    for text in texts:
        ids = torch.from_numpy(text.astype(np.int64))[None]
        log_p = model.lm(ids).logits[0, :-1].double().log_softmax(dim=1)
        with torch.no_grad(), adapters_off(model.lm):
            log_q = model.lm(ids).logits[0, :-1].double().log_softmax(dim=1)
        if method == "kl":
            expected = expected + (log_q.exp() * (log_q - log_p)).sum()
        else:
            expected = expected - log_p[torch.arange(len(text) - 1), ids[0, 1:]].sum()
    assert term.count(batch) == 14 and float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    expected.backward()
    for name, gradient in gradients.items():
        plain = model.lm.get_parameter(name).grad
        torch.testing.assert_close(gradient, plain, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert len(gradients) > 10
    if method == "kl":
        untrained_ND = model._reference_states(batch.inputs())
        assert (untrained_ND[:-17] == 0).all() and (untrained_ND[-17:].abs().sum(dim=1) > 0).all(), "17 tokens of text"
    # Rows are as without them.
    alone = collate(rows)
    assert batch.target_n.equal(alone.target_n) and (batch.labelled, batch.supervised) == (
        alone.labelled,
        alone.supervised,
    )
    assert not batch.has_target[3:].any() and int(batch.is_judged.sum()) == 3
    (nothing,) = model(**dummy_batch(2).inputs()).term_sums
    assert term.count(dummy_batch(2)) == 0 and float(nothing.detach()) == 0


def test_general_texts_are_a_function_of_seed_and_step(tmp_path, encoder):
    file = tmp_path / "general.jsonl"
    texts = [f"{'word ' * n}end" for n in range(1, 8)] + ["x"]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    spec = TableSpec(
        Columns().text_only(), None, 50, encoder.tokens_of, encoder.end_token, encoder.tokenizer_key,
        require_target=False,
    )  # fmt: skip
    table = open_table(str(file), spec)
    replay = ReplayTexts(table, max_length=5, per_step=3, seed=1)
    assert len(replay) == 7 and replay.longest() == 5  # a text of one token predicts nothing
    assert replay.lengths(np.arange(7)).tolist() == [len(replay.tokens(n)) for n in range(7)] == [2, 3, 4, 5, 5, 5, 5]
    seen = [text for step in range(7) for text in replay.at(step)]
    assert all(sorted(seen[at : at + 7]) == list(range(7)) for at in (0, 7, 14)) and seen[:7] != seen[7:14]
    assert replay.at(4).tolist() == ReplayTexts(table, max_length=5, per_step=3, seed=1).at(4).tolist()
    other = ReplayTexts(table, max_length=5, per_step=3, seed=2)
    assert [text for step in range(7) for text in other.at(step)] != seen
    file.write_text('{"text": "x"}\n')
    with pytest.raises(DataError, match="no text has two tokens"):
        ReplayTexts(open_table(str(file), spec), max_length=5, per_step=3, seed=1)


def test_general_texts_belong_to_no_group():
    length = np.array([5, 5, 5, 5, 9, 9, 9])
    bins = pack_groups(length, group=2, budget=20, ranks=2, alone=3)
    found = [set(of.tolist()) for step in bins for of in step]
    assert all(({0, 1} <= of or not {0, 1} & of) and ({2, 3} <= of or not {2, 3} & of) for of in found)
    assert sorted(row for of in found for row in of) == list(range(7))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--objectives.retention.weight=1"], r"data\.replay is not set"),
        (["--objectives.retention.weight=1", "--data.replay=x", "--model.finetune=full"], r"or the method to replay"),
    ],
)
def test_what_cannot_be_kept_is_refused(argv, words):
    with pytest.raises(SettingsError, match=words):
        parse_settings(argv, default_config="configs/demo.yaml")


def test_in_bf16_logits_are_rounded_once():
    """The soft cap and the bias work on wide products: within half of what rounding after each of them costs."""
    torch.manual_seed(0)
    weight, bias = (torch.randn(500, 64) * 0.5).bfloat16(), (torch.randn(500) * 5).bfloat16()
    states = (torch.randn(200, 64) * 3).bfloat16()
    reference = (states + 0.1 * torch.randn(200, 64)).bfloat16()

    def divergences(dtype):
        layer = SimpleNamespace(weight=weight.to(dtype), bias=bias.to(dtype))
        head = LMHead(SimpleNamespace(get_output_embeddings=lambda: layer), LogitTransform(1.0, 30.0))
        return reference_divergence(states.to(dtype), reference.to(dtype), head)

    truth = divergences(torch.float64)
    assert (divergences(torch.bfloat16) - truth).norm() / truth.norm() < 0.15  # 0.11; rounded after each step 0.34
