"""A tiny model whose adapters have moved away from the backbone."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from clsgen_dist.model.attention import register_per_sequence_attention
from clsgen_dist.model.backbone import build_model
from clsgen_dist.model.classification_head import HeadSpec
from clsgen_dist.model.dual_head import LossSpec


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    lm = LlamaForCausalLM._from_config(config, attn_implementation=register_per_sequence_attention())
    built = build_model(lm, head=HeadSpec(2), losses=LossSpec("torch"), finetune="lora", lora_rank=4, lora_alpha=8)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return built
