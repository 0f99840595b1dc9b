"""Explanations that many rows share and that say nothing of their texts.

Explanations are one if they are equal once numbers, class names and words of their texts are masked
(:func:`clsgen_dist.explanations.text_quality.template`). One with enough words of its own text is no boilerplate,
however many rows have its frame. Cost: 0.1 ms per explanation.
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

    def add(self, frame: str) -> None:
        """Count a frame."""
        self._counts.add(frame)

    def rows(self, text: str, explanation: str) -> int:
        """Explanations that are the same as this one, itself included; 0 if it says enough of its text."""
        frame = frame_of(text, explanation, self._names, self._most)
        return 0 if frame is None else self._counts.count(frame)


def frame_of(text: str, explanation: str, names: ClassNames, most_own_words: float) -> str | None:
    """What an explanation may share with others; None if more of its content words than this share are the text's."""
    said = {stem(word) for word in words(names.masked(explanation)) if is_content(word)}
    # Names of classes are nobody's words.
    if said and len(said & set(map(stem, words(names.masked(text))))) > most_own_words * len(said):
        return None
    return template(text, explanation, names)
