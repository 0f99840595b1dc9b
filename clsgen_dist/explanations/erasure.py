"""Comprehensiveness and sufficiency: does the decision rest on what the explanation names?

    comprehensiveness = p(x) - p(x without the evidence)       high: the evidence was needed
    sufficiency       = p(x) - p(the evidence alone)           low: the evidence is enough
    excess            = the same, minus its mean over draws of random words of like number and length

p is the probability of what was decided (DeYoung et al. 2020, ERASER, arXiv 1911.03429). The random control is needed:
a damaged text moves the probability whatever is masked, and an explanation that names half of the input masks half.

Cost: 3 + 2·draws calls of ``probability`` on all rows with evidence: 13 forward passes a row by default.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from clsgen_dist.errors import DataError
from clsgen_dist.explanations.estimates import UNDEFINED, RowScores, check_same_rows, row_scores
from clsgen_dist.explanations.text_units import Offsets, merged, replaced, word_offsets

# N rows, C classes, E rows with evidence

Probability = Callable[[Sequence[str]], np.ndarray]
"""Probabilities ``[N, C]`` of texts."""


@dataclass(frozen=True)
class Erasure:
    """For each row; NaN where the explanation names nothing that is in the input."""

    comprehensiveness: RowScores
    sufficiency: RowScores
    comprehensiveness_excess: RowScores
    """Above 0: masking the evidence moves the decision more than masking random words."""
    sufficiency_excess: RowScores
    """Below 0: the evidence alone keeps the decision better than random words alone."""
    rows_without_evidence: int


def erasure(
    texts: Sequence[str],
    evidence: Sequence[Sequence[Offsets]],
    probability: Probability,
    decided: np.ndarray,
    *,
    mask: str = "…",
    draws: int = 5,
    seed: int = 0,
) -> Erasure:
    """Comprehensiveness and sufficiency of the evidence, each also against random words.

    It can show that the model's probability depends on the words that the explanation names, and more than on others:
    a rationalisation that names irrelevant facts has an excess near 0. It cannot show that the model uses them in the
    way the explanation says, nor that it uses nothing else. Masked texts are unlike those it was trained on. If the
    input says a thing twice, masking one place moves nothing; if the model needs one of two facts, naming either looks
    useless. An explanation that copies the whole input masks all of it, and its excess is 0.

    Args:
        texts: inputs.
        evidence: for each row the spans of the input that its explanation names (``GroundingScores.evidence``).
        probability: the model.
        decided: classes ``[N]``; multi-label: sets ``[N, C]``, and p is the mean over the answers.
        mask: what stands for a masked span.
        draws: of random words for each row.
        seed: of the draws.

    Raises:
        DataError: different numbers of rows, or ``draws`` below 1.
    """
    check_same_rows(inputs=texts, evidence=evidence, decisions=decided)
    if draws < 1:
        raise DataError(f"{draws} draws of random words, expected 1 or more; raise draws")
    rows = np.array([row for row, spans in enumerate(evidence) if spans], dtype=int)
    rng = np.random.default_rng(seed)
    own = [texts[int(row)] for row in rows]
    named = [merged(evidence[int(row)]) for row in rows]

    def decided_probability(masked: Sequence[str]) -> np.ndarray:
        return probability_of_decided(probability(masked), decided[rows])

    def drops(spans: Sequence[Sequence[Offsets]]) -> tuple[np.ndarray, np.ndarray]:
        without = decided_probability([replaced(t, s, mask) for t, s in zip(own, spans, strict=True)])
        alone = decided_probability([_kept(t, s, mask) for t, s in zip(own, spans, strict=True)])
        return full_E - without, full_E - alone

    results = np.full((4, len(texts)), UNDEFINED)
    if len(rows):
        full_E = decided_probability(own)
        comprehensiveness_E, sufficiency_E = drops(named)
        random = [drops([random_spans(t, s, rng) for t, s in zip(own, named, strict=True)]) for _ in range(draws)]
        by_chance = np.mean(random, axis=0)
        results[:2, rows] = comprehensiveness_E, sufficiency_E
        results[2:, rows] = results[:2, rows] - by_chance
    comprehensiveness, sufficiency, *excess = map(row_scores, results)
    return Erasure(comprehensiveness, sufficiency, excess[0], excess[1], len(texts) - len(rows))


def probability_of_decided(probabilities_NC: np.ndarray, decided: np.ndarray) -> np.ndarray:
    """``[N]`` the probability of the decided class; of sets ``[N, C]``: the mean over the answers, yes and no."""
    if decided.ndim == 2:
        return np.where(decided.astype(bool), probabilities_NC, 1 - probabilities_NC).mean(axis=1)
    return np.asarray(probabilities_NC[np.arange(len(decided)), decided])


def random_spans(text: str, like: Sequence[Offsets], rng: np.random.Generator) -> list[Offsets]:
    """Random runs of words, as many and as long in words as the given spans, and not overlapping.

    The runs and the words between them are shuffled, so each arrangement is equally likely.
    """
    places = word_offsets(text)
    starts, ends = [start for start, _ in places], [end for _, end in places]
    lengths = [max(1, bisect_left(starts, end) - bisect_right(ends, start)) for start, end in like]
    gaps = max(0, len(places) - sum(lengths))
    pieces = rng.permutation(np.array([*lengths, *([0] * gaps)]))
    found, place = [], 0
    for length in pieces:
        if length and place < len(places):
            found.append((places[place][0], places[min(place + length, len(places)) - 1][1]))
        place += max(1, int(length))
    return found


def _kept(text: str, spans: Sequence[Offsets], mask: str) -> str:
    """The spans alone, with a mask for what is between them."""
    pieces, place = [], 0
    for start, end in spans:
        if text[place:start].strip():
            pieces.append(mask)
        pieces.append(text[start:end])
        place = end
    return " ".join([*pieces, mask] if text[place:].strip() else pieces)
