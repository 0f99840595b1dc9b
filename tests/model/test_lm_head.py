"""Backbones that scale, cap or bias their logits: losses, gradients and probabilities are transformers' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

from clsgen_dist.data.pack import Sample, collate
from clsgen_dist.errors import ModelError
from clsgen_dist.model.backbone import build_model
from clsgen_dist.model.classification_head import HeadSpec
from clsgen_dist.model.dual_head import LossSpec
from clsgen_dist.model.lm_head import LMHead, LogitTransform
from clsgen_dist.model.self_test import self_test
from clsgen_dist.model.unsupported import UnsupportedBackboneError
from clsgen_dist.objectives.retention import RetentionSettings
from tests.model.changed_logits import CHANGED, changed_lm

SAMPLES = [Sample(np.array([5, 9, 3, 7], np.int32), np.array([8, 2], np.int32), 1),
           Sample(np.array([4, 6], np.int32), np.array([3, 11, 90, 2], np.int32), 0)]  # fmt: skip


def _model(family, impl="reference", **options):
    lm = changed_lm(family, 99)
    return build_model(lm, head=HeadSpec(2, **options), losses=LossSpec(impl, name_tokens=(3, 7)), finetune="full")


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("family", CHANGED)
def test_losses_and_gradients_are_those_of_transformers_logits(family, impl):
    model = _model(family, impl).train()
    model.layout = "padded"
    output = model(**collate(SAMPLES).inputs())
    output.generation_loss.sum().backward()
    found = {name: p.grad.clone() for name, p in model.lm.named_parameters() if p.grad is not None}
    model.zero_grad()
    losses, plain = [], []
    for sample in SAMPLES:
        ids_T = torch.from_numpy(np.concatenate([sample.prompt, sample.explanation])).long()
        logits_TV = model.lm(ids_T[None], use_cache=False).logits[0]
        start = len(sample.prompt) - 1
        losses.append(F.cross_entropy(logits_TV[start:-1], ids_T[start + 1 :], reduction="none"))
        products_TV = model.lm.base_model(ids_T[None]).last_hidden_state[0] @ model.lm.get_output_embeddings().weight.T
        plain.append(F.cross_entropy(products_TV[start:-1], ids_T[start + 1 :], reduction="none"))
    torch.testing.assert_close(output.generation_loss, torch.cat(losses), rtol=1e-5, atol=1e-5)
    assert (torch.cat(plain) - torch.cat(losses)).abs().max() > 0.05, "the family's logits are not changed"
    torch.cat(losses).sum().backward()
    expected = {name: p.grad for name, p in model.lm.named_parameters() if p.grad is not None}
    assert expected.keys() == found.keys() and len(found) > 10
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_the_self_test_refuses_embeddings_that_give_other_states():
    model = _model("Gemma2").eval()
    tokens, rows = np.random.default_rng(0).integers(3, 90, 30).astype(np.int32), model.lm.get_input_embeddings()
    found = []
    for factor in (1.0, 1.1):
        model.lm_head.embed = lambda ids_N, factor=factor: factor * rows(ids_N)
        with torch.no_grad():
            found.append(self_test(model, Sample(tokens[:20], tokens[20:], -1)))
    found[0].require_trainable("it")
    with pytest.raises(ModelError, match=r"other states from embeddings than from tokens.*set it to gathered"):
        found[1].require_trainable("it")


@pytest.mark.parametrize("family", CHANGED)
def test_the_self_test_accepts_them_and_refuses_another_transform(family):
    model = _model(family).eval()
    tokens = np.random.default_rng(0).integers(3, 90, 30).astype(np.int32)
    with torch.no_grad():
        found = self_test(model, Sample(tokens[:20], tokens[20:], -1))
        found.require_trainable(family)
        model.lm_head = LMHead(_without_bias(model.lm), LogitTransform())
        wrong = self_test(model, Sample(tokens[:20], tokens[20:], -1))
    with pytest.raises(UnsupportedBackboneError, match="makes other logits of its last hidden states"):
        wrong.require_trainable(family)


def _without_bias(lm):
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight = lm.get_output_embeddings().weight

    class Plain:
        def get_output_embeddings(self):
            return layer

    return Plain()


@pytest.mark.parametrize("family", CHANGED)
def test_what_terms_read_of_the_lm_has_its_transform(family):
    model = _model(family, "torch").eval()
    model.loss_spec = LossSpec("torch", name_tokens=(3, 7), terms=(RetentionSettings(method="replay").term(),))
    model.layout = "padded"
    text = np.array([5, 8, 13, 4], np.int32)
    with torch.no_grad():
        output = model(**collate(SAMPLES, replayed=[text]).inputs())
        for row, sample in enumerate(SAMPLES):
            logits_TV = model.lm(torch.from_numpy(sample.prompt).long()[None], use_cache=False).logits[0]
            torch.testing.assert_close(output.name_logits[row], logits_TV[-1, [3, 7]], rtol=1e-4, atol=1e-5)
        ids_T = torch.from_numpy(text).long()
        logits_TV = model.lm(ids_T[None], use_cache=False).logits[0]
    expected = F.cross_entropy(logits_TV[:-1], ids_T[1:], reduction="sum")
    torch.testing.assert_close(output.term_sums[0], expected, rtol=1e-5, atol=1e-5)


def test_a_head_from_label_tokens_starts_at_the_lms_scale():
    model = _model("Cohere", label_tokens=[3, 7])
    rows = model.lm.get_output_embeddings().weight[[3, 7]]
    torch.testing.assert_close(model.classification_head.weight, rows * model.lm.logit_scale)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (transformers.Gemma2Config(), LogitTransform(1.0, 30.0)),
        (transformers.CohereConfig(), LogitTransform(0.0625)),
        (transformers.GraniteConfig(logits_scaling=8.0), LogitTransform(0.125)),
        (transformers.CONFIG_MAPPING["hyperclovax"](logits_scaling=8.0), LogitTransform(8.0)),
        (transformers.MptConfig(logit_scale=0.5), LogitTransform()),
        (transformers.LlamaConfig(), LogitTransform()),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_the_transform_of_a_configuration(config, expected):
    assert LogitTransform.of(config) == expected


def test_a_scale_that_no_logits_come_from_is_refused():
    with pytest.raises(UnsupportedBackboneError, match=r"logit_scale in the backbone's config\.json is 0"):
        LogitTransform.of(transformers.CohereConfig(logit_scale=0.0))
