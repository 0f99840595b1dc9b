"""What a backbone can take: how many tokens in a row, and which token ids.

Beyond its context a rotary model goes on in silence, on positions it has never seen, and a learnt position or a token
without a row in the embedding is an IndexError (on a GPU an assertion that names nothing). Both are known before.
"""

from __future__ import annotations

from typing import Any

from clsgen_dist.data.encode import Encoder
from clsgen_dist.data.prompt import special_tokens
from clsgen_dist.errors import ModelError, SettingsError

_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
_EXTENDS = ("linear", "dynamic", "yarn")
"""Kinds of rope scaling whose factor multiplies the original length; with others the configured one has it."""


def context_length(config: Any) -> int | None:
    """Longest sequence in tokens that a backbone of this configuration takes; None if there is no limit."""
    text = config.get_text_config(decoder=True)
    attention = getattr(text, "attn_config", None)
    if text.model_type == "bloom" or getattr(text, "alibi", False) or getattr(attention, "alibi", False):
        return None
    length = next((value for name in _NAMES if isinstance(value := getattr(text, name, None), int) and value > 0), None)
    return max([length, *_rope_lengths(text, length)]) if length else None


def _rope_lengths(text: Any, length: int) -> list[int]:
    """What rope scaling makes of the length; a configuration may hold one scaling for each kind of layer."""
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    each = [s for s in scaling.values() if isinstance(s, dict)] or [scaling]
    return [
        int((s.get("original_max_position_embeddings") or length) * float(s["factor"]))
        for s in each
        if s.get("rope_type", s.get("type")) in _EXTENDS and s.get("factor")
    ]


def require_context(config: Any, max_prompt_length: int, max_explanation_length: int) -> None:
    """SettingsError if the longest prompt with the longest explanation is beyond the backbone's context."""
    context = context_length(config)
    longest = max_prompt_length + max_explanation_length
    if context is not None and longest > context:
        raise SettingsError(
            f"data.max_prompt_length {max_prompt_length} and data.max_explanation_length {max_explanation_length} make "
            f"{longest} tokens, but the backbone's context ends at {context}; lower data.max_prompt_length to "
            f"{context - max_explanation_length}"
            if max_explanation_length < context
            else f"data.max_explanation_length is {max_explanation_length}, but the backbone's context ends at "
            f"{context} tokens, prompt included; lower it"
        )


def require_embedded(tokenizer: Any, encoder: Encoder, config: Any) -> None:
    """ModelError if a prompt, a text or an explanation can hold a token id that the embedding has no row for.

    More rows than tokens are usual (padding). So are special tokens beyond the last row that no prompt uses, an image's
    or one added for padding, and these are let through: user text cannot yield them.
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
            f"{len(beyond)} tokens have no row in the backbone's embedding, the first {token!r} with id {id}, and the "
            f"embedding has {rows} rows; name a backbone whose embedding was resized for this tokenizer "
            "(model.resize_token_embeddings(len(tokenizer))), or give it the tokenizer it was trained with"
        )
