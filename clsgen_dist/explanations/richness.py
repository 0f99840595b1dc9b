"""Information richness: does an explanation name evidence, how sure it is, and what it leaves open?

Short lists of English words: a reader's first look, not a measure of quality. An explanation that names evidence may
name the wrong one (:mod:`clsgen_dist.explanations.grounding` looks), and a hedge may be right where the head is unsure.
Other languages score 0 but for numbers and quotes. Cost: 0.1 ms per explanation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from clsgen_dist.explanations.estimates import RowScores, row_scores
from clsgen_dist.explanations.text_units import numbers, quoted_spans

EVIDENCE_WORDS = (
    "as evidenced by", "as shown by", "based on", "because", "consistent with", "due to", "given", "indicate",
    "indicated", "indicates", "owing to", "points to", "since", "supported by",
)  # fmt: skip
CONFIDENCE_WORDS = (
    "certain", "certainly", "clear", "clearly", "confidence", "confident", "confidently", "definite", "definitely",
    "obviously", "strongly", "undoubtedly", "unequivocal", "without doubt",
)  # fmt: skip
HEDGE_WORDS = (
    "apparently", "appears", "borderline", "cannot be excluded", "could", "inconclusive", "likely", "may", "maybe",
    "might", "not certain", "not clear", "perhaps", "possible", "possibly", "probable", "probably", "seems", "suggests",
    "uncertain", "unclear", "unlikely", "unsure",
)  # fmt: skip


@dataclass(frozen=True)
class Richness:
    """For each row 1 if the explanation has it, else 0."""

    evidence: RowScores
    """A number, a quote, or one of :data:`EVIDENCE_WORDS`."""
    confidence: RowScores
    """One of :data:`CONFIDENCE_WORDS`."""
    hedges: RowScores
    """One of :data:`HEDGE_WORDS`."""


def richness(explanations: Sequence[str]) -> Richness:
    """Which explanations name evidence, confidence and doubt."""
    evidence, confidence, hedges = map(_pattern, (EVIDENCE_WORDS, CONFIDENCE_WORDS, HEDGE_WORDS))
    return Richness(
        row_scores((bool(evidence.search(t) or numbers(t) or quoted_spans(t)) for t in explanations), is_share=True),
        # "Not certain" is doubt.
        row_scores((bool(confidence.search(hedges.sub(" ", t))) for t in explanations), is_share=True),
        row_scores((bool(hedges.search(t)) for t in explanations), is_share=True),
    )


def _pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)
