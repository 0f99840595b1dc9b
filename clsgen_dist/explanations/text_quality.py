"""How explanations read, and how alike they are, without references.

    Flesch reading ease   206.835 - 1.015 words/sentences - 84.6 syllables/words   (Flesch 1948; 60-70 is plain English)
    distinct-n            different n-grams / all n-grams, of all explanations together (Li 2016)
    self-BLEU             mean BLEU of an explanation against all others (Zhu 2018), 0 to 100
    Vendi score           exp(-Σ λ log λ), λ the eigenvalues of K/N (Friedman & Dieng 2023): the number of different
                          explanations in effect, from 1 (all alike) to N
    template repeats      explanations equal to another one once numbers, class names and the input's words are masked

The Vendi score's similarity K is the cosine of counts of words and of word pairs, averaged: wording, not meaning.
Syllables are counted as groups of vowels; on English paragraphs the reading ease is 2 points from that by a dictionary
on average. Other languages need other rules. Distinct-n falls with the number of texts: compare equal numbers. Cost:
self-BLEU and Vendi are quadratic and cubic, so a fixed sample is taken (100 and 1,000 rows: about 2 s together); the
rest is linear, template repeats with 0.2 ms per row.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from clsgen_dist.explanations.estimates import UNDEFINED, RowScores, check_same_rows, row_scores
from clsgen_dist.explanations.stated_class import ClassNames
from clsgen_dist.explanations.text_units import (
    is_content,
    ngrams,
    numbers,
    replaced,
    stem,
    word_offsets,
    words,
)

# N rows, S sampled rows, G different n-grams

SELF_BLEU_ROWS = 100
VENDI_ROWS = 1000
"""Rows sampled at most."""
_VOWELS = re.compile(r"[aeiouyáàâäãåéèêëíìîïóòôöõúùûü]+")
_SILENT_ENDING = re.compile(r"[^aeioutd]ed$|(?<![^aeiouy]l)(?<=[^aeiouscgxzh])es$")
_SENTENCE_ENDS = re.compile(r"(?:(?<!\d)\.|\.(?!\d)|[!?。！？])+")
_MASK = "\x00"


def lengths(explanations: Sequence[str]) -> RowScores:
    """Words of each explanation."""
    return row_scores(len(words(text)) for text in explanations)


def reading_ease(explanations: Sequence[str]) -> RowScores:
    """Flesch reading ease of each explanation; NaN without words."""
    return row_scores(_flesch(text) for text in explanations)


def distinct(explanations: Sequence[str], n: int) -> float:
    """Different n-grams divided by all; NaN if there are none."""
    counts = Counter(gram for text in explanations for gram in ngrams(words(text), n))
    return len(counts) / counts.total() if counts else UNDEFINED


def self_bleu(explanations: Sequence[str], *, sample: int = SELF_BLEU_ROWS, seed: int = 0) -> float:
    """Mean BLEU of each sampled explanation against the other sampled ones; NaN for fewer than two."""
    from sacrebleu.metrics import BLEU

    sampled = _sample(explanations, sample, seed)
    if len(sampled) < 2:
        return UNDEFINED
    bleu = BLEU(effective_order=True)
    return float(
        np.mean([bleu.sentence_score(t, sampled[:row] + sampled[row + 1 :]).score for row, t in enumerate(sampled)])
    )


def vendi_score(explanations: Sequence[str], *, sample: int = VENDI_ROWS, seed: int = 0) -> float:
    """The number of different explanations in effect, at most ``sample``; NaN without any."""
    sampled = _sample(explanations, sample, seed)
    if not sampled:
        return UNDEFINED
    kernel_SS = np.mean([_cosines(sampled, n) for n in (1, 2)], axis=0)
    eigenvalues_S = np.linalg.eigvalsh(kernel_SS / len(sampled))
    kept = eigenvalues_S[eigenvalues_S > 1e-12]
    return float(np.exp(-(kept * np.log(kept)).sum()))


def template_repeats(texts: Sequence[str], explanations: Sequence[str], labels: Sequence[str]) -> RowScores:
    """1 where another explanation has the same words around its numbers, class names and words of its input.

    A repeated template is no lie, but it says that only the masked places can carry information.
    """
    check_same_rows(inputs=texts, explanations=explanations)
    names = ClassNames(labels)
    masked = [template(text, explanation, names) for text, explanation in zip(texts, explanations, strict=True)]
    counts = Counter(masked)
    return row_scores((counts[each] > 1 for each in masked), is_share=True)


def _flesch(text: str) -> float:
    tokens = words(text)
    if not tokens:
        return UNDEFINED
    ends = [match.start() for match in _SENTENCE_ENDS.finditer(text)]
    starts = [0, *(end + 1 for end in ends)]
    sentences = sum(bool(words(text[start:end])) for start, end in zip(starts, [*ends, len(text)], strict=True))
    syllables = sum(map(_syllables, tokens))
    return 206.835 - 1.015 * len(tokens) / max(1, sentences) - 84.6 * syllables / len(tokens)


def _syllables(word: str) -> int:
    """Groups of vowels, without a silent e at the end: ``made``, ``measured``, ``names``; but ``table``, ``needed``."""
    groups = len(_VOWELS.findall(word))
    is_silent = (word.endswith("e") and not word.endswith(("le", "ee"))) or _SILENT_ENDING.search(word)
    return max(1, groups - bool(is_silent))


def _cosines(texts: Sequence[str], n: int) -> np.ndarray:
    """``[S, S]`` cosines of n-gram counts; a text shorter than n words is one n-gram."""
    from scipy.sparse import csr_matrix

    column: dict[tuple[str, ...], int] = {}
    rows, columns, values = [], [], []
    for row, text in enumerate(texts):
        tokens = words(text)
        counts = Counter(ngrams(tokens, n)) or Counter([tuple(tokens)])
        for gram, count in counts.items():
            rows.append(row)
            columns.append(column.setdefault(gram, len(column)))
            values.append(float(count))
    counts_SG = csr_matrix((values, (rows, columns)), shape=(len(texts), len(column)))
    norm_S = np.sqrt(np.asarray(counts_SG.multiply(counts_SG).sum(axis=1)).ravel())
    return np.asarray((counts_SG @ counts_SG.T).toarray() / np.outer(norm_S, norm_S))


def template(text: str, explanation: str, names: ClassNames) -> str:
    """The explanation in lower case, its numbers, class names and words of its input masked; neighbours as one."""
    there = {stem(word) for word in words(text) if is_content(word)}
    spans = [(mention.start, mention.end) for mention in names.mentions(explanation)]
    spans += [(number.start, number.end) for number in numbers(explanation)]
    spans += [
        (start, end)
        for start, end in word_offsets(explanation)
        if stem(explanation[start:end].casefold()) in there and is_content(explanation[start:end].casefold())
    ]
    # Neighbouring masks are one: "mean radius" and "radius" fill the same place.
    masked = replaced(explanation, spans, _MASK)
    return " ".join(re.sub(rf"{_MASK}(?:[\s,]*{_MASK})+", _MASK, masked).casefold().split())


def _sample(texts: Sequence[str], most: int, seed: int) -> list[str]:
    if len(texts) <= most:
        return list(texts)
    rows = np.sort(np.random.default_rng(seed).permutation(len(texts))[:most])
    return [texts[int(row)] for row in rows]
