"""Rows in: records of any source become checked examples, and nothing is lost in silence.

One validator turns records (:mod:`clsgen_dist.data.read`) into examples. Each rejected row is kept with its reason,
counted, and written to a quarantine file; more of them than ``max_bad_fraction`` end the run.

Price: one pass; about 100,000 short rows a second and core.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clsgen_dist.data.example import Columns, Example
from clsgen_dist.data.read import Fault, Part, find_source, read_part
from clsgen_dist.errors import DataError

_RAW_LIMIT = 2000
"""Characters of a rejected row that the quarantine keeps."""
_MOST_DIFFICULT = 1e100
"""Beyond it, sums and differences of difficulties would not be numbers."""


@dataclass(frozen=True)
class RejectedRow:
    """A row that was not taken, and why."""

    source: str
    line: int
    """From 1: the line in a text file, the row elsewhere."""
    reason: str
    raw: str
    """The row as it came, cut at 2,000 characters."""


@dataclass(frozen=True)
class Ingested:
    """What came of a source, in memory."""

    examples: list[Example]
    rejected: list[RejectedRow]
    labels: list[str]
    """The class names: those given, or the sorted ones found."""

    def summary(self) -> str:
        """One line for people."""
        return summary(
            len(self.examples),
            sum(e.label is None for e in self.examples),
            sum(not e.explanations for e in self.examples),
            Counter(kind_of(row.reason) for row in self.rejected),
        )


def iter_rows(
    part: Part, *, columns: Columns, labels: Sequence[str] | None, require_target: bool = True
) -> Iterator[Example | RejectedRow]:
    """The rows of a part as they come, checked one by one (ids are not compared with each other).

    ``labels`` is the label space, None takes any; ``require_target`` rejects rows with neither label nor explanation.
    """
    known = list(labels) if labels is not None else None
    for line, record, raw in read_part(part, columns):
        try:
            if isinstance(record, Fault):
                raise record
            yield _to_example(record, columns, part.source, line, known, require_target)
        except Fault as fault:
            yield RejectedRow(part.source, line, str(fault), raw[:_RAW_LIMIT])


def read_examples(
    source: str,
    *,
    columns: Columns,
    labels: Sequence[str] | None,
    max_bad_fraction: float,
    quarantine: Path | None,
    require_target: bool = True,
) -> Ingested:
    """Read a source whole into memory and check its rows: for sets to predict or measure on.

    Args:
        source: ``.jsonl``, ``.csv``, ``.parquet``; a folder of ``save_to_disk`` (``folder:split``); or a hub id
            (``owner/name:split``, split ``train`` by default).
        columns: how the source's columns are called.
        labels: the label space; None takes what is found.
        max_bad_fraction: more rejected rows than this share raise.
        quarantine: JSONL file for rejected rows; None keeps them in the result only.
        require_target: reject rows with neither label nor explanation.

    Raises:
        DataError: the source cannot be read, has no usable row, or too many bad ones.
    """
    examples: list[Example] = []
    rejected: list[RejectedRow] = []
    for row in unique_rows(source, columns=columns, labels=labels, require_target=require_target):
        if isinstance(row, RejectedRow):
            rejected.append(row)
        else:
            examples.append(row)
    if quarantine is not None:
        write_quarantine(quarantine, rejected)
    refuse_if_too_bad(source, len(examples), len(rejected), rejected, max_bad_fraction, quarantine)
    known = list(labels) if labels is not None else sorted({e.label for e in examples if e.label is not None})
    return Ingested(examples, rejected, known)


def unique_rows(
    source: str, *, columns: Columns, labels: Sequence[str] | None, require_target: bool = True
) -> Iterator[Example | RejectedRow]:
    """The rows of a source as they come, of equal ids the first; arguments as for :func:`read_examples`.

    Raises:
        DataError: the source is not there, at once; it cannot be read, at the row where that shows.
    """
    return _unique(
        iter_rows(find_source(source), columns=columns, labels=labels, require_target=require_target), source
    )


def _unique(rows: Iterator[Example | RejectedRow], source: str) -> Iterator[Example | RejectedRow]:
    seen: dict[str, str] = {}
    for row in rows:
        if isinstance(row, Example) and row.id in seen:
            yield duplicate(row, source, seen[row.id])
            continue
        if isinstance(row, Example):
            seen[row.id] = row.source
        yield row


def duplicate(row: Example, source: str, first: str) -> RejectedRow:
    """The rejection of a row whose id was already seen at ``first`` (``file:line``)."""
    line = int(row.source.rpartition(":")[2])
    return RejectedRow(
        source, line, f"duplicate id: {row.id!r} is already at {first}", json.dumps(asdict(row))[:_RAW_LIMIT]
    )


def summary(rows: int, unlabelled: int, unexplained: int, reasons: Counter[str]) -> str:
    """What came of a source, in one line for people; ``reasons`` counts the rejected rows."""
    parts = [f"{rows} rows"]
    parts += [f"{unlabelled} without label"] if unlabelled else []
    parts += [f"{unexplained} without explanation"] if unexplained else []
    if reasons:
        parts.append(f"{reasons.total()} rejected ({', '.join(f'{n} {r}' for r, n in reasons.most_common())})")
    return ", ".join(parts)


# --- the validator -------------------------------------------------------------------------------------------------


def _to_example(
    record: dict[str, Any], columns: Columns, source: str, line: int, labels: list[str] | None, require_target: bool
) -> Example:
    if columns.text not in record:
        near = difflib.get_close_matches(columns.text, list(record), n=1)
        raise Fault(f"missing text: no column {columns.text!r}" + (f", but {near[0]!r}" if near else ""))
    text = record[columns.text]
    if text is not None and not isinstance(text, str):
        raise Fault(f"text is not a string: {type(text).__name__}")
    if text is None or not text.strip():
        raise Fault("empty text")
    label = _label(record.get(columns.label), labels)
    explanations = _explanations(record, columns)
    difficulty = _difficulty(record.get(columns.difficulty)) if columns.difficulty else None
    if require_target and label is None and not explanations:
        raise Fault("neither label nor explanation: nothing to learn from this row")
    name = Path(source).name
    row_id = record.get(columns.id)
    row_id = f"{name}:{line}" if _is_missing(row_id) or row_id == "" else str(row_id)
    for part, value in (("text", text), ("label", label), ("id", row_id), *(("explanation", e) for e in explanations)):
        if value is not None:
            _check_characters(part, value)
    return Example(
        id=row_id, text=text, label=label, explanations=explanations, difficulty=difficulty, source=f"{name}:{line}"
    )


def _is_missing(value: Any) -> bool:
    """None, or the NaN that pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _label(value: Any, labels: list[str] | None) -> str | None:
    if _is_missing(value) or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool):
        value = "true" if value else "false"
    elif isinstance(value, int):
        value = str(value)
    elif not isinstance(value, str):
        raise Fault(f"label has a wrong type: {type(value).__name__}, expected a class name")
    if labels is not None and value not in labels:
        near = difflib.get_close_matches(value, labels, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise Fault(f"unknown label: {value!r} is not in the label space {labels}{hint}")
    return str(value)


def _explanations(record: dict[str, Any], columns: Columns) -> tuple[str, ...]:
    one, several = record.get(columns.explanation), record.get(columns.explanations)
    if several is not None and not isinstance(several, (list, tuple)):
        raise Fault(f"explanations have a wrong type: {type(several).__name__}, expected a list of strings")
    found: dict[str, None] = {}
    for value in ([] if one is None else [one]) + list(several or []):
        if _is_missing(value):
            continue
        if not isinstance(value, str):
            raise Fault(f"explanation has a wrong type: {type(value).__name__}, expected a string")
        if value.strip():
            found.setdefault(value)
    return tuple(found)


def _difficulty(value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value) if not isinstance(value, bool) else math.inf
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if abs(number) > _MOST_DIFFICULT:
        raise Fault(f"difficulty is not a number: {str(value)[:40]!r}")
    return None if math.isnan(number) else number


def _check_characters(part: str, value: str) -> None:
    if "\0" in value:
        raise Fault(f"NUL character: in the {part}, at {value.index(chr(0))}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Fault(f"lone surrogate: {value[error.start]!r} in the {part}, at {error.start}") from None


# --- what was rejected ---------------------------------------------------------------------------------------------


def kind_of(reason: str) -> str:
    """The stable phrase of a reason."""
    return reason.split(":")[0]


def write_quarantine(path: Path, rejected: Iterable[RejectedRow]) -> None:
    """The rejected rows, or no file: an earlier run's must not be taken for this one's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", encoding="ascii") as file:  # ASCII: a rejected row may hold what UTF-8 cannot
        file.writelines(json.dumps(asdict(row)) + "\n" for row in rejected)
        empty = file.tell() == 0
    if empty:
        aside.unlink()
        path.unlink(missing_ok=True)
    else:
        os.replace(aside, path)


def refuse_if_too_bad(
    source: str,
    rows: int,
    rejected: int,
    first: Iterable[RejectedRow],
    max_bad_fraction: float,
    quarantine: Path | None,
) -> None:
    """DataError if a source of so many good and bad rows cannot be used; ``first`` are some of the bad."""
    total = rows + rejected
    if total == 0:
        raise DataError(f"{source} holds no rows")
    if rows and rejected <= max_bad_fraction * total:
        return
    shown = "; ".join(f"{row.source}:{row.line}: {row.reason}" for row, _ in zip(first, range(3), strict=False))
    where = f" All of them are in {quarantine}." if quarantine else ""
    raise DataError(
        f"{source}: {rejected} of {total} rows are bad ({rejected / total:.1%}), more than "
        f"data.max_bad_fraction {max_bad_fraction:.1%} allows. {shown}.{where} Mend the rows, or raise the fraction"
    )
