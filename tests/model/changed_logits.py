"""Tiny models of families that scale, cap or bias their logits."""

from __future__ import annotations

from typing import Any

import torch
import transformers

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "attn_implementation": "eager",
}
CHANGED: dict[str, dict[str, Any]] = {
    "Gemma2": {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "Granite": {"logits_scaling": 3.0},
    "Cohere": {"logit_scale": 0.3},
    "GPTJ": {"rotary_dim": 4, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": 512,
             "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "Phi": {"resid_pdrop": 0.0, "embd_pdrop": 0.0},
}  # fmt: skip


def changed_lm(family: str, vocabulary: int, **changes: Any) -> Any:
    """A model with random weights, and a random bias of its LM head if it has one."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        **{**_SIZES, **CHANGED[family], "vocab_size": vocabulary, **changes}
    )
    lm = getattr(transformers, f"{family}ForCausalLM")(config)
    if lm.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(lm.get_output_embeddings().bias)
    return lm
