"""Limits of a backbone: context lengths in configurations, and ids beyond the embedding."""

from __future__ import annotations

import pytest
from transformers import (
    BloomConfig,
    FalconConfig,
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    OPTConfig,
)

from clsgen_dist.data.encode import Encoder
from clsgen_dist.errors import ModelError, SettingsError
from clsgen_dist.model.context_length import context_length, require_context, require_embedded
from tests.tiny_tokenizers import byte_level


def _rope(kind, **scaling):
    return LlamaConfig(max_position_embeddings=100, rope_parameters={"rope_type": kind, "rope_theta": 1e4, **scaling})


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (LlamaConfig(max_position_embeddings=100), 100),
        (GPT2Config(n_positions=100), 100),
        (OPTConfig(max_position_embeddings=100), 100),
        (MptConfig(max_seq_len=100), None),  # ALiBi
        (BloomConfig(seq_length=100), None),
        (FalconConfig(alibi=True, max_position_embeddings=100), None),
        (FalconConfig(alibi=False, max_position_embeddings=100), 100),
        (MambaConfig(), None),
        (Gemma3Config(text_config={"max_position_embeddings": 100}), 100),
        (_rope("linear", factor=4.0), 400),
        (_rope("dynamic", factor=2.0), 200),
        (_rope("yarn", factor=8.0, original_max_position_embeddings=50), 400),
        (_rope("yarn", factor=1.5, original_max_position_embeddings=50), 100),
        (
            _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=50),
            100,
        ),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_the_context_length_is_found_in_every_kind_of_configuration(config, length):
    assert context_length(config) == length


def test_lengths_beyond_the_context_are_refused_with_the_largest_that_fits():
    config = LlamaConfig(max_position_embeddings=100)
    require_context(config, 60, 40)
    with pytest.raises(
        SettingsError, match=r"make 101 tokens.*context length is 100; lower data\.max_prompt_length to 60"
    ):
        require_context(config, 61, 40)
    with pytest.raises(SettingsError, match=r"max_explanation_length is 100.*length is 100 tokens"):
        require_context(config, 61, 100)
    require_context(MambaConfig(), 10**6, 10**6)


@pytest.mark.parametrize(
    ("words", "special", "template_token", "refused"),
    [
        ((), (), None, None),
        (("glioblastoma",), (), None, "glioblastoma"),
        ((), ("<image>",), None, None),
        ((), ("<image>",), "<image>", "<image>"),
    ],
    ids=["all embedded", "a word of user text", "an unused special token", "a special token of the prompt"],
)
def test_a_token_without_an_embedding_is_refused_if_it_can_occur(words, special, template_token, refused):
    rows = len(byte_level())
    tokenizer = byte_level(words=words, special=("<|im_start|>", "<|im_end|>", *special))
    if template_token:
        tokenizer.chat_template = template_token + tokenizer.chat_template
    encoder = Encoder(tokenizer, question="Why?", max_prompt_length=64)
    for padded in (rows + len(words) + len(special), rows + 64):
        require_embedded(tokenizer, encoder, LlamaConfig(vocab_size=padded))
    if refused is None:
        require_embedded(tokenizer, encoder, LlamaConfig(vocab_size=rows))
        return
    with pytest.raises(ModelError, match=rf"'{refused}' with id {rows}, expected ids below {rows}"):
        require_embedded(tokenizer, encoder, LlamaConfig(vocab_size=rows))


def test_an_end_token_without_an_embedding_is_refused():
    tokenizer = byte_level()
    encoder = Encoder(tokenizer, question="Why?", max_prompt_length=64)
    with pytest.raises(ModelError, match=r"the first is '<\|im_end\|>'"):
        require_embedded(tokenizer, encoder, LlamaConfig(vocab_size=len(tokenizer) - 1))
