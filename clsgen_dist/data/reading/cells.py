"""What a cell means, by the same rules in every format: column names, class names, explanations.

    0, 0.0, "0", "0.0"                    one class, '0'; likewise true, True, "TRUE" are 'true'
    "odd", " odd", "odd" + U+200B         one class: composed (NFC), single spaces, no invisible characters
    null, NaN, "", "nan", "None", "N/A"   no label, no explanation (pandas' words for a missing value)
    ["a", "b"], "['a', 'b']", "['a' 'b']" explanations: a list, or its text as JSON, Python or numpy print it

A class listed in data.labels is that class, even if its name is "None" or "0.5". A text is never reinterpreted: "null"
is a text. A cell that is not read literally is counted as a :class:`Notice`; a cell that cannot be read with certainty
is a :class:`~clsgen_dist.data.reading.rejection.Fault`, which rejects the row.

Cost: some microseconds per row. Sources: pandas' `na_values`; Unicode's property Default_Ignorable_Code_Point.
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
"""Joiners have a meaning in Persian, in scripts of India and in emoji; next to ASCII they have none."""
_DECIMAL = re.compile(r"-?(?:0|[1-9]\d*)\.\d+(?:[eE][-+]?\d+)?")
_MAX_DIGITS = 30
_SHORT = 100
"""Longer texts are not checked for having only invisible characters."""


class Notice(StrEnum):
    """Why a cell was not read literally."""

    MISSING_LABEL = "missing-label"
    MISSING_EXPLANATION = "missing-explanation"
    LIST_TEXT = "list-text"
    RESPELT_LABEL = "respelt-label"
    HIDDEN_CHARACTERS = "hidden-characters"
    BRACKETED = "bracketed"
    PLACEHOLDER_TEXT = "placeholder-text"
    SCALED_PROBABILITIES = "scaled-probabilities"
    UNFOUND_EVIDENCE = "unfound-evidence"
    TIED_EXPLANATION = "tied-explanation"
    UNREAD_PROVENANCE = "unread-provenance"


Notices = list[tuple[Notice, str]]
"""Notices of a row, each with the beginning of the cell."""

_EXCERPT_LENGTH = 40


# --- names ---------------------------------------------------------------------------------------------------------


def clean_name(name: str) -> str:
    """The name as it is displayed: composed (NFC), any white space as one space, no invisible characters."""
    name = " ".join(name.split())
    if name.isascii() and name.isprintable():
        return name
    visible = _JOINERS.sub("", _INVISIBLE.sub("", name))
    return " ".join(unicodedata.normalize("NFC", visible).split())


def is_blank(text: str) -> bool:
    """Whether a text has no visible character."""
    if (first := text[:1]).isascii() and first.isalnum():
        return False
    return not text.strip() or (len(text) <= _SHORT and not clean_name(text))


def is_missing(value: Any) -> bool:
    """None, the NaN that pandas writes for it, or a cell without visible characters."""
    if isinstance(value, str):
        return is_blank(value)
    return value is None or (isinstance(value, float) and math.isnan(value))


def class_name(value: str | bool | int | float | Decimal) -> str:
    """The class that a cell of any format names; a fraction keeps its digits.

    Raises:
        Fault: the value cannot be a name, like a list.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _class_of_text(value)
    if isinstance(value, int) or (isinstance(value, (float, Decimal)) and math.isfinite(value)):
        return _as_integer(Decimal(str(value))) or str(value)
    raise Fault(Rejection.WRONG_LABEL_TYPE, f"{type(value).__name__}, expected a class name")


@lru_cache(maxsize=8192)
def _class_of_text(text: str) -> str:
    name = clean_name(text)
    if name in ("True", "TRUE", "False", "FALSE"):
        return name.lower()
    return (_as_integer(Decimal(name)) if _DECIMAL.fullmatch(name) else None) or name


def _as_integer(number: Decimal) -> str | None:
    """``12`` for 12.0; None for 12.5, and for numbers with too many digits for a class."""
    if number and abs(number.adjusted()) > _MAX_DIGITS:
        return None
    return str(int(number)) if number == number.to_integral_value() else None


_SEVERAL = (
    "write one class name per row, or set data.label_space to multilabel (a row has several classes) or single "
    "(votes of several annotators)"
)


class ClassNames:
    """Reads the cells of a label column.

    Args:
        names: the label space; None accepts any class.
    """

    def __init__(self, names: Sequence[str] | None) -> None:
        self.names = list(names) if names is not None else None
        self._listed = frozenset(names or ())
        self._by_name = {class_name(name): name for name in names or ()}

    def read(self, value: Any, notices: Notices) -> str | None:
        """The class of a cell, None without one; Fault if it is not in the label space."""
        if isinstance(value, str) and value in self._listed:
            return value
        if is_missing(value):
            return None
        if isinstance(value, (list, tuple, dict)):
            raise Fault(Rejection.LABEL_LIST, f"{excerpt(str(value))}; {_SEVERAL}")
        name = class_name(value)
        if name not in self._by_name:
            if isinstance(value, str) and clean_name(value) in MISSING_WORDS:
                notices.append((Notice.MISSING_LABEL, excerpt(value)))
                return None
            if isinstance(value, str) and list_in_text(value) is not None:
                raise Fault(Rejection.LABEL_LIST, f"{excerpt(value)}; {_SEVERAL}")
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
            notices.append((Notice.RESPELT_LABEL, excerpt(str(value))))
        elif isinstance(value, str) and value.strip(" ") != seen:
            notices.append((Notice.HIDDEN_CHARACTERS, excerpt(value)))
        return self._by_name.get(name, name)


def excerpt(text: str) -> str:
    """The beginning of a cell, for a message."""
    text = text.replace("\n", " ")
    return text if len(text) <= _EXCERPT_LENGTH else f"{text[:_EXCERPT_LENGTH]} …"


# --- explanations --------------------------------------------------------------------------------------------------


def explanations_of(cells: Sequence[Any], notices: Notices) -> tuple[str, ...]:
    """The distinct explanations in a row's cells, in order; Fault if one cannot be read with certainty."""
    return used_explanations(written_explanations(cells, notices), notices)


def written_explanations(cells: Sequence[Any], notices: Notices) -> list[str]:
    """Every text in a row's cells as it is written, in order; missing items of lists are empty.

    Raises:
        Fault: a cell cannot be read with certainty.
    """
    return [text for cell in cells if not is_missing(cell) for text in _texts(cell, notices)]


def used_explanations(written: Sequence[str], notices: Notices) -> tuple[str, ...]:
    """The distinct ones of the texts in a row's cells that are explanations."""
    texts_seen: dict[str, None] = {}
    for text in written:
        if is_blank(text):
            continue
        if len(text) <= _SHORT and _is_placeholder(text):
            notices.append((Notice.MISSING_EXPLANATION, excerpt(text)))
            continue
        texts_seen.setdefault(text)
    return tuple(texts_seen)


def _is_placeholder(text: str) -> bool:
    return text.strip().casefold() in _NO_EXPLANATION or _ONLY_MARKS.fullmatch(text) is not None


def _texts(cell: Any, notices: Notices) -> Iterator[str]:
    """The strings of a cell: itself, the items of a list, or the items of one written as text; missing ones empty."""
    if not isinstance(cell, (list, tuple)):
        cell = [cell]
    for value in cell:
        if is_missing(value):
            yield ""
            continue
        if not isinstance(value, str):
            raise Fault(Rejection.WRONG_EXPLANATION_TYPE, f"{type(value).__name__}, expected a string")
        items = list_in_text(value)
        if items is None:
            if value[0] in "[{" and _BARE_LIST.fullmatch(value.strip()):
                notices.append((Notice.BRACKETED, excerpt(value)))
            yield value
        else:
            if _json_list(value) is None:  # JSON is the intended way to write a list into a cell
                notices.append((Notice.LIST_TEXT, excerpt(value)))
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
_AS_JSON = "; write the list as JSON"
_GAP = re.compile(r"\s*,\s*|\s*")
_LOOKS_LIKE_LIST = re.compile(r"\[[\s\[(]*(?:[\w.]+\()?[uUbB]?[\"'\u2018\u201c].*[\"'\u2019\u201d]\)?\s*\]+", re.DOTALL)
_CUT_LIST = re.compile(r"[\[(]\s*[uU]?([\"'])(?:(?!\1).)*\1\s*(?:,\s*)?[uU]?[\"'][^\])]*", re.DOTALL)
_BARE_LIST = re.compile(r"\[[^\[\]]+,[^\[\]]+\]|\{[^{}:]+,[^{}:]+\}", re.DOTALL)


def list_in_text(text: str) -> list[Any] | None:
    """The items of a list that JSON, Python or numpy wrote as text; None for a text that is not a list.

    Raises:
        Fault: it looks like a list but cannot be read with certainty: shortened by numpy, cut off by a spreadsheet, or
            with unescaped quotes.
    """
    if text.lstrip()[:1] not in _MAY_BEGIN_LIST:
        return None
    text = text.strip().rstrip(",;")
    if call := _CALL.fullmatch(text):
        text = call[1].strip()
    if text[:2] in ("'[", '"[') and text[-1] == text[0] and isinstance(inner := literal(text), str):
        return list_in_text(inner)
    closer = _CLOSER.get(text[:1])
    if closer is None:
        return None
    if not text.endswith(closer):
        if _CUT_LIST.fullmatch(text):
            raise Fault(
                Rejection.UNREADABLE_LIST,
                f"{excerpt(text)} has no closing bracket, the cell was cut off; write the list as JSON",
            )
        return None
    if (items := _json_list(text)) is not None:
        return items
    if (items := _printed_list(text, closer)) is not None:
        return items
    value = literal(text)
    if value == [...]:
        return None
    if isinstance(value, list) or (isinstance(value, tuple) and any(isinstance(x, (list, tuple, dict)) for x in value)):
        return list(value)
    if _LOOKS_LIKE_LIST.fullmatch(text):
        raise Fault(
            Rejection.UNREADABLE_LIST, f"{excerpt(text)}, its quotes or commas do not match; write the list as JSON"
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
                Rejection.UNREADABLE_LIST, f"{excerpt(text)} was shortened by '...'; write the complete list as JSON"
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
    raise Fault(Rejection.UNREADABLE_LIST, f"{excerpt(text)}, some commas are missing{_AS_JSON}")


def _unquoted(quoted: str) -> str:
    value = None if quoted[0] in "\u2018\u201c" else literal(quoted)
    return value if isinstance(value, str) else quoted.lstrip("uU")[1:-1]


def literal(text: str) -> Any:
    """The value of a Python literal, None if the text is not one; nothing is executed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # '\d' is not an escape: Python warns and keeps both characters
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return None
