"""How long an explanation may be: budgets in words and sentences that never cut a sentence.

A text ends with the last sentence that fits. A first sentence that does not fit is written to its end.
"""

from __future__ import annotations

from dataclasses import dataclass

from clsgen_dist.explanations.text_units import sentence_ends, words


@dataclass(frozen=True)
class LengthBudget:
    """Bounds of a text; None: none."""

    max_words: int | None = None
    max_sentences: int | None = None
    min_sentences: int = 0

    @property
    def is_bounded(self) -> bool:
        """Whether there is an upper bound."""
        return self.max_words is not None or self.max_sentences is not None

    def kept(self, text: str) -> str | None:
        """What is to be kept of a text that has used the budget up; None: it may go on.

        Only a sentence that something follows has ended: ``17.`` may be the beginning of ``17.99``.
        """
        if not self.is_bounded:
            return None
        ends = [end for end in sentence_ends(text) if text[end:].strip()]
        if not ends:
            return None
        fitting = [
            end
            for number, end in enumerate(ends, 1)
            if (self.max_sentences is None or number <= self.max_sentences)
            and (self.max_words is None or len(words(text[:end])) <= self.max_words)
        ]
        is_full = self.max_sentences is not None and len(ends) >= self.max_sentences
        is_full |= self.max_words is not None and len(words(text)) > self.max_words
        return text[: fitting[-1] if fitting else ends[0]] if is_full else None

    def may_end(self, text: str) -> bool:
        """Whether the text has its least number of sentences."""
        return self.min_sentences == 0 or len(sentence_ends(text)) >= self.min_sentences


def whole_sentences(text: str) -> str:
    """The text up to its last sentence end; all of it if there is none."""
    ends = sentence_ends(text)
    return text[: ends[-1]] if ends else text
