"""A finding about rows: what is wrong, how many, where, and what to do.

``error``: training would refuse the rows, or its metrics would be wrong. ``warning``: training works, but the rows
deserve a look. ``info``: nothing to do. The codes are stable; ``clsgen data check --json`` writes them with every row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from clsgen_dist.data.checks.measure import Split

Severity = Literal["error", "warning", "info"]
MAX_LISTED, _MAX_NAME_LENGTH = 8, 60
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class RowRef:
    """One affected row."""

    split: str
    line: int
    """From 1; the row's number where a source has no lines."""
    id: str | None = None
    """None for a row that could not be read."""
    label: str | None = None
    detail: str = ""
    """What is specific to this row."""
    like: RowRef | None = None
    """The row it is a copy of."""
    excerpt: str = ""
    """The beginning of a rejected row; the report reads the other rows again."""


@dataclass(frozen=True)
class Finding:
    """Something to know about the rows."""

    code: str
    severity: Severity
    splits: tuple[str, ...]
    what: str
    """One sentence, with the numbers."""
    remedy: str = ""
    count: int = 0
    """Affected rows."""
    of: int = 0
    """Rows that ``count`` is a share of."""
    rows: list[RowRef] = field(default_factory=list)
    """All affected rows."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits that training would apply to these rows."""

    max_prompt_length: int
    max_explanation_length: int
    max_bad_fraction: float
    near: float
    """Jaccard index from which two texts are near duplicates."""


def first_rows(finding: Finding, limit: int) -> list[RowRef]:
    """The first rows to show to people; a pair of copies of each other is listed once."""
    listed_rows: set[tuple[str, int]] = set()
    rows: list[RowRef] = []
    for row in finding.rows:
        if len(rows) == limit:
            break
        if row.like and {(p.split, p.line) for p in (row, row.like)} <= listed_rows:
            continue
        listed_rows |= {(p.split, p.line) for p in (row, row.like) if p}
        rows.append(row)
    return rows


def row_ref(split: Split, row: int, names: Sequence[str] = (), detail: str = "", like: RowRef | None = None) -> RowRef:
    """The reference to a row, with its label if ``names`` are given."""
    label = names[split.labels[row]] if names and split.labels[row] >= 0 else None
    return RowRef(split.source.name, split.lines[row], split.ids[row], label, detail, like)


def rows_are(count: int, one: str, several: str) -> str:
    """``1 row has``, ``2 rows have``."""
    return f"1 row {one}" if count == 1 else f"{count} rows {several}"


def visible(text: str) -> str:
    """The text with control characters, lone surrogates, zero-width and direction marks as replacement characters."""
    return re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]",
        "\ufffd",
        text,
    )


def shortened(text: str, length: int = 40) -> str:
    """A stranger's text on one line: at most ``length`` characters, control characters made visible."""
    line = visible(" ".join(text[: 8 * length].split()))
    return line if len(line) <= length else line[: length - 2] + " …"


def named(name: str) -> str:
    """A class's name in quotes, shortened if it is long."""
    return repr(name if len(name) <= _MAX_NAME_LENGTH else name[:_MAX_NAME_LENGTH] + " …")


def listed(counts: dict[str, int]) -> str:
    """The first names with their counts."""
    more = f" and {len(counts) - MAX_LISTED} more" if len(counts) > MAX_LISTED else ""
    return ", ".join(f"{named(name)} ({count})" for name, count in list(counts.items())[:MAX_LISTED]) + more
