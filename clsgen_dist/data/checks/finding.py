"""A finding about rows: what is wrong, how many, where, and what to do.

``error``: training would refuse the rows, or its metrics would be wrong. ``warning``: training works, but the rows
deserve a look. ``info``: nothing to do. The codes are stable; ``clsgen data check --json`` writes them with every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from clsgen_dist.errors import SettingsError
from clsgen_dist.io.value_ranges import ClosedUnitInterval, JaccardThreshold, PositiveInt, dataclass_range_faults

if TYPE_CHECKING:
    from clsgen_dist.data.checks.row_statistics import Split

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class RowRef:
    """One affected row."""

    split: str
    line: int
    """From 1; the row's number where a source has no lines."""
    id: str | None = None
    """None for a row that could not be read."""
    has_own_id: bool = False
    """Whether the id is the user's, not made from file and line."""
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

    max_prompt_length: PositiveInt
    max_explanation_length: PositiveInt
    max_bad_fraction: ClosedUnitInterval
    near: JaccardThreshold
    """Jaccard index from which two texts are near duplicates."""

    def __post_init__(self) -> None:
        """Raise SettingsError for a value out of its range."""
        if faults := dataclass_range_faults(self):
            raise SettingsError("; ".join(faults))


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
    own = bool(split.has_own_id[row])
    return RowRef(split.source.name, split.lines[row], split.ids[row], own, label, detail, like)
