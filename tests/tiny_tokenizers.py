"""Tokenizers of some hundred tokens, made in a moment: every byte is a token, plus what a test adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level(
    template: str | dict[str, str] | None = CHATML,
    *,
    words: Sequence[str | AddedToken] = (),
    special: Sequence[str] = ("<|im_start|>", "<|im_end|>"),
    end: str = "<|im_end|>",
    merges: Sequence[tuple[str, str]] = (),
) -> Any:
    """Bytes, ``merges``, then ``special`` tokens, then ``words`` that are added but not special."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE({token: id for id, token in enumerate(alphabet)}, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _wrapped(backend, template, special, words, end)


def with_space_before_each_text(template: str) -> Any:
    """As Llama 2 does it: a space is put before what is tokenised, and spaces are written as ``▁``."""
    alphabet = ["<unk>", "▁", *map(chr, range(33, 127)), "\n", "▁x", "▁T"]
    merges = [("▁", "x"), ("▁", "T")]
    backend = Tokenizer(models.BPE({t: id for id, t in enumerate(alphabet)}, merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return _wrapped(backend, template, ("<s>", "</s>"), (), "</s>", unk_token="<unk>")


def _wrapped(
    backend: Tokenizer,
    template: Any,
    special: Sequence[str],
    words: Sequence[str | AddedToken],
    end: str,
    **options: str,
) -> Any:
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, **options)
    tokenizer.add_tokens([w if isinstance(w, AddedToken) else AddedToken(w, special=False) for w in words])
    tokenizer.chat_template = template
    return tokenizer
