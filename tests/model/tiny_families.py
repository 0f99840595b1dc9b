"""A tiny configuration for every model type that transformers opens as a causal language model.

A tiny model has the shape of its family (one layer of each kind, grouped heads, experts, windows shorter than the rows of
the tests) with fewer than a million parameters. One table of sizes serves all families, under whatever names their
configurations have; ``OVERRIDES`` holds what a family needs beyond it. Types that are opened as causal language models but
are not decoder-only text models are in ``NOT_DECODERS`` with the reason.
"""

from __future__ import annotations

import dataclasses
import re
from enum import StrEnum
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

MODEL_TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY, CONTEXT, WINDOW = 96, 64, 8

HIDDEN, INNER, HEAD, EXPERT, RANK = 32, 64, 8, 16, 16


def _sizes(value: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


SIZES: dict[str, Any] = {
    **_sizes(VOCABULARY, "vocab_size vocab_size_per_layer_input unpadded_vocab_size"),
    **_sizes(
        CONTEXT,
        "max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length "
        "max_source_positions max_target_positions rel_extent",
    ),
    **_sizes(WINDOW, "sliding_window window_size attention_window_size sliding_window_size attention_chunk_size"),
    **_sizes(
        HIDDEN,
        "hidden_size n_embd d_model embedding_size word_embed_proj_dim dim emb_dim lru_width embedding_dim "
        "attention_hidden_size adapter_in_dim adapter_input_size adapter_out_dim text_hidden_size output_embedding_size "
        "input_embedding_size ple_embed_dim backbone_hidden_size router_hidden_size output_hidden_size out_hidden_size "
        "projection_dim embed_dim model_dim output_dim output_proj_dims cross_attention_hidden_size vision_output_dim",
    ),
    **_sizes(
        INNER,
        "intermediate_size ffn_hidden_size ffn_dim n_inner decoder_ffn_dim encoder_ffn_dim dff dim_ff d_inner d_ff "
        "dense_intermediate_size feed_forward_size mlp_dim mamba_d_ssm",
    ),
    **_sizes(
        EXPERT,
        "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size shared_intermediate_size "
        "moe_shared_expert_intermediate_size shared_experts_intermediate_size",
    ),
    **_sizes(
        2,
        "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_encoder_layers depth "
        "num_decoder_layers num_blocks num_layers_per_stack num_global_layers",
    ),
    **_sizes(
        4,
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads linear_num_heads "
        "linear_num_value_heads mamba_n_heads mamba_num_heads n_mamba_heads",
    ),
    **_sizes(2, "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads linear_num_key_heads"),
    **_sizes(
        HEAD,
        "head_dim swa_head_dim dim_head d_head d_kv kv_channels v_head_dim qk_nope_head_dim qk_rope_head_dim "
        "linear_head_dim linear_key_head_dim linear_value_head_dim global_head_dim attention_head_size rotary_dim",
    ),
    **_sizes(RANK, "q_lora_rank kv_lora_rank o_lora_rank hc_lowrank gated_norm_rank laurel_rank adapter_rank"),
    **_sizes(4, "num_experts num_local_experts n_routed_experts moe_num_experts zero_expert_num"),
    **_sizes(2, "num_experts_per_tok num_experts_per_token top_k_experts moe_topk moe_k moe_top_k"),
    **_sizes(1, "n_group topk_group num_expert_group first_k_dense_replace mamba_n_groups mamba_ngroups n_groups"),
    **_sizes(8, "index_head_dim index_topk mamba_d_state state_size ssm_state_size hidden_size_per_layer_input d_rel"),
    **_sizes(2, "index_n_heads index_topk_blocks time_step_rank mamba_dt_rank"),
    **_sizes(4, "index_block_size block_size mamba_chunk_size chunk_size patch_size"),
    **_sizes(16, "mamba_d_head mamba_head_dim image_size prompt_length"),
    **_sizes(0, "pad_token_id num_hash_layers num_nextn_predict_layers num_mtp_layers num_kv_shared_layers"),
    **_sizes(1, "bos_token_id"),
    **_sizes(2, "eos_token_id"),
    **_sizes(
        0.0,
        "dropout attention_dropout activation_dropout hidden_dropout attn_pdrop resid_pdrop embd_pdrop emb_pdrop "
        "hidden_dropout_prob attention_probs_dropout_prob dropout_p resid_dropout embed_dropout dropout_rate "
        "local_attention_probs_dropout_prob lsh_attention_probs_dropout_prob",
    ),
    "is_decoder": True,
}

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
_TWICE = [SLIDING, FULL] * 2
_GEMMA4 = {"global_head_dim": HEAD, "layer_types": _TWICE, "num_hidden_layers": 4, "num_kv_shared_layers": 2}
_DRAFT = {"layer_types": [SLIDING, FULL], "num_hidden_layers": 2, "num_kv_shared_layers": 2}
_NO_PER_LAYER_INPUT = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}

# "_required": what the class cannot be made without, even before its sizes are known
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 50, "encoder_hash_byte_group_size": [3, 4]},
    "blt_local_encoder": {"hidden_size_global": HIDDEN},
    "blt_local_decoder": {"hidden_size_global": HIDDEN},
    "cohere_compass_text": {
        "layer_types": [SLIDING, FULL],
        "rope_parameters": {SLIDING: {"rope_type": "default", "rope_theta": 10000.0}, FULL: None},
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0}},
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": RANK,
        "swa_kv_lora_rank": RANK,
        "swa_head_dim": 2 * HEAD,
        "swa_qk_nope_head_dim": HEAD,
        "swa_v_head_dim": HEAD,
    },
    "gemma3n_text": {
        "intermediate_size": [INNER] * 4,
        "layer_types": _TWICE,
        "activation_sparsity_pattern": [0.95, 0.0] * 2,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
    },
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "gemma4_assistant": {
        "_required": {"text_config": _NO_PER_LAYER_INPUT},
        "text_config": {**_DRAFT, **_NO_PER_LAYER_INPUT},
    },
    "gemma4_unified_assistant": {"text_config": _DRAFT},
    "got_ocr2": {"vision_config": {"output_channels": 8}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": [LINEAR, FULL]},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 4, "attn_layer_offset": 2},
    "laguna": {"layer_types": [FULL, SLIDING], "num_attention_heads_per_layer": [4, 4]},
    "lfm2": {"layer_types": ["conv", FULL]},
    "lfm2_moe": {"layer_types": ["conv", "conv", FULL], "num_hidden_layers": 3, "num_dense_layers": 1},
    "llama4_text": {"intermediate_size_mlp": INNER},
    "mamba2": {"head_dim": 16},
    "mellum": {"layer_types": [FULL, SLIDING]},
    "minimax_m3_vl_text": {"layer_types": [FULL, "minimax_m3_sparse"], "mlp_layer_types": ["dense", "sparse"]},
    "mllama_text_model": {"cross_attention_layers": [1], "num_hidden_layers": 3},
    "mpt": {"attn_config": {"attn_pdrop": 0}},
    "nemotron": {"num_key_value_heads": 2},
    "phi4_multimodal_audio": {
        "nemo_conv_channels": 16,
        "ext_pw_out_channel": HIDDEN,
        "depthwise_separable_out_channel": HIDDEN,
        "chunk_size": -1,
    },
    "phi4_multimodal_vision": {"crop_size": 16},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_embds": False,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
    },
    "roc_bert": {
        "pronunciation_embed_dim": HIDDEN,
        "pronunciation_vocab_size": VOCABULARY,
        "shape_embed_dim": HIDDEN,
        "shape_vocab_size": VOCABULARY,
    },
    "smollm3": {"no_rope_layers": [1, 0]},
    "xlstm": {"autocast_kernel_dtype": "float32"},
    "zamba": {"layers_block_type": [LINEAR, "hybrid", LINEAR, "hybrid"], "num_hidden_layers": 4},
    "zamba2": {"layers_block_type": [LINEAR, "hybrid", LINEAR, "hybrid"], "num_hidden_layers": 4},
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid", "hybrid_sliding"], "sliding_window": WINDOW},
}


class NotDecoder(StrEnum):
    """Why a type is no decoder-only text model, though transformers opens it as a causal language model."""

    ENCODER = "encoder"
    ENCODER_DECODER = "encoder_decoder"
    CROSS_ATTENDS = "needs another modality"
    DRAFT = "draft model of another"


NOT_DECODERS: dict[str, NotDecoder] = {
    **dict.fromkeys(
        "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta "
        "roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xlnet xmod".split(),
        NotDecoder.ENCODER,
    ),
    **dict.fromkeys(
        "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet whisper".split(),
        NotDecoder.ENCODER_DECODER,
    ),
    **dict.fromkeys("trocr musicgen musicgen_melody".split(), NotDecoder.CROSS_ATTENDS),
    **dict.fromkeys("gemma4_assistant gemma4_unified_assistant".split(), NotDecoder.DRAFT),
}


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The tiny configuration of a model type."""
    return _shrink(CONFIG_MAPPING[model_type], {})


def _shrink(config_class: type[PreTrainedConfig], given: dict[str, Any]) -> PreTrainedConfig:
    """A configuration of the class: sizes from the table, the overrides of its type, then ``given``."""
    override = {**OVERRIDES.get(config_class.model_type, {}), **given}
    base = config_class(**override.pop("_required", {}))
    stored = vars(base)
    small: dict[str, Any] = {}
    names = [field.name for field in dataclasses.fields(config_class)]
    for name in dict.fromkeys([*config_class.attribute_map, *names]):
        stored_as = config_class.attribute_map.get(name, name)
        if stored.get(stored_as) is None and name != "head_dim":
            continue
        if name in SIZES:
            small[stored_as] = SIZES[name]
        elif re.search(r"token_(id|index)$", name) and isinstance(stored[stored_as], int):
            small[stored_as] = min(stored[stored_as], VOCABULARY - 1)
    small |= _one_period({name: stored[name] for name in names if name in stored}, base)
    if "kv_lora_rank" in small:  # latent attention has no grouped heads
        small["num_key_value_heads"] = small["num_attention_heads"]
    for name in config_class.sub_configs:
        sub = stored.get(name)
        if isinstance(sub, PreTrainedConfig):
            small[name] = _shrink(type(sub), override.pop(name, {})).to_dict()
    return config_class(**{**small, **override})


def _one_period(stored: dict[str, Any], base: PreTrainedConfig) -> dict[str, Any]:
    """The lists with one entry a layer, cut down to the first layer of each kind, and the number of layers left."""
    depth_name = base.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    depth = stored.get(depth_name)
    lists = {name: value for name, value in stored.items() if isinstance(value, list) and len(value) == depth}
    kinds = [value for value in lists.values() if isinstance(value[0], str)]
    if not kinds:
        return {name: value[:2] for name, value in lists.items()}
    firsts = {kind: layer for layer, kind in reversed(list(enumerate(zip(*kinds, strict=True))))}
    layers = sorted({*firsts.values(), *range(2 if len(firsts) == 1 else 0)})
    return {name: [value[layer] for layer in layers] for name, value in lists.items()} | {depth_name: len(layers)}
