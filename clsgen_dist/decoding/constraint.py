"""What a text must keep to while it is written: grammars, quotations, phrases that must not occur.

A token that cannot lead to an allowed text gets probability 0; llguidance runs the grammar's automaton over the trie of
the vocabulary. Cost: about 0.5 ms a token on a CPU core, for 49,000 tokens.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.errors import SettingsError, first_line

_LEAST_QUOTE, _LONGEST_QUOTE = 8, 60
"""Characters of a quoted phrase; the least is lower where the text is shorter."""
_QUOTED_FROM, _PARTS = 20_000, 200
"""Characters of a text, and parts of it, that may be quoted."""
_BEFORE_QUOTE = 4
"""The quotation begins within this part of the explanation's most tokens."""
_OPENINGS = r"((This|It) (is|looks|seems|appears)( to be)? )?((An?|The|an?|the|[Ll]ikely|[Pp]robably|[Mm]ost likely) )?"
_ESCAPES = {"<": r"\x3C", ">": r"\x3E", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
"""What a backslash before it would give another meaning."""
_FREE = "state_decision, quote_evidence or forbidden"
_LONGEST_WORD = 30
"""Characters without a blank up to which a text is quoted by words, beyond it by characters."""
_ANY = r"(.|\n)*"
_KEPT = 32
"""Compiled grammars that are kept: the candidates of a text have the same one, and so do all texts of a schema."""
_MOST_SECONDS = 10.0
"""Of computation that an explanation's constraint may take: some grammars take seconds a token."""


class ConstraintCompiler:
    """Builds matchers for one tokenizer.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        vocabulary: number of logits.
        end_token: what ends a text.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, end_token: int) -> None:
        self._tokenizer, self._vocabulary, self._end = tokenizer, vocabulary, end_token
        self._tokens: Any = None
        self._matcher = lru_cache(maxsize=_KEPT)(self._compiled)

    def constraint(
        self, settings: DecodingSettings, text: str, decided: Sequence[str], longest: int
    ) -> Constraint | None:
        """The constraint for an explanation; None: any text.

        Args:
            settings: what is asked for.
            text: what is classified, from which is quoted.
            decided: the decided class, or classes; empty: none is to be stated.
            longest: most tokens of the explanation.

        Raises:
            SettingsError: the schema, expression or grammar cannot be read.
        """
        found = grammar(settings, text, decided, longest)
        if found is None:
            return None
        matcher = self._matcher(found)
        if matcher.is_error():
            raise SettingsError(
                f"decoding.{settings.form or _FREE} cannot be used: {first_line(ValueError(matcher.get_error()))}"
            )
        return Constraint(matcher.deep_copy(), self._vocabulary)

    def _compiled(self, grammar: str) -> Any:
        """The matcher of a grammar at its start; in error if the grammar cannot be read."""
        from llguidance import LLMatcher
        from llguidance.hf import from_tokenizer

        if self._tokens is None:
            self._tokens = from_tokenizer(self._tokenizer, n_vocab=self._vocabulary, eos_token=self._end)
        return LLMatcher(self._tokens, grammar, log_level=0)


class Constraint:
    """A text's place in its grammar."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._bits = torch.zeros((1, (vocabulary + 31) // 32), dtype=torch.int32)
        self._vocabulary = vocabulary
        self._seconds = 0.0

    def allowed(self) -> Tensor:
        """``[V]`` which tokens may come next, bool; SettingsError if the grammar is too complex to go on."""
        from llguidance.torch import fill_next_token_bitmask

        begun = time.thread_time()
        fill_next_token_bitmask(self._matcher, self._bits, 0)
        self._require_intact(begun)
        bits = np.unpackbits(self._bits.numpy().view(np.uint8), bitorder="little")
        return torch.from_numpy(bits[: self._vocabulary].astype(bool))

    def accept(self, token: int) -> None:
        """Go on by a token; SettingsError if the grammar is too complex to go on."""
        begun = time.thread_time()
        self._matcher.consume_token(token)
        self._require_intact(begun)

    @property
    def is_satisfied(self) -> bool:
        """Whether the text so far is complete."""
        return bool(self._matcher.is_accepting())

    def _require_intact(self, begun: float) -> None:
        self._seconds += time.thread_time() - begun
        why = first_line(ValueError(self._matcher.get_error())) if self._matcher.is_error() else None
        if why is None and self._seconds > _MOST_SECONDS:
            why = f"it took over {_MOST_SECONDS:.0f} s"
        if why is not None:
            raise SettingsError(
                f"the constraint on the explanation failed: {why}; simplify decoding's grammar, or forbid fewer phrases"
            )


def grammar(settings: DecodingSettings, text: str, decided: Sequence[str], longest: int) -> str | None:
    """llguidance's grammar for the settings; None: any text is allowed; SettingsError for a schema that is no JSON."""
    from llguidance import LLMatcher

    if settings.json_schema is not None:
        try:
            schema = json.loads(settings.json_schema)
            if not isinstance(schema, dict):
                raise SettingsError(f"decoding.json_schema is {settings.json_schema[:80]}, expected an object; fix it")
            # Otherwise a model may write blanks to the end of its tokens.
            return str(LLMatcher.grammar_from_json_schema(settings.json_schema, {"whitespace_flexible": False}))
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"decoding.json_schema is not valid JSON ({first_line(error)}); fix it") from None
    if settings.regex is not None:
        return str(LLMatcher.grammar_from_regex(settings.regex))
    if settings.grammar is not None:
        return str(LLMatcher.grammar_from_lark(settings.grammar))
    phrases = _quotable(text) if settings.quote_evidence else []
    stated = [name for name in decided if name.strip()] if settings.state_decision else []
    if not (phrases or stated or settings.forbidden):
        return None
    return str(
        LLMatcher.grammar_from_lark(_lark(phrases, stated, settings.forbidden, max(1, longest // _BEFORE_QUOTE)))
    )


def _lark(phrases: Sequence[str], stated: Sequence[str], forbidden: Sequence[str], before_quote: int) -> str:
    """``[statement] [text "quotation"] text``, with the forbidden phrases excluded from every text."""
    # One pattern for all: the intersection of many complements may take minutes to compile.
    but = f" & ~/{_ANY}({'|'.join(map(_any_case, forbidden))}){_ANY}/" if forbidden else ""
    parts, rules = [], [f"TEXT: /{_ANY}/{but}"]
    if stated:
        names = ", ".join(stated)
        statement = f"{_OPENINGS}{_any_case_of_first(names)}[ ,.:;!?\\n]"
        if not phrases:  # one terminal, so that no forbidden phrase stands across two
            return f"start: TEXT\nTEXT: /{statement}{_ANY}/{but}"
        parts.append("STATED")
        rules.append(f"STATED: /{statement}/{but}")
    if phrases:
        parts.append('before "\\"" QUOTE "\\""')
        rules.append(f'before[max_tokens={before_quote}]: /[^"\\n.!?。]*/{but}')
        least = min(_LEAST_QUOTE, max(map(len, phrases)))
        any_phrase = " | ".join(f"Q{n}" for n in range(len(phrases)))
        rules.append(f"QUOTE: ({any_phrase}) & /.{{{least},{_LONGEST_QUOTE}}}/ & /\\S(.*\\S)?/{but}")
        for n, phrase in enumerate(phrases):
            kind = "substring_words" if max(map(len, phrase.split())) <= _LONGEST_WORD else "substring_chars"
            rules.append(f'Q{n}: %regex {{"{kind}": {json.dumps(phrase)}}}')
    return "\n".join([f"start: {' '.join([*parts, 'TEXT'])}", *rules])


def _quotable(text: str) -> list[str]:
    """The parts of a text that can stand between quotation marks: lines, divided at the text's own marks.

    Of a very long text its first 20,000 characters: the automaton holds them all.
    """
    parts = [part.strip() for part in re.split(r'["“”\n\r]+', text[:_QUOTED_FROM])]
    return [part for part in parts if any(character.isalnum() for character in part)][:_PARTS]


def _any_case(phrase: str) -> str:
    """A pattern for the phrase, whose blanks are any white space."""
    return "(?i:" + r"\s+".join(map(_escaped, phrase.split())) + ")"


def _any_case_of_first(name: str) -> str:
    """A pattern for the name as it is, or with a capital."""
    first, rest = name[0], _escaped(name[1:])
    return f"({_escaped(first.lower())}|{_escaped(first.upper())}|{_escaped(first)}){rest}"


def _escaped(text: str) -> str:
    """Text as a regular expression between slashes."""
    return "".join(_ESCAPES.get(c, c if c.isalnum() or c in " _" or ord(c) > 127 else f"\\{c}") for c in text)
