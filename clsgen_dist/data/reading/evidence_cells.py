"""Evidence: the parts of a text that speak for a row's label or against it, as quotes or as characters.

    "irregular margins"                      a quote; its place is looked up in the text
    ["irregular margins", [120, 134]]        several; two whole numbers are the characters from 120 up to 134
    [{"start": 120, "end": 134}]             spans as annotation tools write them

A quote is found whatever its white space, capitals, curly quotes and dashes; ``...`` in it stands for anything between
its parts. Of several places the first is taken, at whole words if there are any. What is not found is counted as a
:class:`~clsgen_dist.data.reading.cells.Notice`, and the row is kept without it.

Cost: a search of the text for each quote.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from clsgen_dist.data.reading.cells import Notice, Notices, excerpt, is_missing, list_in_text
from clsgen_dist.data.reading.rejection import Fault

Spans = tuple[tuple[int, int], ...]
"""Characters [start, end) of a text, in order, without overlap."""

_SAME = str.maketrans("\u2018\u2019\u201a\u201c\u201d\u201e\u2010\u2011\u2012\u2013\u2014\u2212", "'''\"\"\"------")
"""Characters that people and programs exchange for each other; one for one, so that places stay."""
_OMISSION = re.compile(r"\s*(?:\[\s*)?(?:\.\.\.|\u2026)(?:\s*\])?\s*")


def evidence_of(cell: Any, text: str, notices: Notices) -> Spans:
    """The spans that a cell names in its row's text; a notice for each part of it that is not there."""
    found: list[tuple[int, int]] = []
    for item in _items(cell):
        spans = _find(item, text)
        if not spans:
            notices.append((Notice.UNFOUND_EVIDENCE, excerpt(str(item))))
        found += spans
    return _merged(found)


def _items(cell: Any) -> Iterator[Any]:
    """The quotes and spans of a cell."""
    if hasattr(cell, "tolist"):
        cell = cell.tolist()
    if isinstance(cell, str):
        try:
            items = list_in_text(cell)
        except Fault:  # it only looks like a list
            items = None
        cell = [cell] if items is None else items
    if isinstance(cell, (list, tuple)):
        cell = [cell] if _is_span(cell) else cell
        yield from (item for item in cell if not is_missing(item))
    elif not is_missing(cell):
        yield cell


def _is_span(item: Any) -> bool:
    return isinstance(item, (list, tuple)) and len(item) == 2 and all(_whole(x) is not None for x in item)


def _whole(value: Any) -> int | None:
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    if not isinstance(value, (float, Decimal)) or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else None


def _find(item: Any, text: str) -> list[tuple[int, int]]:
    if isinstance(item, dict):
        item = [item.get("start"), item.get("end")]
    if isinstance(item, str):
        return _find_quote(item, text)
    if not _is_span(item):
        return []
    start, end = int(item[0]), int(item[1])
    return [(start, end)] if 0 <= start < end <= len(text) and text[start:end].strip() else []


def _find_quote(quote: str, text: str) -> list[tuple[int, int]]:
    """The place of a quote, or of its parts in order; empty if it, or one of them, is not there."""
    text, quote = text.translate(_SAME), quote.translate(_SAME)
    if span := _first(quote, text, 0):
        return [span]
    parts = [part for part in _OMISSION.split(quote) if part.strip()]
    spans: list[tuple[int, int]] = []
    for part in parts if parts != [quote] else ():
        span = _first(part, text, spans[-1][1] if spans else 0)
        if span is None:
            return []
        spans.append(span)
    return spans


def _first(quote: str, text: str, start: int) -> tuple[int, int] | None:
    words = quote.split()
    if not words:
        return None
    if span := _first_literal(words, text, start):
        return span
    pattern = r"\s+".join(map(re.escape, words))
    for wanted in (rf"(?<!\w){pattern}(?!\w)", pattern):
        if match := re.compile(wanted, re.IGNORECASE).search(text, start):
            return match.span()
    return None


def _first_literal(words: Sequence[str], text: str, start: int) -> tuple[int, int] | None:
    """The first place of these words, as they are written and not within longer ones, with any white space between.

    No regular expression, as compiling one would take longer than finding most quotes.
    """
    at = text.find(words[0], start)
    while at >= 0:
        end = at + len(words[0])
        for word in words[1:]:
            place = end
            while place < len(text) and text[place].isspace():
                place += 1
            if place == end or not text.startswith(word, place):
                break
            end = place + len(word)
        else:
            if not _is_within_word(text, at - 1) and not _is_within_word(text, end):
                return at, end
        at = text.find(words[0], at + 1)
    return None


def _is_within_word(text: str, place: int) -> bool:
    return 0 <= place < len(text) and (text[place].isalnum() or text[place] == "_")


def _merged(spans: list[tuple[int, int]]) -> Spans:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)
