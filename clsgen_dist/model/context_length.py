"""Limits of a backbone, checked before training: context length and token ids.

Beyond its context, a rotary model silently uses positions it was never trained on; a learned position or a token
without an embedding row raises an IndexError (on a GPU, a device-side assertion without details).
"""

from __future__ import annotations

from typing import Any

from clsgen_dist.data.encode import Encoder
from clsgen_dist.data.prompt import special_tokens
from clsgen_dist.errors import ModelError, SettingsError

_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
_EXTENDS = ("linear", "dynamic", "yarn")
"""Types of rope scaling whose factor multiplies the original length; for others the configured length includes it."""


def context_length(config: Any) -> int | None:
    """Longest sequence in tokens for a backbone of this configuration; None if there is no limit."""
    text = config.get_text_config(decoder=True)
    attention = getattr(text, "attn_config", None)
    if text.model_type == "bloom" or getattr(text, "alibi", False) or getattr(attention, "alibi", False):
        return None
    length = next((value for name in _NAMES if isinstance(value := getattr(text, name, None), int) and value > 0), None)
    return max([length, *_rope_lengths(text, length)]) if length else None


def _rope_lengths(text: Any, length: int) -> list[int]:
    """Context lengths after rope scaling; a configuration may have one scaling per type of layer."""
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    each = [s for s in scaling.values() if isinstance(s, dict)] or [scaling]
    return [
        int((s.get("original_max_position_embeddings") or length) * float(s["factor"]))
        for s in each
        if s.get("rope_type", s.get("type")) in _EXTENDS and s.get("factor")
    ]


def require_context(config: Any, max_prompt_length: int, max_explanation_length: int) -> None:
    """SettingsError if the longest prompt plus the longest explanation exceeds the backbone's context."""
    context = context_length(config)
    longest = max_prompt_length + max_explanation_length
    if context is not None and longest > context:
        raise SettingsError(
            f"data.max_prompt_length {max_prompt_length} and data.max_explanation_length {max_explanation_length} make "
            f"{longest} tokens, but the backbone's context length is {context}; lower data.max_prompt_length to "
            f"{context - max_explanation_length}"
            if max_explanation_length < context
            else f"data.max_explanation_length is {max_explanation_length}, but the backbone's context length is "
            f"{context} tokens, including the prompt; lower it"
        )


def require_embedded(tokenizer: Any, encoder: Encoder, config: Any) -> None:
    """ModelError if a prompt, text or explanation can contain a token id without an embedding row.

    More rows than tokens are usual (padding). So are special tokens beyond the last row that no prompt uses, such as
    image or padding tokens; these are accepted, since user text cannot produce them.
    """
    rows = config.get_text_config(decoder=True).vocab_size
    prompt = encoder.rendered
    used = {*prompt.prefix_ids, *prompt.suffix_ids, prompt.end_token, tokenizer.unk_token_id}
    never = special_tokens(tokenizer) | set(prompt.control)
    beyond = [
        (id, token) for token, id in tokenizer.get_vocab().items() if id >= rows and (id in used or token not in never)
    ]
    if beyond:
        id, token = min(beyond)
        raise ModelError(
            f"{len(beyond)} tokens have no row in the backbone's embedding, the first is {token!r} with id {id}, "
            f"expected ids below {rows}; use a backbone whose embedding was resized for this tokenizer "
            "(model.resize_token_embeddings(len(tokenizer))), or use the tokenizer it was trained with"
        )
