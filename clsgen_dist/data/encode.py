"""From rows to tokens: the prompt with its classification token, and the supervised explanation.

    [ chat template … text … question … assistant turn opens ] [ explanation … end token ]
                                                           ^ classification token        ^ supervised up to here

The classification token is the last prompt token, so the head never sees label or explanation, and its index is kept
explicitly: padding side and packing cannot move it. User text is tokenised separately from the template, without
control tokens: ``<|im_end|>`` in a row remains text, while an added domain word remains one token. A prompt that is too
long loses the middle of its *text*; template, question and explanation are never truncated.

Cost: one pass of the tokenizer over each text; about 20,000 short rows per second and core.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clsgen_dist.data.prompt import RenderedPrompt, render_prompt, special_tokens
from clsgen_dist.errors import ModelError, SettingsError

Ids = npt.NDArray[np.int32]
"""Token ids, or lengths in tokens."""

_ELLIPSIS = " ... "
_MIN_TEXT_TOKENS = 8
_UNKNOWN_CHARACTERS = "\U0010fffd \ue000 \u0378"
"""Of no script: a vocabulary without byte fallback maps them to its unknown token."""


class Encoder:
    """Encodes rows for one tokenizer and one prompt.

    Args:
        tokenizer: a transformers tokenizer.
        max_prompt_length: longest prompt in tokens.
        rendered: the prompt; None renders one from the rest, see :func:`clsgen_dist.data.prompt.render_prompt`.

    Raises:
        SettingsError: the prompt leaves no room for a text, or there is no such template.
        ModelError: the template cannot express this prompt, or user text could forge control tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_prompt_length: int,
        system: str | None = None,
        question: str = "",
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        rendered: RenderedPrompt | None = None,
    ) -> None:
        self.rendered = rendered or render_prompt(
            tokenizer, system=system, question=question, chat_template=chat_template, template_kwargs=template_kwargs
        )
        """The prompt around each text, saved with checkpoint and export."""
        self._prefix, self._suffix = _ids(self.rendered.prefix_ids), _ids(self.rendered.suffix_ids)
        self.end_token: int = self.rendered.end_token
        self.tokens_of = plain_tokens(tokenizer, self.rendered)
        """Token ids of each text, control tokens excluded: ``tokens_of(texts) -> [ids, …]``."""
        self.tokenizer_key = self.tokens_of.spec
        """Identifies the tokenizer and its control tokens."""
        self._ellipsis = _ids(self.tokens_of([_ELLIPSIS])[0])
        self.template_length = len(self._prefix) + len(self._suffix)
        """Tokens of a prompt besides its text."""
        self.max_prompt_length = max_prompt_length
        self.require_room(max_prompt_length, "data.max_prompt_length")

    def require_room(self, max_prompt_length: int, setting: str) -> None:
        """SettingsError, naming ``setting``, if prompts of this length would leave no room for their text."""
        if max_prompt_length - self.template_length < len(self._ellipsis) + _MIN_TEXT_TOKENS:
            raise SettingsError(
                f"{setting} is {max_prompt_length}, but template and question alone need "
                f"{self.template_length} tokens; raise it, or shorten prompt.question"
            )

    def prompt(self, text: str) -> tuple[Ids, bool]:
        """Prompt tokens, the last one being the classification token, and whether the text was truncated."""
        ids = self.tokens_of([text])[0]
        return self.build_prompt(_ids(ids)), len(ids) + self.template_length > self.max_prompt_length

    def build_prompt(self, text_ids: Ids, max_prompt_length: int | None = None) -> Ids:
        """The prompt around a text's tokens; a text that is too long loses its middle."""
        budget = (max_prompt_length or self.max_prompt_length) - self.template_length
        if len(text_ids) > budget:
            room = budget - len(self._ellipsis)
            tail = room // 2
            text_ids = np.concatenate([text_ids[: room - tail], self._ellipsis, text_ids[len(text_ids) - tail :]])
        return np.concatenate([self._prefix, text_ids, self._suffix])

    def read_spans(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) of a text that :meth:`prompt` keeps: all, or a beginning and an end.

        All too for a tokenizer in Python, which tells no places.
        """
        if isinstance(self.tokens_of, SlowTokens):
            return [(0, len(text))]
        budget = self.max_prompt_length - self.template_length
        places = self.tokens_of.places(text)
        if len(places) <= budget:
            return [(0, len(text))]
        room = budget - len(self._ellipsis)
        tail = room // 2
        return [(0, places[room - tail - 1][1]), (places[len(places) - tail][0], len(text))]

    def place_spans(self, span_P2: Ids, text_length: int, max_prompt_length: int | None = None) -> Ids:
        """``[P, 2]`` where spans [start, stop) of a text's tokens are in the prompt that :meth:`build_prompt` builds.

        A span is cut to what is left of the text; one that is lost with its middle is left out.
        """
        if not len(span_P2):
            return span_P2
        budget = (max_prompt_length or self.max_prompt_length) - self.template_length
        if text_length <= budget:
            return span_P2 + len(self._prefix)
        room = budget - len(self._ellipsis)
        head, tail = room - room // 2, text_length - room // 2
        pieces_P2 = np.concatenate([span_P2.clip(max=head), span_P2.clip(min=tail) - (text_length - budget)])
        return pieces_P2[pieces_P2[:, 0] < pieces_P2[:, 1]] + len(self._prefix)

    def prompt_lengths(self, text_lengths_N: Ids, max_prompt_length: int | None = None) -> Ids:
        """``[N]`` lengths of the prompts that :meth:`build_prompt` builds from texts of these lengths."""
        return np.minimum(text_lengths_N + self.template_length, max_prompt_length or self.max_prompt_length)

    def prompt_length(self, text: str) -> int:
        """Tokens of the untruncated prompt."""
        return len(self.tokens_of([text])[0]) + self.template_length

    def explanations(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of explanations, each with its end token: all of them are supervised."""
        return [[*ids, self.end_token] for ids in self.tokens_of([text.strip() for text in texts])]


def _ids(tokens: Sequence[int]) -> Ids:
    return np.asarray(tokens, dtype=np.int32)


def token_spans(tokens_of: Any, text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The tokens [start, stop) of a text that its characters [start, end) are in.

    Args:
        tokens_of: from :func:`plain_tokens`; a :class:`SlowTokens`, which knows no places, is asked for what precedes
            each end, so that a token across one may be missed.
        text: the text.
        spans: not empty, each with a visible character.
    """
    if not spans:
        return []
    if not isinstance(tokens_of, FastTokens):
        ends = [cut for start, end in spans for cut in (text[:start].rstrip(), text[:end])]
        counts = list(map(len, tokens_of(ends)))
        found = list(zip(counts[::2], counts[1::2], strict=True))
    else:
        start_T, end_T = np.array(tokens_of.places(text)).T
        found = [(int((end_T <= start).sum()), int((start_T < end).sum())) for start, end in spans]
    # Two spans may share a token.
    stops = [0, *itertools.accumulate((stop for _, stop in found), max)]
    return [(max(start, before), stop) for (start, stop), before in zip(found, stops, strict=False) if stop > before]


def plain_tokens(tokenizer: Any, prompt: RenderedPrompt) -> FastTokens | SlowTokens:
    """A function from texts to token ids that never yields a control token; ModelError if that is impossible.

    Control tokens are the tokenizer's special tokens, those by which the prompt marks turns, and its end token.
    """
    known = tokenizer.added_tokens_decoder
    marks = {*special_tokens(tokenizer), *prompt.control}
    control = {token.content: id for id, token in known.items() if token.content in marks}
    control[str(tokenizer.convert_ids_to_tokens(prompt.end_token))] = prompt.end_token
    tokens_of: FastTokens | SlowTokens
    if tokenizer.is_fast:
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        spec["post_processor"], spec["truncation"], spec["padding"] = None, None, None
        # None may be removed, or the others would shift. Special ones can be ignored by an option.
        for token in spec["added_tokens"]:
            token["special"] = token["content"] in control
        tokens_of = FastTokens(json.dumps(spec))
    else:
        tokens_of = SlowTokens(tokenizer, sorted(control))
    # These two are harmless: one stands for unknown characters, the other pads batches.
    harmless = {tokenizer.unk_token_id, *({tokenizer.pad_token_id} - {*prompt.prefix_ids, *prompt.suffix_ids})}
    forbidden = set(control.values()) - (harmless - {prompt.end_token})
    texts = [text for content in control for text in (content, f"a {content} b") if content.strip()]
    texts.append(_UNKNOWN_CHARACTERS)
    for text, ids in zip(texts, tokens_of(texts), strict=True):
        if not forbidden.isdisjoint(ids):
            raise ModelError(
                f"this tokenizer turns the user text {text!r} into its control token; rows could forge turns, so it is "
                "refused: its vocabulary must not have the token as an ordinary piece; use the fast version of the "
                "tokenizer, or a chat template with other markers (prompt.chat_template)"
            )
    return tokens_of


class FastTokens:
    """A tokenizer of the ``tokenizers`` library that ignores special tokens; it pickles as its ``spec``."""

    def __init__(self, spec: str) -> None:
        from tokenizers import Tokenizer

        self.spec = spec
        self._tokenizer = Tokenizer.from_str(spec)
        self._tokenizer.encode_special_tokens = True

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, computed on all cores."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def places(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) of each token."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return FastTokens, (self.spec,)


class SlowTokens:
    """A tokenizer in Python: a text is split at control tokens, which are then tokenised as ordinary text."""

    def __init__(self, tokenizer: Any, control: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        longest_first = sorted(control, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self.spec = f"{_digest_of_files(tokenizer)}/{list(control)}"

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, one after the other."""
        return [self._ids(text) for text in texts]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = []
        for place, piece in enumerate(self._cut.split(text)):
            if piece:
                options = {"add_special_tokens": False, "split_special_tokens": place % 2 == 1}
                ids += self._tokenizer(piece, **options)["input_ids"]
        return ids


def _digest_of_files(tokenizer: Any) -> str:
    """SHA-256 of the files that the tokenizer saves: vocabulary, merges, added tokens, options."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
