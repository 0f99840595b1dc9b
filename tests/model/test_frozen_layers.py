"""A backbone that starts from what enters its first layer that learns: the same losses and gradients, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from clsgen_dist.data.pack import Sample, collate
from clsgen_dist.model import frozen_layers
from clsgen_dist.model.attention import register_per_sequence_attention
from clsgen_dist.model.backbone import build_model, checkpoint_activations, layer_stack
from clsgen_dist.model.classification_head import HeadSpec
from clsgen_dist.model.dual_head import LossSpec
from clsgen_dist.model.frozen_layers import FrozenLayers

SIZES = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
GPT2 = {
    "vocab_size": 99,
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
}
FAMILIES = {
    "Llama": {},  # SmolLM's too
    "SmolLM3": {"no_rope_layer_interval": 2, "pad_token_id": 0},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    "Qwen3": {},
    "Mistral": {"sliding_window": 5},
    "Gemma": {},  # multiplies its embeddings
    "Gemma3": {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "Olmo2": {},
    "Phi3": {"pad_token_id": 0},
    "GPT2": GPT2,  # adds positions to its embeddings
    "GPTNeoX": {"hidden_dropout": 0.0, "attention_dropout": 0.0},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
}


def _model(family, finetune="lora", top_layers=2, **changes):
    config_class = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family}Config"))
    torch.manual_seed(0)
    config = config_class(**({} if family == "GPT2" else SIZES) | FAMILIES.get(family, {}) | changes)
    lm = getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(family, f"{family}ForCausalLM"))._from_config(
        config, attn_implementation=register_per_sequence_attention() if family != "GPT2" else "sdpa"
    )
    model = build_model(
        lm, head=HeadSpec(3, dropout=0.2), losses=LossSpec("torch"), finetune=finetune, top_layers=top_layers
    )
    with torch.no_grad():  # adapters start at zero, and a head too
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    _, layers = layer_stack(model.lm)
    model.frozen_layers = FrozenLayers(layers, frozen_layers.first_that_learns(layers))
    return model


def _batch(lengths=((9, 4), (6, 3), (12, 0))):
    rng = np.random.default_rng(0)
    return collate([Sample(rng.integers(3, 99, p), rng.integers(3, 99, a), i % 3) for i, (p, a) in enumerate(lengths)])


def _losses_and_gradients(model, batch, **known):
    model.zero_grad()
    torch.manual_seed(1)
    output = model(**batch.inputs(), **known)
    (output.generation_loss.sum() + 2 * output.class_loss.sum()).backward()
    values = [output.generation_loss.detach(), output.class_loss.detach(), output.token_hit]
    return values + [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _same_bits(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_starts_there_with_the_same_losses_and_gradients(family):
    model, batch = _model(family), _batch()
    model.train()
    with torch.no_grad():
        found = frozen_layers.starts_equal(model, batch.inputs())
    assert torch.equal(found["whole"], found["started"])
    called = []
    for index, layer in enumerate(model.frozen_layers.layers):
        layer.register_forward_hook(lambda *_, index=index: called.append(index))
    model.lm.get_input_embeddings().register_forward_hook(lambda *_: called.append("embeddings"))
    plain = _losses_and_gradients(model, batch)
    assert len(plain) > 3 and called == ["embeddings", 0, 1, 2, 3]
    called.clear()
    kept = _losses_and_gradients(model, batch, known=frozen_layers.KnownStates(found["entering"]))
    assert called == [2, 3]
    assert _same_bits(plain, kept)


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_rows_alone_through_bytes_and_back_are_bit_equal(finetune):
    """Kept of each row alone, and computed alone: where packings are equal nothing rounds differently."""
    model = _model("Llama", finetune, top_layers=1)
    checkpoint_activations(model.lm)
    model.train()
    for row in ((9, 4), (6, 3), (12, 0)):
        batch = _batch([row])
        with torch.no_grad():
            known = frozen_layers.KnownStates(frozen_layers.entering_states(model, batch.inputs()))
        content = frozen_layers.contents(known, [sum(row)], [row[1]])
        size = frozen_layers.content_bytes(np.array([sum(row)]), np.array([row[1]]), 32, 4, all_frozen=False)
        assert [len(part) for part in content] == size.tolist()
        again = frozen_layers.known_states(content[0].copy(), [row[1]], 32, torch.float32, all_frozen=False)
        assert _same_bits(_losses_and_gradients(model, batch), _losses_and_gradients(model, batch, known=again))


@pytest.mark.parametrize("decide", ["before", "after"])
def test_with_a_head_alone_the_losses_of_tokens_are_kept(decide):
    model, batch = _model("Gemma3", "head", None), _batch()
    model.loss_spec = LossSpec("torch", decide=decide)
    model.train()
    assert model.frozen_layers.first == 4
    plain = _losses_and_gradients(model, batch)
    with torch.no_grad():
        known = frozen_layers.final_states(model, batch.inputs())
    lengths, answers = batch.sequence_start_S1.diff().tolist(), [4, 3, 0]
    contents = frozen_layers.contents(known, lengths, answers)
    sizes = frozen_layers.content_bytes(np.array(lengths), np.array(answers), 32, 4, all_frozen=True)
    assert [len(part) for part in contents] == sizes.tolist()
    # In another order, as rows meet in later epochs.
    again = frozen_layers.known_states(np.concatenate(contents), answers, 32, torch.float32, all_frozen=True)
    model.lm = torch.nn.Module()  # nothing of the LM is used
    assert _same_bits(plain, _losses_and_gradients(model, batch, known=again))


def test_bf16_goes_through_bytes():
    known = frozen_layers.KnownStates(torch.randn(5, 8).bfloat16())
    contents = frozen_layers.contents(known, [2, 3], [1, 1])
    again = frozen_layers.known_states(np.concatenate(contents), [1, 1], 8, torch.bfloat16, all_frozen=False)
    assert again.hidden_ND.dtype == torch.bfloat16 and torch.equal(again.hidden_ND, known.hidden_ND)


def test_layers_are_back_whatever_happens():
    model, batch = _model("Llama"), _batch()
    layers, names = list(model.frozen_layers.layers), list(model.state_dict())
    with pytest.raises(RuntimeError):
        model(**batch.inputs(), known=frozen_layers.KnownStates(torch.zeros(7, 32)))
    assert list(model.frozen_layers.layers) == layers and list(model.state_dict()) == names


def test_a_backbone_whose_layers_read_more_than_states_is_found_out():
    """One that hands the embeddings of the tokens to an upper layer past those below it."""

    class Reads(torch.nn.Module):
        def __init__(self, layer, seen):
            super().__init__()
            self.layer, self.seen = layer, seen

        def forward(self, hidden, *args, **options):
            return self.layer(hidden + self.seen[0], *args, **options)

    model, batch, seen = _model("Llama"), _batch(), [torch.zeros(1)]
    layers = model.frozen_layers.layers
    layers[3] = Reads(layers[3], seen)
    layers[0].register_forward_pre_hook(lambda _, inputs: seen.__setitem__(0, inputs[0]))
    with torch.no_grad():
        found = frozen_layers.starts_equal(model.eval(), batch.inputs())
    assert not torch.allclose(found["whole"], found["started"], rtol=1e-3)


@pytest.mark.parametrize(
    ("family", "changes", "where"),
    [
        ("GPT2", {"embd_pdrop": 0.1}, "transformer.drop.p = 0.1"),
        ("GPT2", {"attn_pdrop": 0.1}, "h.0.attn"),
        ("Llama", {"attention_dropout": 0.25}, "layers.0.self_attn.attention_dropout = 0.25"),
        ("Llama", {}, None),
    ],
)
def test_dropout_in_the_frozen_part_is_found(family, changes, where):
    model = _model(family, **changes)
    found = frozen_layers.active_dropout(model.lm, model.frozen_layers)
    assert found is None if where is None else where in found


def test_dropout_above_it_does_not_matter():
    model = _model("Llama")
    model.frozen_layers.layers[3].self_attn.attention_dropout = 0.5
    assert frozen_layers.active_dropout(model.lm, model.frozen_layers) is None
    model.frozen_layers.first = 4
    assert "layers.3" in frozen_layers.active_dropout(model.lm, model.frozen_layers)


@pytest.mark.parametrize("first", [2, 4])
@pytest.mark.parametrize("noise", [0.1, 0.0])
def test_what_is_random_under_another_name_shows_in_two_passes(first, noise):
    model, batch = _model("Mixtral", router_jitter_noise=noise), _batch().inputs()
    model.frozen_layers.first = first
    model.eval()
    model.lm.train()
    torch.manual_seed(5)
    following = torch.rand(3)
    torch.manual_seed(5)
    with torch.no_grad():
        found = frozen_layers.training_passes(model, batch)
    assert torch.equal(torch.rand(3), following) and model.lm.training and not model.training
    assert frozen_layers.active_dropout(model.lm, model.frozen_layers) is None
    for one, other in (("first", "second"), ("evaluated", "first")):
        assert torch.equal(found[one], found[other]) == (not noise)


def test_the_states_of_a_rank_without_rows_are_finite_everywhere():
    model = _model("Gemma3")
    batch = collate([Sample(np.full(2, 5), np.zeros(0, dtype=np.int32), -1)])
    known = frozen_layers.stand_in_states(False, 32, torch.float32)
    gradients = _losses_and_gradients(model, batch, known=known)[3:]
    assert gradients and all(bool(torch.isfinite(g).all()) for g in gradients)
