"""What the deciding token attends to: equal to eager attention's weights, whichever kernel computes the rest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import transformers

from clsgen_dist.data.pack import Sample, collate
from clsgen_dist.errors import ModelError
from clsgen_dist.model.attention import register_per_sequence_attention, rows_of_tokens
from clsgen_dist.model.attention_probe import AttentionProbe, let_probe, logsumexp_by_row
from clsgen_dist.model.backbone import build_model, checkpoint_activations
from clsgen_dist.model.classification_head import HeadSpec
from clsgen_dist.model.dual_head import LossSpec
from clsgen_dist.objectives.evidence import EvidenceSettings

# Grouped heads; a window shorter than the rows; a soft cap and a scale of its own; sinks.
FAMILIES = {
    "Llama": {},
    "Mistral": {"sliding_window": 5},
    "Gemma2": {"sliding_window": 5, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 3},
    "GptOss": {"sliding_window": 5, "num_local_experts": 2, "num_experts_per_tok": 1},
}


def _lm(family, attention):
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2}
    config = getattr(transformers, f"{family}Config")(**sizes | heads | FAMILIES[family])
    lm = getattr(transformers, f"{family}ForCausalLM")._from_config(config, attn_implementation=attention)
    return lm.eval()


@pytest.fixture(scope="module")
def batch():
    """Rows of 24, 3 and 15 tokens with evidence and without, some of it after the decision's window."""
    rng = np.random.default_rng(0)
    samples = []
    for prompt, explanation, evidence in ((17, 7, [[2, 5], [9, 14]]), (3, 0, []), (9, 6, [[0, 2]])):
        tokens = rng.integers(3, 99, prompt + explanation).astype(np.int32)
        spans = np.array(evidence, dtype=np.int32).reshape(-1, 2)
        samples.append(Sample(tokens[:prompt], tokens[prompt:], 1, spans))
    return collate(samples)


def _eager_weights(family, batch):
    """``[layers][H, N]`` from transformers' own attention, each row alone; and the loss of the evidence from them."""
    lm = _lm(family, "eager")
    starts = batch.sequence_start_S1.tolist()
    rows = [
        lm(batch.input_ids_N[None, start:stop], output_attentions=True).attentions
        for start, stop in itertools.pairwise(starts)
    ]
    at = (batch.class_index_S - batch.sequence_start_S1[:-1]).tolist()
    weights = [torch.cat([row[k][0, :, q] for row, q in zip(rows, at, strict=True)], 1) for k in range(2)]
    loss = torch.zeros(())
    for row in (0, 2):
        evidence = batch.evidence_index_e[batch.evidence_row_e == row]
        masses = [mass for w in weights if (mass := w[:, evidence].sum(1).mean()) > 0]  # else out of the window
        loss = loss - sum(mass.log() for mass in masses) / max(len(masses), 1)
    loss.backward()
    return weights, loss, {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointed", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize(
    ("family", "attention", "layout"),
    [
        *((family, "per sequence", layout) for family in FAMILIES for layout in ("packed", "padded")),
        ("Llama", "sdpa", "padded"),
        ("Mistral", "sdpa", "padded"),
    ],
)
def test_weights_loss_and_gradients_equal_those_of_eager_attention(family, attention, layout, checkpointed, batch):
    weights, loss, gradients = _eager_weights(family, batch)
    lm = _lm(family, register_per_sequence_attention() if attention == "per sequence" else attention)
    let_probe(lm.config._attn_implementation, lm)
    term = EvidenceSettings(layers=[0, -1]).term()
    model = build_model(lm, head=HeadSpec(2), losses=LossSpec("reference", terms=(term,)), finetune="full")
    model.layout = layout
    if checkpointed:
        checkpoint_activations(lm)
        model.train()
    inputs = batch.inputs()
    row_N = rows_of_tokens(inputs["sequence_start_S1"], batch.tokens)
    probe = AttentionProbe(
        frozenset({0, 1}), batch.class_index_S, row_N, None if layout == "packed" else inputs["position_N"]
    )
    names = ("input_ids_N", "position_N", "sequence_start_S1", "longest")
    model.hidden_states(*(inputs[name] for name in names), probe=probe)
    for layer, expected in enumerate(weights):
        torch.testing.assert_close(probe.log_weights[layer].exp(), expected, rtol=0, atol=1e-6)
    (total,) = model(**inputs).term_sums
    torch.testing.assert_close(total, loss, rtol=1e-5, atol=1e-6)
    total.backward()
    for name, gradient in gradients.items():
        found = dict(lm.named_parameters())[name].grad
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_the_share_of_evidence_is_reported_outside_training(batch):
    lm = _lm("Llama", register_per_sequence_attention())
    let_probe(lm.config._attn_implementation, lm)
    term = EvidenceSettings(layers=[-1]).term()
    assert term.count(batch) == 2
    model = build_model(lm, head=HeadSpec(2), losses=LossSpec("reference", terms=(term,)), finetune="full").eval()
    with torch.no_grad():
        output = model(**batch.inputs())
        plain = build_model(lm, head=HeadSpec(2), losses=LossSpec("reference"), finetune="full").eval()(
            **batch.inputs()
        )
    mass = output.evidence_mass
    assert torch.isnan(mass[1]) and not plain.evidence_mass.numel()
    torch.testing.assert_close(-mass[[0, 2]].log().sum(), output.term_sums[0])


def test_sums_of_exponentials_by_row():
    generator = torch.Generator().manual_seed(0)
    values = (torch.randn(2, 6, dtype=torch.float64, generator=generator) * 300).requires_grad_()
    row = torch.tensor([0, 0, 2, 2, 2, 3])
    found = logsumexp_by_row(values, row, 5)
    for r in (0, 2, 3):
        torch.testing.assert_close(found[:, r], values[:, row == r].logsumexp(1))
    assert not found[:, [1, 4]].any()
    small = torch.randn(2, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: logsumexp_by_row(x, row, 5), small)
    hidden = values.detach().masked_fill(row == 2, -torch.inf).requires_grad_()
    logsumexp_by_row(hidden, row, 5).sum().backward()
    assert torch.isfinite(hidden.grad).all()


def test_layers_without_attention_weights_are_refused():
    lm = _lm("Llama", "eager")
    with pytest.raises(ModelError, match=r"set model\.attention to auto"):
        let_probe("eager", lm)
    probe = AttentionProbe(frozenset({1}), torch.tensor([2]), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ModelError, match=r"the layers \[1\] have no softmax attention"):
        probe.log_mass(torch.tensor([0]), torch.tensor([0]))
