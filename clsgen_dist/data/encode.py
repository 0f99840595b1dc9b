"""From rows to tokens: the prompt with its classification token, and the supervised explanation.

    [ chat template … text … question … assistant turn opens ] [ explanation … end token ]
                                                           ^ classification token        ^ supervised up to here

The classification token is the last prompt token, so the head never sees label or explanation, and its index is kept
explicitly: padding side and packing cannot move it. User text is tokenised apart from the template by a tokenizer
that knows no control tokens: ``<|im_end|>`` in a row stays text. A prompt that is too long loses the middle of its
*text*; template, question and explanation are never cut.

Price: one pass of the tokenizer over each text; about 20,000 short rows a second on one core.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from clsgen_dist.data.example import Example
from clsgen_dist.errors import ModelError, SettingsError

_SLOT = "CLSGENROWTEXTGOESHERE"
"""Stands for the user's text while the chat template is rendered; no white space, since templates trim."""
_ELLIPSIS = " ... "
_LEAST_TEXT_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRow:
    """One row in tokens."""

    id: str
    prompt: tuple[int, ...]
    """Token ids up to and including the classification token."""
    explanations: tuple[tuple[int, ...], ...]
    """Token ids of each explanation, its end token included; may be empty."""
    label: int
    """Class index, or -1 for a row without label."""
    truncated: bool
    """Whether the text lost its middle."""

    @property
    def length(self) -> int:
        """Tokens of the row with its longest explanation."""
        return len(self.prompt) + max((len(e) for e in self.explanations), default=0)


class Encoder:
    """Encodes rows for one tokenizer and one prompt.

    Args:
        tokenizer: a transformers tokenizer; its chat template is used if it has one, else a plain layout.
        system: system message; None leaves the template's own.
        question: the task, put after the text.
        max_prompt_length: longest prompt in tokens, see above.

    Raises:
        SettingsError: the prompt leaves no room for a text.
        ModelError: the template drops the text, or the tokenizer cannot tell user text from its control tokens.
    """

    def __init__(self, tokenizer: Any, *, system: str | None, question: str, max_prompt_length: int) -> None:
        before, after, end = _render(tokenizer, system, question)
        self._prefix = tuple(tokenizer(before, add_special_tokens=not tokenizer.chat_template)["input_ids"])
        self._suffix = tuple(tokenizer(after, add_special_tokens=False)["input_ids"])
        self.end_token: int = _end_token(tokenizer, end)
        self._encode_text = _text_encoder(tokenizer)
        self._ellipsis = tuple(self._encode_text(_ELLIPSIS))
        self._text_budget = max_prompt_length - len(self._prefix) - len(self._suffix)
        if self._text_budget < len(self._ellipsis) + _LEAST_TEXT_TOKENS:
            raise SettingsError(
                f"data.max_prompt_length is {max_prompt_length}, but template and question alone take "
                f"{len(self._prefix) + len(self._suffix)} tokens; raise it, or shorten prompt.question"
            )

    def prompt(self, text: str) -> tuple[tuple[int, ...], bool]:
        """Prompt tokens, the last one being the classification token, and whether the text was shortened."""
        ids = tuple(self._encode_text(text))
        truncated = len(ids) > self._text_budget
        if truncated:
            room = self._text_budget - len(self._ellipsis)
            ids = ids[: room - room // 2] + self._ellipsis + ids[len(ids) - room // 2 :]
        return self._prefix + ids + self._suffix, truncated

    def explanation(self, text: str) -> tuple[int, ...]:
        """Tokens of one explanation and its end token: all of them are supervised."""
        return (*self._encode_text(text.strip()), self.end_token)

    def row(self, example: Example, labels: Sequence[str]) -> EncodedRow:
        """The encoded row; its label must be one of ``labels``."""
        prompt, truncated = self.prompt(example.text)
        return EncodedRow(
            id=example.id,
            prompt=prompt,
            explanations=tuple(self.explanation(e) for e in example.explanations),
            label=-1 if example.label is None else labels.index(example.label),
            truncated=truncated,
        )


def _render(tokenizer: Any, system: str | None, question: str) -> tuple[str, str, str]:
    """Template text before the row's text, between it and the explanation, and after the explanation."""
    if not tokenizer.chat_template:
        return f"{system}\n\n" if system else "", f"\n\n{question}\n", ""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": f"{_SLOT}\n\n{question}"})
    opened = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    closed = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": _SLOT}], tokenize=False)
    if opened.count(_SLOT) != 1 or closed.count(_SLOT) != 2:
        raise ModelError(
            "the tokenizer's chat template does not render the user's message exactly once; "
            "give the backbone's folder a chat_template.jinja that does"
        )
    before, after = opened.split(_SLOT)
    return before, after, closed.rsplit(_SLOT, 1)[1]


def _end_token(tokenizer: Any, end: str) -> int:
    """The token that closes an assistant's turn: what the template puts there, else the end of sequence."""
    ids = tokenizer(end, add_special_tokens=False)["input_ids"] if end else []
    if ids and ids[0] in tokenizer.added_tokens_decoder:
        return int(ids[0])
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has neither a token that ends a turn nor an eos_token; set one in its config")
    return int(tokenizer.eos_token_id)


def _text_encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    """A function from text to token ids that can never yield a control token."""
    control = set(tokenizer.added_tokens_decoder)
    if tokenizer.is_fast:
        from tokenizers import Tokenizer

        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        spec["added_tokens"], spec["post_processor"], spec["truncation"], spec["padding"] = [], None, None, None
        plain = Tokenizer.from_str(json.dumps(spec))

        def encode(text: str) -> list[int]:
            return plain.encode(text, add_special_tokens=False).ids
    else:

        def encode(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    for token in tokenizer.added_tokens_decoder.values():
        forged = [t for t in (token.content, f"a {token.content} b") if control & set(encode(t))]
        if forged and token.content.strip():
            raise ModelError(
                f"this tokenizer turns the user text {forged[0]!r} into its control token; rows could forge turns, so "
                "it is refused: use the fast version of the tokenizer"
            )
    return encode
