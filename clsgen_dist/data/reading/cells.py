"""What a cell means, by one rule for every format: column names, class names, explanations.

    0, 0.0, "0", "0.0"                    one class, '0'; likewise true, True, "TRUE" are 'true'
    "odd", " odd", "odd" + U+200B         one class: composed (NFC), single spaces, no invisible characters
    null, NaN, "", "nan", "None", "N/A"   no label, no explanation (pandas' words for a missing value)
    ["a", "b"], "['a', 'b']", "['a' 'b']" explanations: a list, or its text as JSON, Python or numpy print it

A class that data.labels lists is that class, even if it is called "None" or "0.5". A text is never reinterpreted:
"null" is a text. What is read as something else than it looks is counted as a :class:`Notice`; what cannot be read for
sure is a :class:`~clsgen_dist.data.reading.rejection.Fault`, which rejects the row.

Cost: some microseconds a row. Sources: pandas' `na_values`; Unicode's property Default_Ignorable_Code_Point.
"""

from __future__ import annotations

import ast
import difflib
import json
import math
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from typing import Any

from clsgen_dist.data.reading.rejection import Fault, Rejection

MISSING_WORDS = frozenset(
    ("nan", "NaN", "-nan", "-NaN", "NaT", "None", "null", "NULL", "NA", "N/A", "n/a", "#N/A", "#N/A N/A", "#NA", "<NA>",
     "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN", "-", "\\N")
)  # fmt: skip
"""What programs write for a missing value: pandas' list, and '-' (SNLI), NaT (dates), \\N (SQL dumps)."""
_NO_EXPLANATION = frozenset(word.casefold() for word in MISSING_WORDS)
_ONLY_MARKS = re.compile(r"[-\u2010-\u2015.?\u2026/\s\[\]()]+")
_INVISIBLE = re.compile(
    "[\x01-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
_JOINERS = re.compile("(?<![^\\x00-\\x7f])[\u200c\u200d]+|[\u200c\u200d]+(?![^\\x00-\\x7f])")
"""Joiners have a meaning in Persian, in scripts of India and in emoji; beside ASCII they have none."""
_DECIMAL = re.compile(r"-?(?:0|[1-9]\d*)\.\d+(?:[eE][-+]?\d+)?")
_MOST_DIGITS = 30
_SHORT = 100
"""Characters of a text that may be nothing but invisible ones."""


class Notice(StrEnum):
    """What was read as something else than it looks."""

    MISSING_LABEL = "missing-label"
    MISSING_EXPLANATION = "missing-explanation"
    LIST_TEXT = "list-text"
    RESPELT_LABEL = "respelt-label"
    HIDDEN_CHARACTERS = "hidden-characters"
    BRACKETED = "bracketed"
    PLACEHOLDER_TEXT = "placeholder-text"


Notices = list[tuple[Notice, str]]
"""What was noticed in a row, each with the cell's beginning."""

_EXAMPLE = 40


# --- names ---------------------------------------------------------------------------------------------------------


def clean_name(name: str) -> str:
    """The name as it looks: composed (NFC), white space of any kind as one space, nothing invisible."""
    name = " ".join(name.split())
    if name.isascii() and name.isprintable():
        return name
    visible = _JOINERS.sub("", _INVISIBLE.sub("", name))
    return " ".join(unicodedata.normalize("NFC", visible).split())


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen."""
    if (first := text[:1]).isascii() and first.isalnum():
        return False
    return not text.strip() or (len(text) <= _SHORT and not clean_name(text))


def is_missing(value: Any) -> bool:
    """None, the NaN that pandas writes for it, or a cell in which nothing can be seen."""
    if isinstance(value, str):
        return is_blank(value)
    return value is None or (isinstance(value, float) and math.isnan(value))


def class_name(value: str | bool | int | float | Decimal) -> str:
    """The class that a cell of any format names; a number that is not whole keeps its digits.

    Raises:
        Fault: the value can be no name, like a list.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _class_of_text(value)
    if isinstance(value, (int, float, Decimal)) and math.isfinite(value):
        return _whole(Decimal(str(value))) or str(value)
    raise Fault(Rejection.WRONG_LABEL_TYPE, f"{type(value).__name__}, expected a class name")


@lru_cache(maxsize=8192)
def _class_of_text(text: str) -> str:
    name = clean_name(text)
    if name in ("True", "TRUE", "False", "FALSE"):
        return name.lower()
    return (_whole(Decimal(name)) if _DECIMAL.fullmatch(name) else None) or name


def _whole(number: Decimal) -> str | None:
    """``12`` for 12.0, None for 12.5 and for numbers of more digits than anybody counts classes with."""
    if number and abs(number.adjusted()) > _MOST_DIGITS:
        return None
    return str(int(number)) if number == number.to_integral_value() else None


class ClassNames:
    """Reads the cells of a label column.

    Args:
        names: the label space; None takes any class.
    """

    def __init__(self, names: Sequence[str] | None) -> None:
        self.names = list(names) if names is not None else None
        self._listed = frozenset(names or ())
        self._known = {class_name(name): name for name in names or ()}

    def read(self, value: Any, notices: Notices) -> str | None:
        """The class of a cell, None without one; Fault if it can be none of the label space."""
        if isinstance(value, str) and value in self._listed:
            return value
        if is_missing(value):
            return None
        if isinstance(value, (list, tuple)):
            raise Fault(Rejection.LABEL_LIST, f"{_begin(str(value))}; write one class name a row")
        name = class_name(value)
        if name not in self._known:
            if isinstance(value, str) and clean_name(value) in MISSING_WORDS:
                notices.append((Notice.MISSING_LABEL, _begin(value)))
                return None
            if isinstance(value, str) and list_in_text(value) is not None:
                raise Fault(Rejection.LABEL_LIST, f"{_begin(value)}; write one class name a row")
            if _DECIMAL.fullmatch(name) or (isinstance(value, float) and not value.is_integer()):
                raise Fault(
                    Rejection.FRACTIONAL_LABEL,
                    f"{name}; name the column of the classes with columns.label, "
                    "or list it in data.labels if it is a class",
                )
            if self.names is not None:
                near = difflib.get_close_matches(name, self.names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise Fault(Rejection.UNKNOWN_LABEL, f"{name!r} is not in the label space {self.names}{hint}")
        if isinstance(value, float) or (isinstance(value, str) and name != (seen := clean_name(value))):
            notices.append((Notice.RESPELT_LABEL, _begin(str(value))))
        elif isinstance(value, str) and value.strip(" ") != seen:
            notices.append((Notice.HIDDEN_CHARACTERS, _begin(value)))
        return self._known.get(name, name)


def _begin(text: str) -> str:
    text = text.replace("\n", " ")
    return text if len(text) <= _EXAMPLE else f"{text[:_EXAMPLE]} …"


# --- explanations --------------------------------------------------------------------------------------------------


def explanations_of(cells: Sequence[Any], notices: Notices) -> tuple[str, ...]:
    """The different explanations in a row's cells, in order; Fault if one cannot be read for sure."""
    found: dict[str, None] = {}
    for cell in cells:
        for text in _texts(cell, notices):
            if is_blank(text):
                continue
            if len(text) <= _SHORT and _says_nothing(text):
                notices.append((Notice.MISSING_EXPLANATION, _begin(text)))
                continue
            found.setdefault(text)
    return tuple(found)


def _says_nothing(text: str) -> bool:
    return text.strip().casefold() in _NO_EXPLANATION or _ONLY_MARKS.fullmatch(text) is not None


def _texts(cell: Any, notices: Notices) -> Iterator[str]:
    """The strings of a cell: itself, those of a list, those of a list's text."""
    if not isinstance(cell, (list, tuple)):
        cell = [cell]
    for value in cell:
        if is_missing(value):
            continue
        if not isinstance(value, str):
            raise Fault(Rejection.WRONG_EXPLANATION_TYPE, f"{type(value).__name__}, expected a string")
        items = list_in_text(value)
        if items is None:
            if value[0] in "[{" and _BARE_LIST.fullmatch(value.strip()):
                notices.append((Notice.BRACKETED, _begin(value)))
            yield value
        else:
            if _json_list(value) is None:  # JSON is how a list is meant to be written into a cell
                notices.append((Notice.LIST_TEXT, _begin(value)))
            yield from _texts(items, notices)


_MAY_BEGIN_LIST = frozenset("[({'\"anlt")  # a quote around a list; array(, np.array(, list(, tuple(
_CLOSER = {"[": "]", "(": ")", "{": "}"}
_CALL = re.compile(r"(?:np\.|numpy\.)?(?:array|list|tuple)\((.*?)(?:,\s*dtype=[^()]*)?\)", re.DOTALL)
_ITEM = re.compile(
    r"(?:(?:np|numpy)\.str_\()?"
    r"(?P<quoted>[uU]?'(?:[^'\\]|\\.)*'|[uU]?\"(?:[^\"\\]|\\.)*\"|\u201c[^\u201d]*\u201d|\u2018[^\u2019]*\u2019)\)?"
    r"|(?P<missing>None|null|NaN|nan|<NA>)(?=[\s,]|$)",
    re.DOTALL,
)
_AS_JSON = "; write the whole list as JSON"
_GAP = re.compile(r"\s*,\s*|\s*")
_LOOKS_LIKE_LIST = re.compile(r"\[[\s\[(]*(?:[\w.]+\()?[uUbB]?[\"'\u2018\u201c].*[\"'\u2019\u201d]\)?\s*\]+", re.DOTALL)
_CUT_LIST = re.compile(r"[\[(]\s*[uU]?([\"'])(?:(?!\1).)*\1\s*(?:,\s*)?[uU]?[\"'][^\])]*", re.DOTALL)
_BARE_LIST = re.compile(r"\[[^\[\]]+,[^\[\]]+\]|\{[^{}:]+,[^{}:]+\}", re.DOTALL)


def list_in_text(text: str) -> list[Any] | None:
    """The items of a list whose text JSON, Python or numpy printed; None for a text that is no list.

    Raises:
        Fault: it looks like a list and cannot be read for sure: cut short by numpy or a spreadsheet, quotes unescaped.
    """
    if text.lstrip()[:1] not in _MAY_BEGIN_LIST:
        return None
    text = text.strip().rstrip(",;")
    if call := _CALL.fullmatch(text):
        text = call[1].strip()
    if text[:2] in ("'[", '"[') and text[-1] == text[0] and isinstance(inner := _literal(text), str):
        return list_in_text(inner)
    closer = _CLOSER.get(text[:1])
    if closer is None:
        return None
    if not text.endswith(closer):
        if _CUT_LIST.fullmatch(text):
            raise Fault(
                Rejection.UNREADABLE_LIST, f"{_begin(text)} has no end, the cell was cut; write the list as JSON"
            )
        return None
    if (items := _json_list(text)) is not None:
        return items
    if (items := _printed_list(text, closer)) is not None:
        return items
    value = _literal(text)
    if value == [...]:
        return None
    if isinstance(value, list) or (isinstance(value, tuple) and any(isinstance(x, (list, tuple, dict)) for x in value)):
        return list(value)
    if _LOOKS_LIKE_LIST.fullmatch(text):
        raise Fault(
            Rejection.UNREADABLE_LIST, f"{_begin(text)}, its quotes or commas do not fit; write the list as JSON"
        )
    return None


def _json_list(text: str) -> list[Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _printed_list(text: str, closer: str) -> list[str | None] | None:
    """Quoted strings between commas (Python) or blanks (numpy); None for anything else."""
    inner, at, gaps = text[1:-1].strip(), 0, set()
    items: list[str | None] = []
    while at < len(inner):
        if inner.startswith("...", at) and items:
            raise Fault(
                Rejection.UNREADABLE_LIST, f"{_begin(text)} was shortened by '...'; write the whole list as JSON"
            )
        item = _ITEM.match(inner, at)
        if item is None:
            return None
        items.append(_unquoted(item["quoted"]) if item["quoted"] else None)
        gap = _GAP.match(inner, item.end())
        assert gap
        at = gap.end()
        if at < len(inner) or "," in gap[0]:
            gaps.add("," if "," in gap[0] else gap[0] and " ")
    if closer == ")" and items and gaps != {","}:  # ("sic"): a text in brackets
        return None
    if gaps <= {","} or (gaps == {" "} and closer == "]"):
        return items
    raise Fault(Rejection.UNREADABLE_LIST, f"{_begin(text)}, some commas are missing{_AS_JSON}")


def _unquoted(quoted: str) -> str:
    value = None if quoted[0] in "\u2018\u201c" else _literal(quoted)
    return value if isinstance(value, str) else quoted.lstrip("uU")[1:-1]


def _literal(text: str) -> Any:
    """A Python literal's value, None if it is none; nothing is executed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # '\d' is no escape: Python warns and keeps both characters
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return None
