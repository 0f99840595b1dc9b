"""What texts are made of: words, numbers, quoted spans and statements, with their offsets.

A word is a run of letters and digits; in Chinese and Japanese, which write no spaces, each character is one. Numbers
are read as they are written in English: ``1,000`` is 1000, ``3.50`` is 3.5, ``12 %`` is 12 percent. Not read:
``1.000`` and ``3,5`` of other languages, numbers in words, and digits inside a name such as ``T2``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

Offsets = tuple[int, int]
"""Start and end of a span of a text, as for slices."""

_NO_SPACES = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_NO_SPACES}]|\d+(?:[.,]\d+)+|[^\W_{_NO_SPACES}]+(?:['’][^\W\d_{_NO_SPACES}]+)*")
_NUMBER = re.compile(
    r"(?<![\w.])(?P<number>(?:(?<![^\s(\[=:])[-−+])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?)"
    r"(?P<percent>\s?(?:%|percent\b|per cent\b))?"
)
_ENUMERATOR = re.compile(r"^[^\S\n]*\d+[.)](?=\s)", re.MULTILINE)
"""Within its line: ``^\\s*`` would look through the same blank lines from each of them."""
_QUOTED = re.compile(r"\"([^\"\n]+)\"|“([^”\n]+)”|«([^»\n]+)»|「([^」\n]+)」|(?<!\w)['‘]([^'’\n]+)['’](?!\w)")
_STATEMENT = re.compile(r"(?:[^.;:!?。；！？\n]|(?<=\d)[.:](?=\d))+")
_SENTENCE_END = re.compile(r"(?:[.!?؟।]+[\"'”’)\]*]*(?=\s|$)|[。！？]+[”’」）]*)")
_NO_END = re.compile(
    r"(?:\b(?:[Dd]rs?|[Pp]rof|Mrs?|Ms|St|[Vv]s|[Ff]igs?|[Cc]f|[Aa]pprox|e\.g|i\.e|etc|al|resp|[Aa]rt|[Ss]ec|[Pp]ara|Inc|Ltd"
    r"|Corp|Co|Abb|z\.B|ca|bzw)|(?:^|\b[A-Z]\w*\.?\s+)[A-Z]|^\s*\d+)\.$",
    re.MULTILINE,
)
"""Full stops of abbreviations, initials and numbered points."""
_CLAUSE_WORDS = re.compile(r"\b(?:because|since|while|whereas|although|but)\b", re.IGNORECASE)
_STOP_WORDS = """
    a about after all also although an and any are as at be because been before being between both but by can could did
    do does doing due during each either for from further had has have having he her here him his how i if in into is it
    its itself just much must my of off on once only or other our out own same she should since so some such than that
    the their them then there these they this those though through to too until very was we were what when where whereas
    which while who whom why will with within would you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""English words without content of their own. Negations and words such as "above" are not among them."""
_VERDICT_WORDS = """
    answer assessment because case category class classification classified classify conclude conclusion consistent
    correct decision diagnosis evidence explanation finding indicate indicated indicates input label likely note point
    points predicted prediction probability reason reasons report row show shows suggest suggested suggests support
    supports text therefore thus value values
"""
VERDICT_WORDS = frozenset(_VERDICT_WORDS.split())
"""Words about the decision, not about what the input says."""
_KNOWN_LENGTH = 40
"""Characters of the longest word whose stem is remembered: words are few, but a text may be one word of a megabyte."""


@dataclass(frozen=True)
class Number:
    """A number of a text."""

    start: int
    end: int
    value: Decimal
    is_percent: bool


def words(text: str) -> list[str]:
    """The words in lower case."""
    return list(_last_words(text))


def word_offsets(text: str) -> list[Offsets]:
    """Where the words are."""
    return [match.span() for match in _WORD.finditer(text)]


def numbers(text: str) -> list[Number]:
    """The numbers; those that number the points of a list are left out."""
    enumerators = {match.end() - 1 for match in _ENUMERATOR.finditer(text)}
    return [
        Number(*match.span(), _decimal(match["number"]), bool(match["percent"]))
        for match in _NUMBER.finditer(text)
        if match.end("number") not in enumerators
    ]


def quoted_spans(text: str) -> list[Offsets]:
    """What is in quotation marks, without them."""
    return [match.span(match.lastindex or 0) for match in _QUOTED.finditer(text)]


def statements(text: str) -> list[Offsets]:
    """Sentences and clauses, divided at full stops, semicolons, colons and words such as "because"."""
    found = []
    for match in _STATEMENT.finditer(text):
        start = match.start()
        for clause in _CLAUSE_WORDS.finditer(text, *match.span()):
            found.append((start, clause.start()))
            start = clause.end()
        found.append((start, match.end()))
    return [(start, end) for start, end in found if text[start:end].strip()]


def sentence_ends(text: str) -> list[int]:
    """Where sentences end, behind the mark and a closing quotation mark; not at abbreviations (``e.g.``, ``Dr.``)."""
    ends = []
    for match in _SENTENCE_END.finditer(text):
        before = text[max(0, match.start() - 20) : match.start() + 1]
        if not (match.group().startswith(".") and _NO_END.search(before)):
            ends.append(match.end())
    return ends


def stem(word: str) -> str:
    """The word without plural, tense and adverb endings; light, so that different words stay different."""
    return _known_stem(word) if len(word) <= _KNOWN_LENGTH else _stem(word)


def is_content(word: str) -> bool:
    """Whether a word in lower case says something of its own: no stop word, no number."""
    return word not in STOP_WORDS and word not in VERDICT_WORDS and not word[0].isdigit()


def ngrams(tokens: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """All runs of n tokens."""
    return zip(*(tokens[start:] for start in range(n)), strict=False)


def merged(spans: Sequence[Offsets]) -> list[Offsets]:
    """The spans in order, overlapping ones as one."""
    found: list[Offsets] = []
    for start, end in sorted(spans):
        if found and start < found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def replaced(text: str, spans: Sequence[Offsets], replacement: str) -> str:
    """The text with each span replaced; they may overlap."""
    pieces, place = [], 0
    for start, end in merged(spans):
        pieces += [text[place:start], replacement]
        place = end
    return "".join([*pieces, text[place:]])


@functools.lru_cache(8)
def _last_words(text: str) -> tuple[str, ...]:
    """Those of the last texts are kept, as the checks of a row ask for the same ones."""
    if text.isascii():  # where case folding changes no length
        return tuple(_WORD.findall(text.lower()))
    return tuple([word.casefold() for word in _WORD.findall(text)])


def _stem(word: str) -> str:
    word = word.removesuffix("'s").removesuffix("’s")
    for ending, kept in (("ies", "y"), ("sses", "ss"), ("ing", ""), ("edly", ""), ("ed", ""), ("ly", ""), ("es", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return _without_final_e(_undoubled(word[: -len(ending)] + kept))
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        word = word[:-1]
    return _without_final_e(word)


_known_stem = functools.lru_cache(2**16)(_stem)


def _decimal(written: str) -> Decimal:
    return Decimal(written.replace(",", "").replace("−", "-"))


def _undoubled(word: str) -> str:
    """``stopp`` as ``stop``, but ``cell`` as it is."""
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiousl" else word


def _without_final_e(word: str) -> str:
    return word[:-1] if word.endswith("e") and len(word) > 4 else word
