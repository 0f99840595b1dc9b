"""Small edits that turn a stated fact into its opposite: numbers, pairs of opposites, negations. English.

17.9 → 35.8 or 8.95        high → low, present → absent        no fever → fever, is regular → is not regular
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal, localcontext

from clsgen_dist.explanations.text_units import Number, Offsets, numbers

OPPOSITES = (
    ("high", "low"), ("higher", "lower"), ("highest", "lowest"), ("elevated", "reduced"), ("raised", "lowered"),
    ("increased", "decreased"), ("increase", "decrease"), ("increasing", "decreasing"), ("present", "absent"),
    ("positive", "negative"), ("normal", "abnormal"), ("regular", "irregular"), ("large", "small"),
    ("larger", "smaller"), ("above", "below"), ("more", "less"), ("improved", "worsened"), ("stable", "unstable"),
    ("with", "without"), ("good", "poor"), ("smooth", "rough"), ("mild", "severe"),
)  # fmt: skip
_OPPOSITE = {word: other for pair in OPPOSITES for word, other in (pair, pair[::-1])}
_WORD = re.compile(r"[^\W\d_]+")
_NEGATOR_BEFORE = re.compile(r"\b(?:no|not|without|denies|denied)\s+$", re.IGNORECASE)
_VERB_BEFORE = re.compile(r"\b(?:is|are|was|were)\s+$", re.IGNORECASE)
_Edit = tuple[int, int, str]


def raised_and_lowered(text: str, spans: Sequence[Offsets], factor: Decimal = Decimal(2)) -> list[str]:
    """The text with the facts in ``spans`` changed, numbers once multiplied and once divided; empty if no rule applies.

    Numbers keep their decimals, unless they would not change. Both texts have the same changes of words.
    """
    changed_words = _word_edits(text, spans)
    inside = [n for n in numbers(text) if any(start <= n.start < end for start, end in spans)]
    if not inside:
        return [_applied(text, changed_words)] if changed_words else []
    return [
        _applied(text, changed_words + [(n.start, n.end, _scaled(text[n.start : n.end], n, by)) for n in inside])
        for by in (factor, 1 / factor)
    ]


def _word_edits(text: str, spans: Sequence[Offsets]) -> list[_Edit]:
    edits: dict[int, _Edit] = {}
    for start, end in spans:
        for match in _WORD.finditer(text, start, end):
            before = text[: match.start()][-20:]
            opposite = _OPPOSITE.get(match.group().lower())
            if negator := _NEGATOR_BEFORE.search(before):
                first = match.start() - len(negator.group())
                edits[first] = (first, match.start(), "")
            elif opposite:
                capital = match.group()[0].isupper()
                edits[match.start()] = (*match.span(), opposite.capitalize() if capital else opposite)
            elif _VERB_BEFORE.search(before):
                edits[match.start()] = (match.start(), match.start(), "not ")
    return list(edits.values())


def _scaled(written: str, number: Number, factor: Decimal) -> str:
    digits = re.sub(r"[^\d.]", "", written)
    with localcontext(prec=len(digits) + 9):  # an identifier may have more digits than the default's 28
        step = Decimal(1).scaleb(-len(digits.partition(".")[2]))
        value = (number.value * factor).quantize(step, ROUND_HALF_UP)
        if value == number.value:
            value = number.value + step if factor > 1 else number.value * factor or number.value - step
    percent = re.search(r"\s?(?:%|per ?cent)$", written)
    return f"{value:f}" + (percent.group() if percent else "")


def _applied(text: str, edits: Sequence[_Edit]) -> str:
    pieces, place = [], 0
    for start, end, new in sorted(edits):
        if start < place:
            continue
        pieces += [text[place:start], new]
        place = end
    return "".join([*pieces, text[place:]])
