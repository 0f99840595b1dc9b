"""Explanations that deny what their row's evidence says, or say what it denies.

    negated     "no fever", "denies fever", "fever is absent": a cue in the same clause, up to 5 words before the word
                or 4 behind it (after NegEx, Chapman et al. 2001, J. Biomed. Inform. 34:301)
    opposite    "low voltage" where the evidence has "high voltage": the opposite of a word beside another one

A clause of the explanation is compared with a span of evidence if it has at least half of the span's content words,
lightly stemmed, not counting words of time and number. It contradicts the span if most of these words are negated in
one of both and not in the other. Cues and opposites are English; whatever is said in other words is not found. Cost:
50 us per span.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from clsgen_dist.explanations.text_units import Offsets, is_content, sentence_ends, statements, stem, words

_SHARED_WORDS = 0.5
"""Share of a span's content words that a clause must have to be compared with it."""
_BEFORE, _BEHIND, _BESIDE = 5, 4, 3
"""Words between a word and its negation before and behind it; between a word's opposite and a word of the evidence."""
_CUE_WORDS = """
    no not without never neither nor none lack lacks lacking denies denied deny denying absence cannot isn't aren't
    wasn't doesn't didn't don't hasn't hadn't won't can't
"""
_CUES = frozenset(_CUE_WORDS.split())
_CUE_WORDS_BEHIND = "absent denied excluded missing negative not isn't wasn't"
_CUES_BEHIND = frozenset(_CUE_WORDS_BEHIND.split())
_NO_NEGATION = re.compile(
    r"\b(?:not only|no doubt|no wonder|not just|not merely|without (?:a )?doubt|no less|not least|no longer only)\b",
    re.IGNORECASE,
)
"""Holds a cue and negates nothing."""
_CONTRASTS = "but however although though yet except because since while whereas"
_ENDS_SCOPE = frozenset(_CONTRASTS.split())
_PAIRS = """
    high low|higher lower|increased decreased|increasing decreasing|increase decrease|elevated reduced|large small
    larger smaller|positive negative|present absent|above below|regular irregular|smooth irregular|rising falling
    rose fell|up down|early late|normal abnormal|stable unstable|symmetric asymmetric|paid unpaid|signed unsigned
    lawful unlawful|strong weak|more fewer|gained lost|won lost|accepted refused|approved rejected
"""
_OPPOSITES: dict[str, set[str]] = {}
for _pair in re.split(r"[|\n]", _PAIRS):
    if len(_words := _pair.split()) == 2:
        _OPPOSITES.setdefault(_words[0], set()).add(_words[1])
        _OPPOSITES.setdefault(_words[1], set()).add(_words[0])
_QUANTITY_WORDS = """
    one two three four five six seven eight nine ten several many hour hours day days week weeks month months year years
"""
_QUANTITIES = frozenset(_QUANTITY_WORDS.split())
_CONTEXT = 60
"""Characters before a span that may hold its negation."""


def contradicted_evidence(text: str, explanation: str, spans: Sequence[Offsets]) -> str | None:
    """The first span of evidence that the explanation contradicts, as the text has it; None if it contradicts none.

    Args:
        text: the row's text.
        explanation: its explanation.
        spans: characters of the text that are its evidence, or speak against its label.
    """
    explanation = _plain(explanation)
    clauses = [words(explanation[start:end]) for start, end in statements(explanation)]
    for start, end in spans:
        before, span = words(_sentence_before(text, start)), words(_plain(text[start:end]))
        if any(_contradicts(clause, span, before) for clause in clauses):
            return text[start:end]
    return None


def _contradicts(clause: Sequence[str], span: Sequence[str], before: Sequence[str]) -> bool:
    """Whether a clause of the explanation contradicts a span with these words before it."""
    content = [word for word in span if is_content(word) and word not in _CUES]
    wanted = {stem(word) for word in content if word not in _QUANTITIES} or set(map(stem, content))
    if not wanted:
        return False
    places = {stem(word): place for place, word in enumerate(clause)}
    shared = wanted & places.keys()
    if shared and _has_opposite(clause, span, [places[word] for word in shared]):
        return True
    if len(shared) < _SHARED_WORDS * len(wanted):
        return False
    there = {stem(word): place + len(before) for place, word in enumerate(span)}
    whole = [*before, *span]
    differ = sum(_is_negated(clause, places[word]) != _is_negated(whole, there[word]) for word in shared)
    return 2 * differ > len(shared)


def _has_opposite(clause: Sequence[str], span: Sequence[str], places: Sequence[int]) -> bool:
    """Whether a clause has, beside a word that it shares with the span, the opposite of another one."""
    said = set(clause)
    for word in span:
        if word in said:
            continue
        for opposite in _OPPOSITES.get(word, set()) & said - set(span):
            at = clause.index(opposite)
            near = any(0 < abs(at - place) <= _BESIDE for place in places)
            if near and not _is_negated(clause, at):
                return True
    return False


def _is_negated(tokens: Sequence[str], place: int) -> bool:
    """Whether a word is in the scope of a negation."""
    for token in reversed(tokens[max(0, place - _BEFORE) : place]):
        if token in _ENDS_SCOPE:
            break
        if token in _CUES:
            return True
    for token in tokens[place + 1 : place + 1 + _BEHIND]:
        if token in _ENDS_SCOPE:
            break
        if token in _CUES_BEHIND:
            return True
    return False


def _sentence_before(text: str, start: int) -> str:
    """What of the span's own clause stands before it."""
    before = _plain(text[max(0, start - _CONTEXT) : start])
    ends = [0, *sentence_ends(before), *(match.end() for match in re.finditer(r"[,;:\n]", before))]
    return before[max(ends) :]


def _plain(text: str) -> str:
    """The text without cues that negate nothing; of the same length, so that places stay."""
    return _NO_NEGATION.sub(lambda match: " " * len(match[0]), text.replace("’", "'"))
