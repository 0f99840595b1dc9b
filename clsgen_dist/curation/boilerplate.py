"""Explanations that many rows share and that say nothing of their texts.

Explanations are one if they are equal once numbers, class names and words of their texts are masked
(:func:`clsgen_dist.explanations.text_quality.template`). One with enough words of its own text is no boilerplate,
however many rows have its frame. Cost: 0.3 ms per explanation.
"""

from __future__ import annotations

from clsgen_dist.curation.count_sketch import CountSketch
from clsgen_dist.explanations.stated_class import ClassNames
from clsgen_dist.explanations.text_quality import template
from clsgen_dist.explanations.text_units import is_content, stem, words


class Boilerplate:
    """Counts the frames of explanations that say little of their texts."""

    def __init__(self, names: ClassNames, most_own_words: float) -> None:
        self._names = names
        self._most = most_own_words
        self._counts = CountSketch()

    def add(self, text: str, explanation: str) -> None:
        """Count an explanation."""
        if self._says_little(text, explanation):
            self._counts.add(template(text, explanation, self._names))

    def rows(self, text: str, explanation: str) -> int:
        """Explanations that are the same as this one, itself included; 0 if it says enough of its text."""
        if not self._says_little(text, explanation):
            return 0
        return self._counts.count(template(text, explanation, self._names))

    def _says_little(self, text: str, explanation: str) -> bool:
        """Whether few of its content words are those of the text; names of classes are nobody's."""
        said = {stem(word) for word in words(self._names.masked(explanation)) if is_content(word)}
        if not said:
            return True
        there = {stem(word) for word in words(self._names.masked(text))}
        return len(said & there) <= self._most * len(said)
