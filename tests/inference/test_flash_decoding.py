"""Predictions with flash-attention's double: the same as without, in prefill and batched decoding with a KV cache."""

from __future__ import annotations

import pytest
import torch
import transformers

from clsgen_dist.inference.predict import Predictor
from clsgen_dist.model.attention import choose_attention
from tests.model import flash_attn_double

FAMILIES = {
    "Llama": {},
    "Mistral": {"sliding_window": 12},
    "Gemma3": {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8},
    "GPTNeoX": {},
}


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_equal_those_without_flash_attention(family, version, folder, monkeypatch):
    _replace_model(folder, family)
    texts = [f"{'x' * (n * 5 % 17)} note {n}" for n in range(6)]

    def predictions():
        predictor = Predictor(folder)
        found = predictor.predict(texts, batch_size=4, max_new_tokens=16)
        return predictor.lm.config._attn_implementation, found

    name, expected = predictions()
    assert name == "sdpa"
    kernels = flash_attn_double.install(monkeypatch, version, exact=True)
    flash = f"flash_attention_{version}"
    monkeypatch.setattr("clsgen_dist.inference.predict.choose_attention", lambda *_, **__: flash)
    name, found = predictions()
    assert name == flash
    assert [p.explanation for p in found] == [p.explanation for p in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    lengths = [(call["cu_seqlens_q"].diff().tolist(), call["cu_seqlens_k"].diff().tolist()) for call in kernels.varlen]
    assert any(max(queries) > 1 and queries == keys for queries, keys in lengths), "prefill of padded prompts"
    decodes = any(max(queries) == 1 < max(keys) for queries, keys in lengths)
    assert decodes or (family == "Mistral" and kernels.batched), "a full window has no padding"
    windows = {call["window_size"][0] for call in kernels.varlen}
    assert windows == {"Mistral": {11}, "Gemma3": {11, -1}}.get(family, {-1})


def test_an_export_in_fp32_is_not_given_to_flash_attention_on_a_gpu(folder, monkeypatch):
    """As after training on a CPU: the kernels take half precision only."""
    flash_attn_double.install(monkeypatch, 2)
    chosen = []

    def on_a_gpu(wanted, *, on_gpu, **options):
        chosen.append(choose_attention(wanted, on_gpu=True, **options))
        return chosen[-1]

    monkeypatch.setattr("clsgen_dist.inference.predict.choose_attention", on_a_gpu)
    assert len(Predictor(folder).predict(["x"], max_new_tokens=4)) == 1
    _replace_model(folder, "Llama", torch.bfloat16)
    assert len(Predictor(folder).predict(["x"], max_new_tokens=4)) == 1
    assert chosen == ["sdpa", "flash_attention_2"]


def _replace_model(folder, family, dtype=torch.float32):
    """Another model with random weights in an export, of the same vocabulary and width."""
    vocabulary = len(transformers.AutoTokenizer.from_pretrained(folder))
    name = {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family}Config")
    sizes = {"vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "max_position_embeddings": 256, "initializer_range": 0.3}  # fmt: skip
    heads = {} if family == "GPTNeoX" else {"num_key_value_heads": 2}
    torch.manual_seed(0)
    config = getattr(transformers, name)(**sizes | heads | FAMILIES[family])
    getattr(transformers, f"{family}ForCausalLM")(config).to(dtype).save_pretrained(folder)
