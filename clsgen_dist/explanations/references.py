"""Overlap with reference explanations: BLEU, chrF, ROUGE.

    BLEU      geometric mean of the precisions of 1- to 4-grams, brevity penalised (Papineni 2002)       0 to 100
    chrF      F2 of character 1- to 6-grams (Popović 2015)                                                0 to 100
    ROUGE-n   F1 of n-grams; ROUGE-L: F1 of the longest common subsequence of words (Lin 2004)             0 to 1

BLEU and chrF are sacrebleu's, so that they compare with published ones; ROUGE takes the best of several references,
without stemming. All compare words, not meaning: a true explanation with other words scores low, and one with a
changed number scores high. Cost: 0.6 ms per row of 20 words, most of it BLEU and chrF; memory: 28 numbers per row, of
which both the row's scores and those of all rows together are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clsgen_dist.explanations.estimates import UNDEFINED, RowScores, check_same_rows, row_scores
from clsgen_dist.explanations.text_units import ngrams, words

Tokenizer = Literal["13a", "intl", "zh", "char"]
References = str | Sequence[str] | None
"""Of one row."""
Counts = list[int] | None
"""Of one row: matching, written and referenced n-grams of each order."""


@dataclass(frozen=True)
class ReferenceScores:
    """Overlap with the references, over the rows that have some; the scores of rows without are NaN."""

    bleu: RowScores
    """Of each row, with the n-gram orders that it is long enough for."""
    chrf: RowScores
    rouge_1: RowScores
    rouge_2: RowScores
    rouge_l: RowScores
    corpus_bleu: float
    """Of all rows together, as papers report it; not the mean of the rows."""
    corpus_chrf: float
    signature: str
    """sacrebleu's version and settings of the corpus BLEU; empty without references."""


def reference_scores(
    explanations: Sequence[str], references: Sequence[References], *, tokenizer: Tokenizer = "13a"
) -> ReferenceScores:
    """BLEU, chrF and ROUGE of each explanation against its references.

    Args:
        explanations: one a row.
        references: for each row one text or several; None, an empty list or blank texts leave the row out.
        tokenizer: sacrebleu's, for BLEU; ``zh`` for Chinese, ``char`` for other scripts without spaces.

    Raises:
        DataError: different numbers of rows.
    """
    from sacrebleu.metrics import BLEU, CHRF

    check_same_rows(explanations=explanations, references=references)
    pairs = [(text, given_references(row)) for text, row in zip(explanations, references, strict=True)]
    bleu, all_bleu, chrf = BLEU(tokenize=tokenizer, effective_order=True), BLEU(tokenize=tokenizer, force=True), CHRF()
    of_bleu, of_chrf = _counts(pairs, bleu), _counts(pairs, chrf)
    references_a_row = {len(row) for _, row in pairs if row}
    all_bleu.num_refs = references_a_row.pop() if len(references_a_row) == 1 else -1

    def overlap(metric: Any, counts: Sequence[Counts]) -> RowScores:
        return row_scores(metric._aggregate_and_compute([row]).score if row else UNDEFINED for row in counts)

    def overall(metric: Any, counts: Sequence[Counts]) -> float:
        kept = [row for row in counts if row]
        return float(metric._aggregate_and_compute(kept).score) if kept else UNDEFINED

    def best(score: Callable[[str, str], float]) -> RowScores:
        return row_scores(max((score(text, r) for r in row), default=UNDEFINED) for text, row in pairs)

    return ReferenceScores(
        bleu=overlap(bleu, of_bleu),
        chrf=overlap(chrf, of_chrf),
        rouge_1=best(lambda text, reference: rouge_n(text, reference, 1)),
        rouge_2=best(lambda text, reference: rouge_n(text, reference, 2)),
        rouge_l=best(rouge_l),
        corpus_bleu=overall(all_bleu, of_bleu),
        corpus_chrf=overall(chrf, of_chrf),
        signature=str(all_bleu.get_signature()) if any(of_bleu) else "",
    )


def given_references(references: References) -> list[str]:
    """The references of a row that are not blank."""
    several = [references] if isinstance(references, str) else references or []
    return [text for text in several if text.strip()]


def rouge_n(text: str, reference: str, n: int) -> float:
    """F1 of the n-grams of words; 0 if either has none."""
    ours, theirs = Counter(ngrams(words(text), n)), Counter(ngrams(words(reference), n))
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words; 0 if either text has none."""
    ours, theirs = words(text), words(reference)
    return _f1(common_subsequence(ours, theirs), len(ours), len(theirs))


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a bit for each word of ``first`` (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for bit, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << bit
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        shared = row & places.get(word, 0)
        row = ((row + shared) | (row - shared)) & full
    return len(first) - row.bit_count()


def _counts(pairs: Sequence[tuple[str, list[str]]], metric: Any) -> list[Counts]:
    """What sacrebleu's scores of a row are made of, and added up those of all rows; None without references.

    Row by row, since ``corpus_score`` holds the n-grams of all references at once: 60 kB for each of 100 characters.
    """
    return [metric._extract_corpus_statistics([text], [[r] for r in row])[0] if row else None for text, row in pairs]


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs) if common else 0.0
