"""Whether an explanation is written in another language than its text.

Languages are those of py3langid (naive Bayes on byte n-grams, Lui & Baldwin 2012; 0.4 has 130 of them). Both must be
long enough and be known with confidence, and the explanation must be all but impossible in the text's language, so
that close relatives (Danish, Norwegian) are one. Where both have the stop words of English, nothing else is looked at.
Cost: 0.1 ms per explanation in English, else 1 ms; 2 s and 40 MB for the first of these.
"""

from __future__ import annotations

import functools
from typing import Any

from clsgen_dist.explanations.text_units import STOP_WORDS, words

_UNLIKELY = 0.01
"""Probability of the text's language for the explanation below which both differ."""
_STOP_SHARE, _DIFFERENT_STOPS = 0.25, 4
"""Share of stop words, and different ones, that no other language has."""
_LOOKED_AT = 2000
"""Characters of each that are looked at."""


def other_language(text: str, explanation: str, *, least_letters: int, confidence: float) -> tuple[str, str] | None:
    """The languages (ISO 639-1) of text and explanation where they differ for certain, else None.

    Args:
        text: the row's text.
        explanation: its explanation.
        least_letters: letters that both must have.
        confidence: probability from which a language counts as known.
    """
    text, explanation = text[:_LOOKED_AT], explanation[:_LOOKED_AT]
    if min(_letters(text), _letters(explanation)) < least_letters:
        return None
    if _is_plain_english(text) and _is_plain_english(explanation):
        return None
    said, probability = _identifier().classify(explanation)
    written, of_text = _identifier().classify(text)
    if said == written or min(probability, of_text) < confidence:
        return None
    probabilities = dict(_identifier().rank(explanation))
    return (written, said) if probabilities.get(written, 0.0) < _UNLIKELY else None


def _is_plain_english(text: str) -> bool:
    found = words(text)
    stops = [word for word in found if word in STOP_WORDS]
    return len(stops) >= _STOP_SHARE * len(found) and len(set(stops)) >= _DIFFERENT_STOPS


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
