"""Packed sequences: the same losses and gradients as each row alone, whatever the family of the backbone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from clsgen_dist.data.pack import Sample, collate, pack
from clsgen_dist.errors import ModelError
from clsgen_dist.loss.dual import StepCounts, backward_loss
from clsgen_dist.loss.weights import LossWeights
from clsgen_dist.model.attention import per_sequence
from clsgen_dist.model.backbone import build_model

FAMILIES = ["Llama", "Qwen2", "Qwen3", "Mistral", "Gemma", "Gemma3"]


def _lm(family, attention):
    config_class = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family}Config"))
    torch.manual_seed(0)
    sliding = {"sliding_window": 5} if family in ("Mistral", "Gemma3") else {}
    config = config_class(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        **sliding,
    )
    return getattr(transformers, f"{family}ForCausalLM")._from_config(config, attn_implementation=attention)


def _model(family, attention):
    return build_model(
        _lm(family, attention),
        classes=3,
        label_tokens=None,
        finetune="full",
        top_layers=None,
        lora_rank=4,
        lora_alpha=8,
        lora_dropout=0.0,
        head_dropout=0.0,
        loss_impl="reference",
        seed=0,
    )


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
    counts = StepCounts(sum(b.supervised for b in batches), sum(b.labelled for b in batches), 0)
    model.zero_grad()
    losses = []
    for batch in batches:
        output = model(**batch.inputs())
        backward_loss(output, counts, LossWeights(1.0, 0.7), 1).backward()
        losses.append((output.generation_loss.sum().item(), output.class_loss.sum().item()))
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return np.sum(losses, axis=0), gradients


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_every_gradient_equal_the_unpacked_ones(family, samples):
    alone = _model(family, "eager")
    truth = _gradients(alone, [[i] for i in range(len(samples))], samples)
    lengths = np.array([len(s.prompt) + len(s.explanation) for s in samples])
    packed = [[int(i) for i in bins] for step in pack(lengths, budget=50, ranks=1) for bins in step]
    assert len(packed) == 2 and max(map(len, packed)) > 2
    for attention in (per_sequence(), "sdpa", "eager"):
        losses, gradients = _gradients(_model(family, attention), packed, samples)
        np.testing.assert_allclose(losses, truth[0], rtol=1e-5)
        assert gradients.keys() == truth[1].keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                gradient, truth[1][name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_a_sequence_cannot_see_its_neighbours(samples):
    """Other neighbours, same states to the last bit."""
    model = _model("Llama", per_sequence()).eval()
    with torch.no_grad():
        one = model(**collate([samples[0], samples[2], samples[6]]).inputs())
        other = model(**collate([samples[5], samples[2], samples[3]]).inputs())
    assert torch.equal(one.class_logits[1], other.class_logits[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_hidden_states_times_the_lm_head_are_their_logits(family, samples):
    """What the loss multiplies is what the model itself would say."""
    lm = _lm(family, per_sequence()).eval()
    model = build_model(
        lm, classes=2, label_tokens=None, finetune="full", top_layers=None, lora_rank=1, lora_alpha=1,
        lora_dropout=0.0, head_dropout=0.0, loss_impl="auto", seed=0,
    )  # fmt: skip
    batch = collate(samples[:1])
    with torch.no_grad():
        hidden = model.hidden_states(batch.input_ids_N, batch.position_N, batch.sequence_start_S1, batch.longest)
        plain = _lm(family, "eager").eval()(batch.input_ids_N[None]).logits[0]
        torch.testing.assert_close(hidden @ lm.get_output_embeddings().weight.T, plain)


def test_a_backbone_that_would_carry_state_between_sequences_is_refused():
    config = transformers.Qwen3NextConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8,
        shared_expert_intermediate_size=8, linear_num_key_heads=1, linear_num_value_heads=1,
        linear_key_head_dim=8, linear_value_head_dim=8,
    )  # fmt: skip
    with torch.device("meta"):
        lm = transformers.Qwen3NextForCausalLM(config)
    with pytest.raises(ModelError, match="cannot be trained on packed sequences: it has layers of the kind linear"):
        build_model(
            lm, classes=2, label_tokens=None, finetune="full", top_layers=None, lora_rank=1, lora_alpha=1,
            lora_dropout=0.0, head_dropout=0.0, loss_impl="auto", seed=0,
        )  # fmt: skip
