"""A hand-made export, and fewer bootstrap draws."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from clsgen_dist.data.prompt import render_prompt
from clsgen_dist.hf_export.artifact import HEAD_FILE, ModelCard, head_fingerprint
from tests.tiny_tokenizers import CHATML, byte_level

CLOCK = "{{ '<|im_start|>system\n' + strftime_now('%H:%M:%S.%f') + '<|im_end|>\n' }}" + CHATML


@pytest.fixture
def folder(tmp_path):
    """An exported model with random weights, whose template writes the time of day."""
    tokenizer = byte_level(CLOCK, words=["glioblastoma"])
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, max_position_embeddings=256, initializer_range=0.5)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    head = {"weight": torch.randn(2, 32), "bias": torch.zeros(2)}
    (tmp_path / HEAD_FILE).parent.mkdir(exist_ok=True)
    save_file(head, tmp_path / HEAD_FILE)
    ModelCard(
        labels=["no", "yes"],
        positive_label="yes",
        system=None,
        question="Why?",
        prompt=render_prompt(tokenizer, system=None, question="Why?").to_json(),
        max_prompt_length=160,
        max_explanation_length=24,
        head_sha256=head_fingerprint(head["weight"], head["bias"]),
        trained={},
    ).write(tmp_path)
    return tmp_path


@pytest.fixture
def few_resamples(monkeypatch):
    """A tenth of the bootstrap draws, for time."""
    from clsgen_dist.evaluation import bootstrap

    for function in (bootstrap.bootstrap_intervals, bootstrap.paired_difference):
        monkeypatch.setattr(function, "__kwdefaults__", {**function.__kwdefaults__, "resamples": 60})
