"""From rows to tokens: the prompt with its classification token, and the supervised explanation.

    [ chat template … text … question … assistant turn opens ] [ explanation … end token ]
                                                           ^ classification token        ^ supervised up to here

The classification token is the last prompt token, so the head never sees label or explanation, and its index is kept
explicitly: padding side and packing cannot move it. User text is tokenised apart from the template by a tokenizer
that knows no control tokens: ``<|im_end|>`` in a row stays text. A prompt that is too long loses the middle of its
*text*; template, question and explanation are never cut.

Price: one pass of the tokenizer over each text; about 20,000 short rows a second and core.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clsgen_dist.errors import ModelError, SettingsError

Ids = npt.NDArray[np.int32]
"""Token ids, or lengths in tokens."""

_SLOT = "CLSGENROWTEXTGOESHERE"
"""Stands for the user's text while the chat template is rendered; no white space, since templates trim."""
_ELLIPSIS = " ... "
_LEAST_TEXT_TOKENS = 8


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
        self._prefix = _ids(tokenizer(before, add_special_tokens=not tokenizer.chat_template)["input_ids"])
        self._suffix = _ids(tokenizer(after, add_special_tokens=False)["input_ids"])
        self.end_token: int = _end_token(tokenizer, end)
        self.tokens_of = plain_tokens(tokenizer)
        """Token ids of each text, control tokens excluded: ``tokens_of(texts) -> [ids, …]``."""
        self.tokenizer_key = getattr(self.tokens_of, "spec", None) or f"{tokenizer.name_or_path}/{len(tokenizer)}"
        """What tells this tokenizer from another."""
        self._ellipsis = _ids(self.tokens_of([_ELLIPSIS])[0])
        self.frame = len(self._prefix) + len(self._suffix)
        """Tokens of a prompt besides its text."""
        self.max_prompt_length = max_prompt_length
        self.require_room(max_prompt_length, "data.max_prompt_length")

    def require_room(self, max_prompt_length: int, setting: str) -> None:
        """SettingsError, naming ``setting``, if prompts of this length would leave no room for their text."""
        if max_prompt_length - self.frame < len(self._ellipsis) + _LEAST_TEXT_TOKENS:
            raise SettingsError(
                f"{setting} is {max_prompt_length}, but template and question alone take {self.frame} tokens; raise "
                "it, or shorten prompt.question"
            )

    def prompt(self, text: str) -> tuple[Ids, bool]:
        """Prompt tokens, the last one being the classification token, and whether the text was shortened."""
        ids = self.tokens_of([text])[0]
        return self.lay_out(_ids(ids)), len(ids) + self.frame > self.max_prompt_length

    def lay_out(self, text_ids: Ids, max_prompt_length: int | None = None) -> Ids:
        """The prompt around a text's tokens, without the text's middle where it is too long."""
        budget = (max_prompt_length or self.max_prompt_length) - self.frame
        if len(text_ids) > budget:
            room = budget - len(self._ellipsis)
            tail = room // 2
            text_ids = np.concatenate([text_ids[: room - tail], self._ellipsis, text_ids[len(text_ids) - tail :]])
        return np.concatenate([self._prefix, text_ids, self._suffix])

    def prompt_lengths(self, text_lengths_N: Ids, max_prompt_length: int | None = None) -> Ids:
        """``[N]`` lengths of the prompts that :meth:`lay_out` makes of texts of these lengths."""
        return np.minimum(text_lengths_N + self.frame, max_prompt_length or self.max_prompt_length)

    def prompt_length(self, text: str) -> int:
        """Tokens of the prompt if nothing of the text were cut."""
        return len(self.tokens_of([text])[0]) + self.frame

    def explanations(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of explanations, each with its end token: all of them are supervised."""
        return [[*ids, self.end_token] for ids in self.tokens_of([text.strip() for text in texts])]


def _ids(tokens: Sequence[int]) -> Ids:
    return np.asarray(tokens, dtype=np.int32)


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


def plain_tokens(tokenizer: Any) -> Callable[[Sequence[str]], list[list[int]]]:
    """A function from texts to token ids that can never yield a control token; ModelError if there is none."""
    control = set(tokenizer.added_tokens_decoder)
    if tokenizer.is_fast:
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        spec["added_tokens"], spec["post_processor"], spec["truncation"], spec["padding"] = [], None, None, None
        tokens_of: Callable[[Sequence[str]], list[list[int]]] = FastTokens(json.dumps(spec))
    else:

        def tokens_of(texts: Sequence[str]) -> list[list[int]]:
            return [tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in texts]

    for token in tokenizer.added_tokens_decoder.values():
        texts = (token.content, f"a {token.content} b")
        forged = [t for t, ids in zip(texts, tokens_of(texts), strict=True) if control & set(ids)]
        if forged and token.content.strip():
            raise ModelError(
                f"this tokenizer turns the user text {forged[0]!r} into its control token; rows could forge turns, so "
                "it is refused: use the fast version of the tokenizer"
            )
    return tokens_of


class FastTokens:
    """A tokenizer of the ``tokenizers`` library; other processes rebuild it from ``spec``, its JSON."""

    def __init__(self, spec: str) -> None:
        from tokenizers import Tokenizer

        self.spec = spec
        self._tokenizer = Tokenizer.from_str(spec)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; on all cores."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return FastTokens, (self.spec,)
