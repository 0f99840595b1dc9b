"""What a split is decided by, read once: label, text, group and time of each row; never the texts.

Cost: one pass; 1.5 KB of memory per distinct text for near duplicates, 0.4 KB per row for the rest (ids
for the most part); with the search for near duplicates 2.1 KB at the peak.

Shapes: R usable rows, T distinct texts.
"""

from __future__ import annotations

import datetime
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice

from clsgen_dist.data.checks.near_duplicates import Sketches, Template, normalised, text_hash
from clsgen_dist.data.example import Columns, Example
from clsgen_dist.data.reading.ingest import unique_rows
from clsgen_dist.data.reading.label_cells import Space
from clsgen_dist.data.reading.rejection import RejectedRow
from clsgen_dist.errors import DataError

_SAMPLE = 1000
"""First rows, from which the shared template is estimated."""
NO_GROUP = -1
NO_CLASS = "(none)"
"""Of a row whose label is that no class applies, or that leaves each less likely than not."""


@dataclass
class RowFacts:
    """The usable rows of a source, and the lines of the others."""

    lines: array[int] = field(default_factory=lambda: array("q"))
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    """Of the normalised text."""
    texts: array[int] = field(default_factory=lambda: array("q"))
    """Index of the row's distinct text."""
    label_sets: array[int] = field(default_factory=lambda: array("i"))
    """Index into ``sets``."""
    groups: array[int] = field(default_factory=lambda: array("q"))
    """Index of the group, or :data:`NO_GROUP`."""
    times: array[float] = field(default_factory=lambda: array("d"))
    """Empty without a column of time."""
    sets: dict[tuple[str, ...], int] = field(default_factory=dict)
    """The classes that a row has together; () for rows without label."""
    group_names: dict[str, int] = field(default_factory=dict)
    sketches: Sketches = field(default_factory=lambda: Sketches(Template.none()))
    rejected: list[RejectedRow] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines)


def read_facts(
    source: str, *, columns: Columns, by_group: str | None, by_time: str | None, space: Space, near: bool
) -> RowFacts:
    """Read a source once.

    Args:
        source: see :func:`clsgen_dist.data.reading.records.find_source`.
        columns: the names of its columns.
        by_group: column of what must stay together.
        by_time: column of numbers or ISO dates.
        space: how label cells are read.
        near: whether sketches for near duplicates are kept.

    Raises:
        DataError: the source cannot be read, or a row has no time, or one that cannot be read.
    """
    facts = RowFacts()
    rows = split_rows(source, columns=columns, by_group=by_group, by_time=by_time, space=space)
    sample = list(islice(rows, _SAMPLE))
    if near:
        facts.sketches = Sketches(Template.of(normalised(row.text) for row in sample if isinstance(row, Example)))
    seen: dict[int, int] = {}
    for row in chain(sample, rows):
        if isinstance(row, RejectedRow):
            facts.rejected.append(replace(row, raw=row.raw[:300]))
            continue
        normal = normalised(row.text)
        digest = text_hash(normal)
        if digest not in seen:
            seen[digest] = len(seen)
            if near:
                facts.sketches.add(normal)
        group, time = row.groups
        facts.lines.append(row.line)
        facts.hashes.append(digest)
        facts.texts.append(seen[digest])
        facts.label_sets.append(facts.sets.setdefault(classes_of(row), len(facts.sets)))
        facts.groups.append(NO_GROUP if group is None else facts.group_names.setdefault(group, len(facts.group_names)))
        if by_time:
            facts.times.append(_seconds(time, by_time, row.location))
    return facts


def split_rows(
    source: str, *, columns: Columns, by_group: str | None, by_time: str | None, space: Space
) -> Iterator[Example | RejectedRow]:
    """The rows of a source, of equal ids only the first; their ``groups`` are group and time."""
    wanted = replace(columns, groups=(by_group or "", by_time or ""), cluster=None)
    return unique_rows(source, columns=wanted, labels=None, require_target=False, space=space)


def classes_of(row: Example) -> tuple[str, ...]:
    """A row's classes in order, or :data:`NO_CLASS`; none for a row without label."""
    return tuple(sorted(row.classes)) or ((NO_CLASS,) if row.is_labelled else ())


def _seconds(cell: str | None, column: str, location: str) -> float:
    """A number as it is; a date or time in seconds since 1970, in UTC where it names no zone."""
    try:
        time = float(cell or "")
    except ValueError:
        try:
            moment = datetime.datetime.fromisoformat(cell or "")
            time = (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
        except (ValueError, OverflowError):
            time = math.nan
    if not math.isfinite(time):
        raise DataError(
            f"{location}: {column} is {cell!r}, expected a number or a date like 2026-11-27T16:50:00Z; fill it in, or "
            "split without --by_time"
        )
    return time
