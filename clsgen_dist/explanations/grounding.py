"""Grounding: which claims of an explanation are found in its input, and where.

    number      equal to a number of the input: 1,000 is 1000, 3.50 is 3.5, 12 % is 12 percent or 0.12
    quote       the words in quotation marks follow one another in the input
    statement   at least half of the content words of a clause, lightly stemmed, are in the input

A number is found whatever it measures: "age 61" is grounded by "61 beats a minute". A negation changes no word, so "no
fever" is grounded by "fever". A rounded number is not found. So a low share proves invention; a high share does not
prove truth. Statements count words in any order: a clause of frequent words is found by chance, and a paraphrase is
missed. Cost: 0.4 ms per row of 70 words.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

import numpy as np

from clsgen_dist.explanations.estimates import UNDEFINED, RowScores, check_same_rows, row_scores
from clsgen_dist.explanations.stated_class import ClassNames
from clsgen_dist.explanations.text_units import (
    Offsets,
    is_content,
    merged,
    ngrams,
    numbers,
    quoted_spans,
    statements,
    stem,
    word_offsets,
    words,
)

FOUND_WORDS = 0.5
"""Share of a statement's content words that must be in the input."""
_PLACES = 100
"""Occurrences of a word that are looked at."""
COPIED_WORDS = 4
"""Length of a run of words that counts as copied."""


class ClaimKind(StrEnum):
    """What an explanation says of its input."""

    NUMBER = "number"
    QUOTE = "quote"
    STATEMENT = "statement"


@dataclass(frozen=True)
class Claim:
    """A claim of an explanation, and where the input has it."""

    kind: ClaimKind
    start: int
    """In the explanation."""
    end: int
    is_found: bool
    evidence: tuple[Offsets, ...]
    """Spans of the input; every place that has it. A statement's words have them even if too few are found."""


@dataclass(frozen=True)
class Grounding:
    """The claims of one explanation."""

    claims: tuple[Claim, ...]

    def share(self, kind: ClaimKind) -> float:
        """Share of the claims of this kind that are found; NaN without any."""
        found = [claim.is_found for claim in self.claims if claim.kind == kind]
        return sum(found) / len(found) if found else UNDEFINED

    @property
    def evidence(self) -> list[Offsets]:
        """Spans of the input that the explanation names, in order, without overlaps."""
        return _all_evidence(self.claims)


@dataclass(frozen=True)
class GroundingScores:
    """Shares of found claims by kind, and what each row's explanation names in its input."""

    numbers: RowScores
    quotes: RowScores
    statements: RowScores
    spans_N: list[np.ndarray]
    """``[E, 2]`` starts and ends for each row: 8 bytes a span, as a long input has hundreds."""

    def evidence_of(self, row: int) -> list[Offsets]:
        """The spans of the row's input that its explanation names, in order, without overlaps."""
        return [(start, end) for start, end in self.spans_N[row].tolist()]

    @property
    def evidence(self) -> list[list[Offsets]]:
        """Those of all rows."""
        return [self.evidence_of(row) for row in range(len(self.spans_N))]


def ground(text: str, explanation: str, names: ClassNames) -> Grounding:
    """The explanation's claims, looked for in the input ``text``; names of classes are no claims."""
    claims = [*_number_claims(text, explanation), *_quote_claims(text, explanation)]
    claims += _statement_claims(text, explanation, names)
    return Grounding(tuple(sorted(claims, key=lambda claim: (claim.start, claim.end))))


def grounding(texts: Sequence[str], explanations: Sequence[str], labels: Sequence[str]) -> GroundingScores:
    """For each row the share of numbers, quotes and statements found in the input.

    Args:
        texts: inputs.
        explanations: one a row.
        labels: names of the classes.

    Raises:
        DataError: different numbers of rows.
    """
    check_same_rows(inputs=texts, explanations=explanations)
    names = ClassNames(labels)
    kinds, shares, spans_N = list(ClaimKind), np.empty((len(texts), len(ClaimKind))), []
    for row, (text, explanation) in enumerate(zip(texts, explanations, strict=True)):
        grounded = ground(text, explanation, names)
        shares[row] = [grounded.share(kind) for kind in kinds]
        spans_N.append(np.array(grounded.evidence, dtype=np.int32).reshape(-1, 2))
    scores = {kind: row_scores(shares[:, column], is_share=True) for column, kind in enumerate(kinds)}
    return GroundingScores(scores[ClaimKind.NUMBER], scores[ClaimKind.QUOTE], scores[ClaimKind.STATEMENT], spans_N)


def named_phrases(text: str, explanation: str, names: ClassNames) -> list[Offsets]:
    """Spans of the text to show as what the explanation names, in order, without overlaps.

    Runs of two words or more that both have, with a content word in them, the longest first; then content words that
    are in no run. :func:`ground` counts single words, which is right for a share, but would show ``high`` everywhere
    where the explanation says ``pits very high``.
    """
    said = words(names.masked(explanation, " ¶ "))
    spans, given = word_offsets(text), words(text)
    places: dict[str, list[int]] = defaultdict(list)
    for place, word in enumerate(given):
        places[word].append(place)
    found: list[Offsets] = []
    single: set[str] = set()
    at = 0
    while at < len(said):
        lengths = {place: _common_run(said, at, given, place) for place in places[said[at]][:_PLACES]}
        longest = max(lengths.values(), default=0)
        if longest >= 2 and any(map(is_content, said[at : at + longest])):
            runs = [place for place, length in lengths.items() if length == longest]
            found += [(spans[place][0], spans[place + longest - 1][1]) for place in runs]
            at += longest
        else:
            if is_content(said[at]):
                single.add(stem(said[at]))
            at += 1
    found += [span for span, word in zip(spans, given, strict=True) if stem(word) in single and is_content(word)]
    claims = [*_number_claims(text, explanation), *_quote_claims(text, explanation)]
    return merged(found + _all_evidence(claims))


def _all_evidence(claims: Iterable[Claim]) -> list[Offsets]:
    """Spans of the input that claims name, in order, without overlaps; evidence that claims share is read once."""
    different = {id(claim.evidence): claim.evidence for claim in claims}
    return merged([span for evidence in different.values() for span in evidence])


def _common_run(first: Sequence[str], start: int, second: Sequence[str], place: int) -> int:
    """Length of what both have in common, from a place of each."""
    most = min(len(first) - start, len(second) - place)
    return next((n for n in range(most) if first[start + n] != second[place + n]), most)


def copied_share(texts: Sequence[str], explanations: Sequence[str]) -> RowScores:
    """Share of an explanation's runs of 4 words that its input has word for word; NaN for shorter explanations.

    Near 1 the explanation repeats the input: every claim is grounded, and nothing is explained.
    """
    check_same_rows(inputs=texts, explanations=explanations)
    shares = []
    for text, explanation in zip(texts, explanations, strict=True):
        there = set(ngrams(words(text), COPIED_WORDS))
        runs = list(ngrams(words(explanation), COPIED_WORDS))
        shares.append(sum(run in there for run in runs) / len(runs) if runs else UNDEFINED)
    return row_scores(shares, is_share=True)


def _number_claims(text: str, explanation: str) -> list[Claim]:
    """The numbers of an explanation; 12 % is 12 percent, 0.12, and 12 in a column of percentages."""
    plain: dict[Decimal, list[Offsets]] = defaultdict(list)
    percent: dict[Decimal, list[Offsets]] = defaultdict(list)
    hundredths: dict[Decimal, list[Offsets]] = defaultdict(list)
    for number in numbers(text):
        (percent if number.is_percent else plain)[number.value].append((number.start, number.end))
        if number.is_percent:
            hundredths[number.value / 100].append((number.start, number.end))

    @functools.cache  # one tuple for each quantity: else a list of one number would be spans by its length squared
    def evidence_of(value: Decimal, is_percent: bool) -> tuple[Offsets, ...]:
        as_ratio = plain.get(value / 100, []) if is_percent else hundredths.get(value, [])
        return tuple(sorted({*plain.get(value, ()), *percent.get(value, ()), *as_ratio}))

    claims = []
    for named in numbers(explanation):
        evidence = evidence_of(named.value, named.is_percent)
        claims.append(Claim(ClaimKind.NUMBER, named.start, named.end, bool(evidence), evidence))
    return claims


def _quote_claims(text: str, explanation: str) -> list[Claim]:
    spans, given = word_offsets(text), words(text)
    places: dict[str, list[int]] = defaultdict(list)
    for place, word in enumerate(given):
        places[word].append(place)
    found: dict[tuple[str, ...], tuple[Offsets, ...]] = {}
    claims = []
    for start, end in quoted_spans(explanation):
        quoted = words(explanation[start:end])
        if not quoted:
            continue
        key = tuple(quoted)
        if key not in found:
            rarest = min(range(len(quoted)), key=lambda at: len(places.get(quoted[at], ())))
            firsts = [place - rarest for place in places.get(quoted[rarest], ()) if place >= rarest]
            found[key] = tuple(
                (spans[first][0], spans[first + len(quoted) - 1][1])
                for first in firsts
                if given[first : first + len(quoted)] == quoted
            )
        claims.append(Claim(ClaimKind.QUOTE, start, end, bool(found[key]), found[key]))
    return claims


def _statement_claims(text: str, explanation: str, names: ClassNames) -> list[Claim]:
    places: dict[str, list[Offsets]] = defaultdict(list)
    for start, end in word_offsets(text):
        places[stem(text[start:end].casefold())].append((start, end))
    of_classes = {place for mention in names.mentions(explanation) for place in range(mention.start, mention.end)}

    @functools.cache
    def evidence_of(stems: frozenset[str]) -> tuple[Offsets, ...]:
        return tuple(sorted(span for word in stems for span in places.get(word, ())))

    claims = []
    for start, end in statements(explanation):
        stems = frozenset(
            stem(word)
            for first, last in word_offsets(explanation[start:end])
            if is_content(word := explanation[start + first : start + last].casefold())
            and start + first not in of_classes
        )
        if stems:
            found = sum(word in places for word in stems)
            is_found = found >= FOUND_WORDS * len(stems)
            claims.append(Claim(ClaimKind.STATEMENT, start, end, is_found, evidence_of(stems)))
    return claims
