"""Records of any source become checked examples; no row is dropped silently.

One validator turns records (:mod:`clsgen_dist.data.reading.records`) into examples, cell by cell
(:mod:`clsgen_dist.data.reading.cells`). Each rejected row is kept with its reason, counted, and written to a quarantine
file; more of them than ``max_bad_fraction`` end the run. Rows to predict are :class:`TextRow`: only their text is
checked.

Cost: one pass; about 50,000 short rows per second and core, a third of it for JSON.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from clsgen_dist.data.example import Columns, Example
from clsgen_dist.data.reading.cells import (
    MISSING_WORDS,
    Notice,
    Notices,
    clean_name,
    excerpt,
    is_missing,
    used_explanations,
    written_explanations,
)
from clsgen_dist.data.reading.evidence_cells import evidence_of
from clsgen_dist.data.reading.label_cells import OTHERS, LabelReader, Space, detect_space
from clsgen_dist.data.reading.preference_cells import judged_explanations
from clsgen_dist.data.reading.provenance_cells import provenance_of
from clsgen_dist.data.reading.records import Part, find_source, read_part
from clsgen_dist.data.reading.rejection import (
    Fault,
    RejectedRow,
    Rejection,
    counted,
    require_few_bad_rows,
    write_quarantine,
)

logger = logging.getLogger(__name__)

_PEEKED = 1000
"""Rows from whose labels the label space is found."""
_MAX_DIFFICULTY = 1e100
"""Larger values would overflow in sums and differences."""


@dataclass(frozen=True)
class Ingested:
    """The examples and the rejected rows of a source, in memory."""

    examples: list[Example]
    rejected: list[RejectedRow]
    labels: list[str]
    """The class names: those given, or those found, sorted."""

    def summary(self) -> str:
        """One line for people."""
        noticed: Noticed = {}
        for example in self.examples:
            add_notices(noticed, example.notices)
        return summary(
            len(self.examples),
            sum(not e.is_labelled for e in self.examples),
            sum(not e.explanations for e in self.examples),
            Counter(row.code for row in self.rejected),
            noticed,
        )


@dataclass(frozen=True)
class TextRow:
    """A row to predict."""

    line: int
    id: str
    """As given; ``file:line`` without one."""
    text: str
    rejected: RejectedRow | None = None
    """Why it cannot be predicted; None if it can."""
    columns: dict[str, Any] = field(default_factory=dict)
    """All columns of the row, where they were asked for."""


def iter_rows(
    part: Part,
    *,
    columns: Columns,
    labels: Sequence[str] | None,
    require_target: bool = True,
    space: Space = "auto",
) -> Iterator[Example | RejectedRow]:
    """The rows of a part in order, each checked by itself (ids are not compared).

    Args:
        part: a source, or a part of one.
        columns: the names of its columns.
        labels: the classes; None accepts any.
        require_target: reject rows with neither label nor explanation.
        space: how label cells are read.
    """
    known, name = LabelReader(labels, space), Path(part.source).name
    for line, record, raw in read_part(part, columns):
        try:
            if isinstance(record, Fault):
                raise record
            yield _to_example(record, columns, name, line, known, require_target)
        except Fault as fault:
            yield RejectedRow.of(fault, part.source, line, raw)


def iter_texts(source: str, columns: Columns, *, every_column: bool = False) -> Iterator[TextRow]:
    """Every row of a source in order, whatever its other columns hold; with them if asked.

    Raises:
        DataError: the source does not exist (raised at once), or cannot be read (raised at the row in question).
    """
    return _iter_texts(find_source(source), columns, every_column)


def _iter_texts(part: Part, columns: Columns, every_column: bool) -> Iterator[TextRow]:
    for line, record, _ in read_part(part, columns.text_only(), every_column=every_column):
        row_id, kept = f"{Path(part.source).name}:{line}", {}
        try:
            if isinstance(record, Fault):
                raise record
            kept = record if every_column else {}
            given = record.get(columns.id)
            row_id = row_id if is_missing(given) else str(given)
            yield TextRow(line, row_id, _text(record, columns), None, kept)
        except Fault as fault:
            yield TextRow(line, row_id, "", RejectedRow.of(fault, part.source, line, ""), kept)


def read_examples(
    source: str,
    *,
    columns: Columns,
    labels: Sequence[str] | None,
    max_bad_fraction: float,
    quarantine: Path | None,
    require_target: bool = True,
    setting: str = "data.max_bad_fraction",
    space: Space = "auto",
) -> Ingested:
    """Read a source into memory and check its rows: for rows to predict or measure on.

    Args:
        source: see :func:`clsgen_dist.data.reading.records.find_source`.
        columns: the names of the source's columns.
        labels: the label space; None accepts the labels that are found.
        max_bad_fraction: a larger share of rejected rows raises.
        quarantine: JSONL file for rejected rows; None keeps them in the result only.
        require_target: reject rows with neither label nor explanation.
        setting: the name of ``max_bad_fraction`` in the user's settings, for the message.
        space: how label cells are read.

    Raises:
        DataError: the source cannot be read, has no usable row, or too many bad ones.
    """
    examples: list[Example] = []
    rejected: list[RejectedRow] = []
    for row in unique_rows(source, columns=columns, labels=labels, require_target=require_target, space=space):
        if isinstance(row, RejectedRow):
            rejected.append(row)
        else:
            examples.append(row)
    if quarantine is not None:
        write_quarantine(quarantine, rejected)
    require_few_bad_rows(source, len(examples), len(rejected), rejected, max_bad_fraction, quarantine, setting)
    found = {e.label for e in examples if e.label is not None} | {n for e in examples for n in e.answers or ()}
    return Ingested(examples, rejected, list(labels) if labels is not None else sorted(found - {OTHERS}))


def unique_rows(
    source: str,
    *,
    columns: Columns,
    labels: Sequence[str] | None,
    require_target: bool = True,
    space: Space = "auto",
) -> Iterator[Example | RejectedRow]:
    """The rows of a source in order, of equal ids only the first; arguments as for :func:`read_examples`.

    Raises:
        DataError: the source does not exist (raised at once), or cannot be read (raised at the row in question).
    """
    part = find_source(source)
    rows = iter_rows(part, columns=columns, labels=labels, require_target=require_target, space=space)
    return _unique(rows, part.source)


def resolve_space(source: str, columns: Columns, space: Space) -> Space:
    """The label space that ``auto`` stands for, from the first rows of a source; any other as it is.

    Raises:
        DataError: the source does not exist, or cannot be read.
    """
    if space != "auto":
        return space
    records = islice(read_part(find_source(source), columns), _PEEKED)
    cells = [record.get(columns.label) for _, record, _ in records if not isinstance(record, Fault)]
    found, cell = detect_space(cells)
    if cell is None:
        return "auto"
    logger.info("data.label_space is %s, as a label is %s", found, excerpt(str(cell)))
    return found


def _unique(rows: Iterator[Example | RejectedRow], source: str) -> Iterator[Example | RejectedRow]:
    first_line: dict[str, int] = {}
    for row in rows:
        if isinstance(row, Example) and row.id in first_line:
            yield duplicate(row, source, first_line[row.id])
            continue
        if isinstance(row, Example):
            first_line[row.id] = row.line
        yield row


def duplicate(row: Example, source: str, first_line: int) -> RejectedRow:
    """The rejection of a row whose id already occurred in line ``first_line`` of its file."""
    fault = Fault(Rejection.DUPLICATE_ID, f"{row.id!r} is already at {row.file}:{first_line}")
    return RejectedRow.of(fault, source, row.line, row.to_json())


Noticed = dict[str, tuple[int, str]]
"""Notices of many rows: by kind, their number and the first cell."""


def add_notices(noticed: Noticed, notices: Iterable[tuple[Notice, str]]) -> None:
    """Count a row's notices."""
    for notice, cell in notices:
        count, first = noticed.get(notice, (0, cell))
        noticed[notice] = (count + 1, first)


_NOTICE_WORDS = {
    Notice.MISSING_LABEL: "labels like {} read as missing",
    Notice.MISSING_EXPLANATION: "explanations like {} read as missing",
    Notice.LIST_TEXT: "explanation lists read from their text",
    Notice.RESPELT_LABEL: "labels like {} read as the class they mean",
    Notice.HIDDEN_CHARACTERS: "labels read without their invisible characters",
    Notice.BRACKETED: "explanations in brackets, like {}, kept unchanged",
    Notice.PLACEHOLDER_TEXT: "texts like {} kept unchanged",
    Notice.SCALED_PROBABILITIES: "label probabilities like {} scaled to sum to 1",
    Notice.UNFOUND_EVIDENCE: "pieces of evidence like {} not found in their text",
    Notice.TIED_EXPLANATION: "explanations like {} both accepted and rejected, read as accepted",
    Notice.UNREAD_PROVENANCE: "cells like {} not read as where explanations came from",
}


def summary(rows: int, unlabelled: int, unexplained: int, reasons: Counter[str], noticed: Noticed) -> str:
    """Counts of a source in one line for people; ``reasons`` counts the rejected rows by code."""
    parts = [f"{rows} rows"]
    parts += [f"{unlabelled} without label"] if unlabelled else []
    parts += [f"{unexplained} without explanation"] if unexplained else []
    if reasons:
        parts.append(f"{reasons.total()} rejected ({counted(reasons)})")
    parts += [
        f"{count} {_NOTICE_WORDS[Notice(notice)].format(repr(cell))}" for notice, (count, cell) in noticed.items()
    ]
    return ", ".join(parts)


# --- the validator -------------------------------------------------------------------------------------------------


def _to_example(
    record: dict[str, Any], columns: Columns, file: str, line: int, labels: LabelReader, require_target: bool
) -> Example:
    notices: Notices = []
    text = _text(record, columns)
    if len(text) < 10 and text.strip() in MISSING_WORDS:
        notices.append((Notice.PLACEHOLDER_TEXT, text))
    label, answers = labels.read(record.get(columns.label), notices)
    written = written_explanations((record.get(columns.explanation), record.get(columns.explanations)), notices)
    explanations = used_explanations(written, notices)
    verdict, chosen, rejected = (
        record.get(name) if name else None for name in (columns.verdict, columns.chosen, columns.rejected)
    )
    explanations, rejected = judged_explanations(explanations, verdict, chosen, rejected, notices)
    stated = record.get(columns.provenance) if explanations else None
    provenance = provenance_of(stated, written, explanations, notices)
    difficulty = _difficulty(record.get(columns.difficulty)) if columns.difficulty else None
    evidence, counter_evidence = (
        evidence_of(record.get(name), text, notices) for name in (columns.evidence, columns.counter_evidence)
    )
    if require_target and label is None and answers is None and not explanations and not rejected:
        hint = next(
            (f"; list {cell!r} in data.labels, if it is a class" for n, cell in notices if n == Notice.MISSING_LABEL),
            "",
        )
        raise Fault(Rejection.NO_TARGET, f"the row has nothing to train on{hint}")
    own_id = _id(record.get(columns.id))
    row_id = own_id or f"{file}:{line}"
    names = (("label", name) for name in (label, *(answers or ())))
    for part, value in (*names, ("id", row_id), *(("explanation", e) for e in (*explanations, *rejected))):
        if value is not None:
            _check_characters(part, value)
    return Example(
        id=row_id,
        text=text,
        label=label,
        answers=answers,
        explanations=explanations,
        provenance=provenance,
        rejected=rejected,
        difficulty=difficulty,
        evidence=evidence,
        counter_evidence=counter_evidence,
        groups=tuple(_cell(record.get(name)) for name in columns.groups),
        cluster=_cell(record.get(columns.cluster)) if columns.cluster else None,
        file=file,
        line=line,
        has_own_id=bool(own_id),
        notices=tuple(notices),
    )


def _text(record: dict[str, Any], columns: Columns) -> str:
    if columns.text not in record:
        near = difflib.get_close_matches(columns.text, list(record), n=1)
        raise Fault(Rejection.MISSING_TEXT, f"no column {columns.text!r}" + (f", but {near[0]!r}" if near else ""))
    text = record[columns.text]
    if is_missing(text):
        raise Fault(Rejection.EMPTY_TEXT)
    if not isinstance(text, str):
        raise Fault(Rejection.WRONG_TEXT_TYPE, type(text).__name__)
    _check_characters("text", text)
    return text


def _id(value: Any) -> str:
    """The id, equal for ids that look equal; empty without one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    name = "" if is_missing(value) else clean_name(str(value))
    return "" if name in MISSING_WORDS else name


def _cell(value: Any) -> str | None:
    """A cell as a name; None for a missing one."""
    return _id(value) or None


def _difficulty(value: Any) -> float | None:
    if is_missing(value) or (isinstance(value, str) and value.strip() in MISSING_WORDS):
        return None
    try:
        number = float(value) if not isinstance(value, bool) else math.inf
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if abs(number) > _MAX_DIFFICULTY:
        raise Fault(Rejection.WRONG_DIFFICULTY_TYPE, f"{str(value)[:40]!r}")
    return None if math.isnan(number) else number


def _check_characters(part: str, value: str) -> None:
    if value.isascii() and "\0" not in value:
        return
    if "\0" in value:
        raise Fault(Rejection.NUL_CHARACTER, f"in the {part}, at {value.index(chr(0))}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Fault(Rejection.LONE_SURROGATE, f"{value[error.start]!r} in the {part}, at {error.start}") from None
