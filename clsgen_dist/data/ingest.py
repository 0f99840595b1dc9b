"""Rows in: JSONL, CSV, Parquet, a saved ``datasets`` folder or a hub id become checked examples.

A reader per format yields (line, record) or (line, fault); one validator turns records into examples. JSONL and CSV are
read here, line by line in binary, so that every bad row has its file and line; Parquet, saved folders and the hub go
through ``datasets``. No row is lost in silence: each rejected one is kept with its reason, counted, and written to a
quarantine file; more of them than ``max_bad_fraction`` end the run.

Price: one pass; about 100,000 short rows a second. Examples are held in memory.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clsgen_dist.data.example import Columns, Example
from clsgen_dist.errors import DataError

_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_RAW_LIMIT = 2000
"""Characters of a rejected row that the quarantine keeps."""


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
    """What came of a source."""

    examples: list[Example]
    rejected: list[RejectedRow]
    labels: list[str]
    """The class names: those given, or the sorted ones found."""

    def summary(self) -> str:
        """One line for people."""
        reasons = Counter(row.reason.split(":")[0] for row in self.rejected)
        unlabelled = sum(e.label is None for e in self.examples)
        unexplained = sum(not e.explanations for e in self.examples)
        parts = [f"{len(self.examples)} rows"]
        parts += [f"{unlabelled} without label"] if unlabelled else []
        parts += [f"{unexplained} without explanation"] if unexplained else []
        parts += [f"{len(self.rejected)} rejected ({', '.join(f'{n} {r}' for r, n in reasons.most_common())})"] * bool(
            self.rejected
        )
        return ", ".join(parts)


class _Fault(Exception):
    """Why a row is rejected: a stable phrase, then detail behind a colon."""


_Record = tuple[int, "dict[str, Any] | _Fault", str]
"""Line, the row's columns or what is wrong with it, and the row as it came."""


def read_examples(
    source: str,
    *,
    columns: Columns,
    labels: Sequence[str] | None,
    max_bad_fraction: float,
    quarantine: Path | None,
    refuse: Callable[[Example], str | None] = lambda example: None,
    require_target: bool = True,
) -> Ingested:
    """Read a source and check its rows.

    Args:
        source: ``.jsonl``, ``.csv``, ``.parquet``; a folder of ``save_to_disk`` (``folder:split``); or a hub id
            (``owner/name:split``, split ``train`` by default).
        columns: how the source's columns are called.
        labels: the label space; None takes what is found.
        max_bad_fraction: more rejected rows than this share raise.
        quarantine: JSONL file for rejected rows; None keeps them in the result only.
        refuse: a further check; gives the reason for which a row is rejected, or None.
        require_target: reject rows with neither label nor explanation.

    Raises:
        DataError: the source cannot be read, has no usable row, or too many bad ones.
    """
    examples: list[Example] = []
    rejected: list[RejectedRow] = []
    seen: dict[str, int] = {}
    known = list(labels) if labels is not None else None
    for line, record, raw in _records(source, columns):
        try:
            if isinstance(record, _Fault):
                raise record
            example = _to_example(record, columns, source, line, known, require_target)
            if example.id in seen:
                raise _Fault(f"duplicate id: {example.id!r} is already at line {seen[example.id]}")
            if reason := refuse(example):
                raise _Fault(reason)
        except _Fault as fault:
            rejected.append(RejectedRow(source, line, str(fault), raw[:_RAW_LIMIT]))
            continue
        seen[example.id] = line
        examples.append(example)
    if quarantine is not None:
        _write_quarantine(quarantine, rejected)
    _refuse_if_too_bad(source, examples, rejected, max_bad_fraction, quarantine)
    return Ingested(examples, rejected, known if known is not None else sorted({e.label for e in examples if e.label}))


# --- readers -------------------------------------------------------------------------------------------------------


def _records(source: str, columns: Columns) -> Iterator[_Record]:
    path, _, split = source.rpartition(":") if ":" in source and not os.path.exists(source) else (source, "", "")
    local = Path(path).expanduser()
    if local.is_dir():
        return _from_saved_folder(local, split, columns)
    if local.is_file():
        if local.suffix in (".jsonl", ".json"):
            return _from_jsonl(local)
        if local.suffix == ".csv":
            return _from_csv(local, columns)
        if local.suffix == ".parquet":
            return _from_parquet(local, columns)
        raise DataError(f"{source}: files ending in {local.suffix!r} cannot be read; use one of {', '.join(_SUFFIXES)}")
    if local.suffix in _SUFFIXES or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise DataError(f"{source} does not exist (looked in {Path.cwd()}); check the path")
    return _from_hub(path, split or "train", columns)


def _from_jsonl(path: Path) -> Iterator[_Record]:
    with path.open("rb") as file:
        for line, data in enumerate(file, start=1):
            data = data.removeprefix(b"\xef\xbb\xbf") if line == 1 else data
            if not data.strip():
                continue
            raw = data.decode("utf-8", "backslashreplace").rstrip("\r\n")
            try:
                record = json.loads(_decode(data))
            except _Fault as fault:
                yield line, fault, raw
            except (json.JSONDecodeError, RecursionError) as error:
                yield line, _Fault(f"not JSON: {error}"), raw
            else:
                if isinstance(record, dict):
                    yield line, record, raw
                else:
                    yield line, _Fault(f"not a JSON object: {type(record).__name__}"), raw


def _from_csv(path: Path, columns: Columns) -> Iterator[_Record]:
    csv.field_size_limit(2**31 - 1)
    with path.open("rb") as file:
        # surrogateescape carries bad bytes through the parser, so that they are told of with their record's line.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text)
        header = next(reader, [])
        _require_text_column(str(path), header, columns)
        end = reader.line_num
        for cells in reader:
            line, end = end + 1, reader.line_num
            if not cells:
                continue
            raw = ",".join(cells).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            if len(cells) != len(header):
                yield line, _Fault(f"wrong number of cells: {len(cells)}, the header has {len(header)}"), raw
                continue
            try:
                _decode(",".join(cells).encode("utf-8", "surrogateescape"))
            except _Fault as fault:
                yield line, fault, raw
                continue
            record: dict[str, Any] = {name: cell or None for name, cell in zip(header, cells, strict=True)}
            several = record.get(columns.explanations)
            if isinstance(several, str):
                record[columns.explanations] = _json_list(several)
            yield line, record, raw


def _from_parquet(path: Path, columns: Columns) -> Iterator[_Record]:
    from datasets import Dataset

    try:
        table = Dataset.from_parquet(str(path), keep_in_memory=True)
    except Exception as error:  # pyarrow and datasets raise many kinds for a broken file
        raise DataError(f"{path} cannot be read as Parquet ({error}); write it again") from error
    yield from _from_dataset(str(path), table, columns)


def _from_saved_folder(folder: Path, split: str, columns: Columns) -> Iterator[_Record]:
    from datasets import DatasetDict, load_from_disk

    try:
        data = load_from_disk(str(folder))
    except FileNotFoundError:
        raise DataError(
            f"{folder} is no folder of Dataset.save_to_disk; name a file in it, or save the set so"
        ) from None
    if isinstance(data, DatasetDict):
        if split not in data:
            raise DataError(f"{folder} holds the splits {', '.join(data)}; name one: {folder}:{next(iter(data))}")
        data = data[split]
    yield from _from_dataset(str(folder), data, columns)


def _from_hub(name: str, split: str, columns: Columns) -> Iterator[_Record]:
    from datasets import load_dataset

    try:
        data = load_dataset(name, split=split)
    except Exception as error:  # offline, unknown, gated, no such split: the hub has an exception for each
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name!r} is no file or folder here, and the hub did not give it: {first}") from error
    yield from _from_dataset(f"{name}:{split}", data, columns)


def _from_dataset(source: str, data: Any, columns: Columns) -> Iterator[_Record]:
    _require_text_column(source, data.column_names, columns)
    names = getattr(data.features.get(columns.label), "names", None)
    for line, record in enumerate(data, start=1):
        raw = json.dumps(record, default=str, ensure_ascii=False)
        label = record.get(columns.label)
        if names and isinstance(label, int):
            record[columns.label] = None if label < 0 else names[label]
        yield line, record, raw


def _require_text_column(source: str, found: Sequence[str], columns: Columns) -> None:
    if columns.text in found:
        return
    near = difflib.get_close_matches(columns.text, found, n=1)
    hint = f"; did you mean --data.columns.text {near[0]}?" if near else "; name it in data.columns.text"
    raise DataError(
        f"{source} has the columns {', '.join(found) or '(none)'}, and no text column {columns.text!r}{hint}"
    )


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Fault(f"not valid UTF-8: byte {data[error.start]:#04x} at offset {error.start}") from None


def _json_list(cell: str) -> Any:
    try:
        value = json.loads(cell)
    except json.JSONDecodeError:
        return [cell]
    return value if isinstance(value, list) else [cell]


# --- the validator -------------------------------------------------------------------------------------------------


def _to_example(
    record: dict[str, Any], columns: Columns, source: str, line: int, labels: list[str] | None, require_target: bool
) -> Example:
    if columns.text not in record:
        near = difflib.get_close_matches(columns.text, list(record), n=1)
        raise _Fault(f"missing text: no column {columns.text!r}" + (f", but {near[0]!r}" if near else ""))
    text = record[columns.text]
    if text is not None and not isinstance(text, str):
        raise _Fault(f"text is not a string: {type(text).__name__}")
    if text is None or not text.strip():
        raise _Fault("empty text")
    label = _label(record.get(columns.label), labels)
    explanations = _explanations(record, columns)
    if require_target and label is None and not explanations:
        raise _Fault("neither label nor explanation: nothing to learn from this row")
    name = Path(source).name
    row_id = record.get(columns.id)
    row_id = f"{name}:{line}" if row_id is None or row_id == "" else str(row_id)
    for part, value in (("text", text), ("label", label), ("id", row_id), *(("explanation", e) for e in explanations)):
        if value is not None:
            _check_characters(part, value)
    return Example(id=row_id, text=text, label=label, explanations=explanations, source=f"{name}:{line}")


def _label(value: Any, labels: list[str] | None) -> str | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        value = "true" if value else "false"
    elif isinstance(value, int):
        value = str(value)
    elif not isinstance(value, str):
        raise _Fault(f"label has a wrong type: {type(value).__name__}, expected a class name")
    if labels is not None and value not in labels:
        near = difflib.get_close_matches(value, labels, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise _Fault(f"unknown label: {value!r} is not in the label space {labels}{hint}")
    return str(value)


def _explanations(record: dict[str, Any], columns: Columns) -> tuple[str, ...]:
    one, several = record.get(columns.explanation), record.get(columns.explanations)
    if several is not None and not isinstance(several, (list, tuple)):
        raise _Fault(f"explanations have a wrong type: {type(several).__name__}, expected a list of strings")
    found: dict[str, None] = {}
    for value in ([] if one is None else [one]) + list(several or []):
        if isinstance(value, float) and math.isnan(value):
            continue
        if not isinstance(value, str):
            raise _Fault(f"explanation has a wrong type: {type(value).__name__}, expected a string")
        if value.strip():
            found.setdefault(value)
    return tuple(found)


def _check_characters(part: str, value: str) -> None:
    if "\0" in value:
        raise _Fault(f"NUL character: in the {part}, at {value.index(chr(0))}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Fault(f"lone surrogate: {value[error.start]!r} in the {part}, at {error.start}") from None


# --- what was rejected ---------------------------------------------------------------------------------------------


def _write_quarantine(path: Path, rejected: list[RejectedRow]) -> None:
    """The rejected rows, or no file: an earlier run's must not be taken for this one's."""
    if not rejected:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    # ASCII: a rejected row may hold what UTF-8 cannot.
    aside.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rejected), encoding="ascii")
    os.replace(aside, path)


def _refuse_if_too_bad(
    source: str,
    examples: list[Example],
    rejected: list[RejectedRow],
    max_bad_fraction: float,
    quarantine: Path | None,
) -> None:
    total = len(examples) + len(rejected)
    if total == 0:
        raise DataError(f"{source} holds no rows")
    if examples and len(rejected) <= max_bad_fraction * total:
        return
    first = "; ".join(f"{row.source}:{row.line}: {row.reason}" for row in rejected[:3])
    where = f" All of them are in {quarantine}." if quarantine else ""
    raise DataError(
        f"{source}: {len(rejected)} of {total} rows are bad ({len(rejected) / total:.1%}), more than "
        f"data.max_bad_fraction {max_bad_fraction:.1%} allows. {first}.{where} Mend the rows, or raise the fraction"
    )
