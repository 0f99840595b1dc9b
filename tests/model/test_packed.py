"""Packed sequences: the same losses and gradients as each row alone, whatever the family of the backbone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from clsgen_dist.data.pack import Sample, collate, pack
from clsgen_dist.errors import ModelError
from clsgen_dist.model.attention import packed_inputs, register_per_sequence_attention
from clsgen_dist.model.backbone import build_model
from clsgen_dist.model.classification_head import HeadSpec
from clsgen_dist.model.dual_head import ClassificationHead, DualHeadModel, LossSpec
from clsgen_dist.model.self_test import self_test
from clsgen_dist.objectives.normalization import StepCounts, backward_loss

HYBRIDS = {
    # Layers that carry a state along the sequence: linear attention, short convolutions, state spaces.
    "Qwen3Next": {
        "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8,
        "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "num_hidden_layers": 4,
    },
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
    "FalconH1": {
        "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1,
        "mamba_chunk_size": 4,
    },
}  # fmt: skip
FAMILIES = ["Llama", "Qwen2", "Qwen3", "Mistral", "Gemma", "Gemma3"]


def _lm(family, attention, **changes):
    config_class = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family}Config"))
    torch.manual_seed(0)
    sliding = {"sliding_window": 5} if family in ("Mistral", "Gemma3") else {}
    sizes = {
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    config = config_class(**sizes | sliding | changes)
    return getattr(transformers, f"{family}ForCausalLM")._from_config(config, attn_implementation=attention)


def _model(family, attention, **changes):
    return build_model(
        _lm(family, attention, **changes), head=HeadSpec(3), losses=LossSpec("reference"), finetune="full"
    )


def _sums(output):
    return {"generation": output.generation_loss.sum(), "classification": output.class_loss.sum()}


@pytest.fixture(scope="module")
def samples():
    """Rows of 3 to 24 tokens (past the sliding window); some without label, some without explanation."""
    rng = np.random.default_rng(0)
    made = []
    for i, (prompt, explanation) in enumerate([(9, 4), (2, 1), (17, 7), (3, 0), (5, 6), (12, 0), (8, 9)]):
        tokens = rng.integers(3, 99, prompt + explanation).astype(np.int32)
        made.append(Sample(tokens[:prompt], tokens[prompt:], -1 if i in (0, 4) else i % 3))
    return made


def _gradients(model, groups, samples):
    batches = [collate([samples[i] for i in group]) for group in groups]
    terms = {"generation": sum(b.supervised for b in batches), "classification": sum(b.labelled for b in batches)}
    counts = StepCounts(terms, 0)
    model.zero_grad()
    losses = []
    for batch in batches:
        output = model(**batch.inputs())
        backward_loss(_sums(output), counts, {"generation": 1.0, "classification": 0.7}, 1).backward()
        losses.append((output.generation_loss.sum().item(), output.class_loss.sum().item()))
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return np.sum(losses, axis=0), gradients


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_losses_and_gradients_equal_unpacked_ones(family, samples):
    alone = _model(family, "eager")
    truth = _gradients(alone, [[i] for i in range(len(samples))], samples)
    lengths = np.array([len(s.prompt) + len(s.explanation) for s in samples])
    packed = [[int(i) for i in bins] for step in pack(lengths, budget=50, ranks=1) for bins in step]
    assert len(packed) == 2 and max(map(len, packed)) > 2
    for attention in (register_per_sequence_attention(), "sdpa", "eager"):
        losses, gradients = _gradients(_model(family, attention), packed, samples)
        np.testing.assert_allclose(losses, truth[0], rtol=1e-5)
        assert gradients.keys() == truth[1].keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                gradient, truth[1][name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_a_sequence_does_not_attend_to_its_neighbours(samples):
    """Other neighbours, same states to the last bit."""
    model = _model("Llama", register_per_sequence_attention()).eval()
    with torch.no_grad():
        one = model(**collate([samples[0], samples[2], samples[6]]).inputs())
        other = model(**collate([samples[5], samples[2], samples[3]]).inputs())
    assert torch.equal(one.class_logits[1], other.class_logits[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_times_the_lm_head_equal_the_models_logits(family, samples):
    """The loss's logits are those of the model itself."""
    lm = _lm(family, register_per_sequence_attention()).eval()
    model = build_model(lm, head=HeadSpec(2), finetune="full")
    batch = collate(samples[:1])
    with torch.no_grad():
        hidden = model.hidden_states(batch.input_ids_N, batch.position_N, batch.sequence_start_S1, batch.longest)
        plain = _lm(family, "eager").eval()(batch.input_ids_N[None]).logits[0]
        torch.testing.assert_close(hidden @ lm.get_output_embeddings().weight.T, plain)


@pytest.mark.parametrize("family", ["Llama", *HYBRIDS])
def test_padded_losses_and_gradients_equal_those_of_single_rows(family, samples):
    changes = HYBRIDS.get(family, {})
    alone = _model(family, "eager", **changes)
    alone.layout = "padded"
    truth = _gradients(alone, [[i] for i in range(len(samples))], samples)
    for attention in ("eager", register_per_sequence_attention()):
        model = _model(family, attention, **changes)
        model.layout = "padded"
        losses, gradients = _gradients(model, [[0, 2, 3, 6], [1, 4, 5]], samples)
        np.testing.assert_allclose(losses, truth[0], rtol=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                gradient, truth[1][name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


@torch.no_grad()
def _tested(model):
    rng = np.random.default_rng(1)
    tokens = rng.integers(3, 99, 40).astype(np.int32)
    return self_test(model.eval(), Sample(tokens[:30], tokens[30:], -1))


@pytest.mark.parametrize("family", [*FAMILIES, *HYBRIDS])
def test_the_self_test_selects_packing_if_packed_rows_equal_single_rows(family, samples):
    """Losses in the layout that it selects are those of rows alone."""
    changes = HYBRIDS.get(family, {})
    model = _model(family, register_per_sequence_attention(), **changes)
    found = _tested(model)
    found.require_trainable(family)
    assert family in HYBRIDS or found.layout == "packed"
    assert (found.layout == "packed") == (found.refusal is None and found.leak < 1e-5)
    model.layout = "padded"
    truth = _gradients(model.train(), [[i] for i in range(len(samples))], samples)[0]
    model.layout = found.layout
    np.testing.assert_allclose(_gradients(model, [[0, 2, 3, 6], [1, 4, 5]], samples)[0], truth, rtol=1e-5)


def test_a_model_that_attends_to_later_tokens_is_refused():
    config = transformers.BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    lm = transformers.BertLMHeadModel(config)
    with pytest.raises(ModelError, match="is not causal"):
        _tested(DualHeadModel(lm, ClassificationHead(torch.zeros(2, 32), 0.0))).require_trainable("bert")


@pytest.mark.parametrize("sinks", [False, True])
def test_softcapping_and_attention_sinks_equal_transformers_attention(sinks):
    """Gemma 2's soft cap and gpt-oss's sinks, packed, against eager attention over each row alone."""
    torch.manual_seed(0)
    kind, changes = (
        ("GptOss", {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 4})
        if sinks
        else ("Gemma2", {"query_pre_attn_scalar": 8, "sliding_window": 4, "final_logit_softcapping": None})
    )
    ours, theirs = (_lm(kind, attention, **changes) for attention in (register_per_sequence_attention(), "eager"))
    theirs.load_state_dict(ours.state_dict())
    rows = [torch.randint(3, 99, (length,)) for length in (9, 4, 12)]
    start = torch.tensor([0, 9, 13, 25], dtype=torch.int32)
    with torch.no_grad():
        packed = ours.base_model(
            **packed_inputs(torch.cat(rows), torch.cat([torch.arange(len(r)) for r in rows]), start, 12)
        ).last_hidden_state[0]
        alone = torch.cat([theirs.base_model(row[None], use_cache=False).last_hidden_state[0] for row in rows])
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
