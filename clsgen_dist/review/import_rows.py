"""Rows of any source become rows of a review: read and checked as for training, with every other column kept.

A row that cannot be read is no row to review: it is listed with file, line and reason in a file beside the store.
Labels are not checked against the label space, since a wrong one is for a reviewer to change.

Cost: two passes in step, with every id in memory; 50,000 short rows in 47 s and 27 MB, on 2 cores with a load of 6.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clsgen_dist.curation.gate import gated_issues
from clsgen_dist.data.example import Columns, Example
from clsgen_dist.data.reading.ingest import resolve_space, unique_rows
from clsgen_dist.data.reading.label_cells import Space
from clsgen_dist.data.reading.records import find_source, read_part
from clsgen_dist.data.reading.rejection import Fault, RejectedRow, counted, format_locations, write_quarantine
from clsgen_dist.errors import DataError
from clsgen_dist.review.classes import canonical
from clsgen_dist.review.decision import Issue, ReviewRow
from clsgen_dist.review.store import Store

logger = logging.getLogger(__name__)

DOUBT, ISSUES = "doubt", "issues"
"""Columns that a row may have; of a file that `clsgen data gate` wrote, the issues are in its reasons."""
_COLUMNS = ("id", "text", "label", "explanation", "explanations", "provenance", "evidence", "counter_evidence")
"""What the export may change, or names its rows by."""
_MAX_ISSUES = 50
_LONGEST_DETAIL = 300


@dataclass(frozen=True)
class Imported:
    """What became of a source's rows."""

    added: int
    known: int
    """In the store before."""
    rejected: int

    def __str__(self) -> str:
        return f"{self.added} rows added, {self.known} known, {self.rejected} unreadable"


def import_rows(
    store: Store, source: str, columns: Columns, second_reading: float = 0.0, space: Space = "auto"
) -> Imported:
    """Add the rows of a source to a store.

    Args:
        store: rows whose ids it has are left as they are, with their decisions.
        source: see :func:`clsgen_dist.data.reading.records.find_source`.
        columns: the names of its columns.
        second_reading: share of rows that two reviewers read; which ones follows from their ids.
        space: how label cells are read.

    Raises:
        DataError: the source cannot be read, has no usable row, or a row with another text than in the store.
    """
    rejected: list[RejectedRow] = []
    added, known = store.add(_review_rows(source, columns, second_reading, space, rejected))
    if not added + known:
        raise DataError(
            f"{source} has no row to review. {format_locations(rejected)}; fix the rows, or name the columns"
        )
    if rejected:
        quarantine = beside(store, "unreadable.jsonl")
        write_quarantine(quarantine, rejected)
        logger.warning("%s: %s, see %s", source, counted(Counter(row.code for row in rejected)), quarantine)
    return Imported(added, known, len(rejected))


def _review_rows(
    source: str, columns: Columns, share: float, space: Space, rejected: list[RejectedRow]
) -> Iterator[tuple[ReviewRow, str]]:
    """Each row with its record; read twice in step, once as examples and once with every column."""
    space = resolve_space(source, columns, space)
    examples = unique_rows(source, columns=columns, labels=None, require_target=False, space=space)
    part = find_source(source)
    records = read_part(part, columns, every_column=True)
    found = _issues(Path(part.path))
    for example, (_, record, _) in zip(examples, records, strict=True):
        issues = next(found, None)
        if issues is None:
            raise DataError(
                f"{source} has more rows than reasons.jsonl beside it: it was changed after the gate; move it to "
                "another folder, or run the gate again"
            )
        if isinstance(example, Example) and not isinstance(record, Fault):
            is_multilabel = space == "multilabel"
            yield _review_row(example, record, share, is_multilabel, issues), json.dumps(record, default=str)
        elif isinstance(example, RejectedRow):
            rejected.append(example)


def _issues(file: Path) -> Iterator[tuple[Issue, ...]]:
    """What a gate found in each row of a file; endlessly nothing, for a file that no gate wrote."""
    gated = gated_issues(file)
    return itertools.repeat(()) if gated is None else (issues_of(found) for found in gated)


def _review_row(
    example: Example, record: dict[str, Any], share: float, is_multilabel: bool, issues: tuple[Issue, ...]
) -> ReviewRow:
    return ReviewRow(
        id=example.id,
        text=example.text,
        label=example.label,
        answers=canonical(example.answers or {}),
        is_multilabel=is_multilabel,
        explanations=example.explanations,
        evidence=example.evidence,
        counter_evidence=example.counter_evidence,
        issues=(*issues, *issues_of(record.get(ISSUES))),
        doubt=_number(record.get(DOUBT)),
        readings=2 if is_read_twice(example.id, share) else 1,
    )


def is_read_twice(row_id: str, share: float) -> bool:
    """Whether a row belongs to the share that two reviewers read; the same in every run."""
    drawn = int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8], "big") / 2**64
    return drawn < share


def issues_of(cell: Any) -> tuple[Issue, ...]:
    """The issues in a cell: a list of codes, or of objects with code and detail; also as JSON text, as in CSV."""
    if hasattr(cell, "tolist"):
        cell = cell.tolist()
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError:
            cell = [cell] if cell.strip() else []
    items = cell if isinstance(cell, (list, tuple)) else [] if cell is None else [cell]
    found = []
    for item in items[:_MAX_ISSUES]:
        code, detail = (item.get("code"), item.get("detail")) if isinstance(item, dict) else (item, None)
        if code not in (None, ""):
            found.append(Issue(_shortened(code), "" if detail is None else _shortened(detail)))
    return tuple(found)


def _shortened(cell: Any) -> str:
    """A cell's beginning, in characters that UTF-8 has."""
    return str(cell)[:_LONGEST_DETAIL].replace("\0", "").encode("utf-8", "replace").decode()


def _number(cell: Any) -> float | None:
    try:
        number = float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def remember(store: Store, columns: Columns, labels: list[str] | None) -> None:
    """Keep in the store what its export needs."""
    store.set_fact("columns", json.dumps({name: getattr(columns, name) for name in _COLUMNS}))
    if labels is not None:
        store.set_fact("labels", json.dumps(labels))


def columns_of(store: Store) -> dict[str, str]:
    """How the source's columns are called, by what they hold: id, text, label, and so on."""
    kept, default = store.facts().get("columns"), Columns()
    return {name: getattr(default, name) for name in _COLUMNS} | (json.loads(kept) if kept else {})


def beside(store: Store, name: str) -> Path:
    """A file beside the store."""
    return store.path.with_name(f"{store.path.name}.{name}")
