"""What llama.cpp's converter needs of a folder: exports have it, and what is missing is named."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from clsgen_dist.hf_export.fold import fold
from clsgen_dist.hf_export.gguf_check import gguf_faults
from tests.inference.conftest import hand_made_export


@pytest.fixture
def model(tmp_path):
    return hand_made_export(tmp_path / "export", ["no", "yes"])


def _change(file, **fields):
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_an_export_and_a_folded_one_have_all_that_is_needed(model, tmp_path):
    assert gguf_faults(model) == [] == gguf_faults(fold(model, tmp_path / "folded"))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gpt2", {}),
        ("gpt_neox", {}),
        ("mixtral", {"num_local_experts": 3}),
        ("qwen3_moe", {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16}),
    ],
)
def test_every_tensor_of_other_families_has_a_name(kind, changes, model):
    tokens = json.loads((model / "config.json").read_text())["vocab_size"]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = CONFIG_MAPPING[kind](vocab_size=tokens, intermediate_size=64, **sizes, **changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    assert gguf_faults(model) == []


def test_what_is_missing_is_named(model):
    config, weights = model / "config.json", model / "model.safetensors"
    before, tensors = config.read_text(), load_file(weights)

    def faults(*words):
        found = gguf_faults(model)
        assert len(found) == len(words) and all(w in f for w, f in zip(words, found, strict=True)), found
        config.write_text(before)
        save_file(tensors, weights)

    _change(config, architectures=None, model_type="frob", quantization_config={})
    faults("no architectures", "weights are quantised", "no architecture named like model_type 'frob'")
    _change(config, vocab_size=9)
    faults("and vocab_size in config.json is 9")
    save_file({**tensors, "model.embed_tokens.weight": tensors["model.embed_tokens.weight"].half()}, weights)
    faults("in torch.float16 and torch.float32, expected one")
    save_file({**tensors, "model.frob.weight": torch.zeros(2)}, weights)
    faults("no name for 1 of 22 tensors, first model.frob.weight")
    for file in model.glob("tokenizer*"):
        file.unlink()
    faults("neither tokenizer.json nor tokenizer.model")
    weights.unlink()
    faults("neither model.safetensors nor pytorch_model.bin")


def test_adapters_alone_are_no_model(model):
    (model / "adapter_config.json").write_text("{}")
    [fault] = gguf_faults(model)
    assert "LoRA adapters alone: export with --merge true" in fault
