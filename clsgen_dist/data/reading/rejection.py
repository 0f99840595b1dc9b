"""Rejected rows: a code to count and compare, a sentence for people, and the quarantine file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from clsgen_dist.errors import DataError
from clsgen_dist.io.files import atomic_file

RAW_LIMIT = 2000
"""Characters of a rejected row that the quarantine keeps."""


class Rejection(StrEnum):
    """Why a row is rejected; the codes are stable, the words are not."""

    NOT_UTF8 = "not-utf8"
    NUL_CHARACTER = "nul-character"
    LONE_SURROGATE = "lone-surrogate"
    NOT_JSON = "not-json"
    NOT_AN_OBJECT = "not-an-object"
    NOT_CSV = "not-csv"
    WRONG_CELL_COUNT = "wrong-cell-count"
    DUPLICATE_COLUMN = "duplicate-column"
    DUPLICATE_ID = "duplicate-id"
    MISSING_TEXT = "missing-text"
    EMPTY_TEXT = "empty-text"
    WRONG_TEXT_TYPE = "wrong-text-type"
    WRONG_LABEL_TYPE = "wrong-label-type"
    LABEL_LIST = "label-list"
    WRONG_ANSWERS = "wrong-answers"
    FRACTIONAL_LABEL = "fractional-label"
    UNKNOWN_LABEL = "unknown-label"
    WRONG_EXPLANATION_TYPE = "wrong-explanation-type"
    WRONG_VERDICT = "wrong-verdict"
    UNREADABLE_LIST = "unreadable-list"
    LONG_EXPLANATION = "long-explanation"
    WRONG_DIFFICULTY_TYPE = "wrong-difficulty-type"
    NO_TARGET = "no-target"

    @property
    def words(self) -> str:
        """The code in words."""
        return _WORDS.get(self, self.replace("-", " "))


_WORDS = {
    Rejection.NOT_UTF8: "not valid UTF-8",
    Rejection.NUL_CHARACTER: "NUL character",
    Rejection.NOT_JSON: "not JSON",
    Rejection.NOT_AN_OBJECT: "not a JSON object",
    Rejection.NOT_CSV: "not CSV",
    Rejection.WRONG_CELL_COUNT: "wrong number of cells",
    Rejection.WRONG_TEXT_TYPE: "text is not a string",
    Rejection.WRONG_LABEL_TYPE: "label has a wrong type",
    Rejection.LABEL_LIST: "label is a list or an object",
    Rejection.WRONG_ANSWERS: "label's votes or answers make no sense",
    Rejection.FRACTIONAL_LABEL: "label is a number with a fraction",
    Rejection.WRONG_EXPLANATION_TYPE: "explanation has a wrong type",
    Rejection.WRONG_VERDICT: "verdict is unknown",
    Rejection.LONG_EXPLANATION: "explanation is too long",
    Rejection.WRONG_DIFFICULTY_TYPE: "difficulty is not a number",
    Rejection.NO_TARGET: "neither label nor explanation",
}


class Fault(Exception):
    """A cell or line because of which its row is rejected."""

    def __init__(self, code: Rejection, detail: str = "") -> None:
        self.code = code
        super().__init__(f"{code.words}: {detail}" if detail else code.words)


@dataclass(frozen=True, kw_only=True)
class RejectedRow:
    """A rejected row and the reason."""

    source: str
    line: int
    """From 1: the line in a text file, the row elsewhere."""
    code: str
    """Of :class:`Rejection`."""
    reason: str
    """The sentence for people."""
    raw: str = ""
    """The raw row, cut at 2,000 characters."""

    @classmethod
    def of(cls, fault: Fault, source: str, line: int, raw: str) -> RejectedRow:
        """The row on which ``fault`` was raised."""
        return cls(source=source, line=line, code=str(fault.code), reason=str(fault), raw=raw[:RAW_LIMIT])


def write_quarantine(path: Path, rejected: Iterable[RejectedRow]) -> None:
    """Write the rejected rows; without any, delete the file of an earlier run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, encoding="ascii") as file:  # ASCII: a rejected row may hold what UTF-8 cannot
        file.writelines(json.dumps(asdict(row)) + "\n" for row in rejected)
        empty = file.tell() == 0
    if empty:
        path.unlink()


def require_few_bad_rows(
    source: str,
    rows: int,
    rejected: int,
    first: Iterable[RejectedRow],
    max_bad_fraction: float,
    quarantine: Path | None,
    setting: str = "data.max_bad_fraction",
) -> None:
    """DataError if a source has too many bad rows, or no good one; ``first`` are some of the bad rows."""
    total = rows + rejected
    if total == 0:
        raise DataError(f"{source} has no rows; check the file that was written")
    if rows and rejected <= max_bad_fraction * total:
        return
    where = f" All of them are in {quarantine}." if quarantine else ""
    limit = f"more than {setting} {max_bad_fraction:.1%} allows" if rows else "so no row is left"
    remedy = f"Fix the rows, or raise {setting}" if rows else "Fix the rows, or name the columns"
    bad = f"{rejected} of {total} rows are bad ({rejected / total:.1%})"
    raise DataError(f"{source}: {bad}, {limit}. {format_locations(first)}.{where} {remedy}")


def counted(codes: Counter[str]) -> str:
    """How many rows were rejected for which reason, the most frequent first: ``2 not JSON, 1 duplicate id``."""
    return ", ".join(f"{count} {Rejection(code).words}" for code, count in codes.most_common())


def format_locations(rejected: Iterable[RejectedRow]) -> str:
    """Where the first rejected rows are, and why."""
    return "; ".join(f"{row.source}:{row.line}: {row.reason}" for row, _ in zip(rejected, range(3), strict=False))
