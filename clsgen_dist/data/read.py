"""Files and the hub as records, in parts that separate processes can read.

A source is cut into parts: byte ranges of a JSONL file, row ranges of Parquet files, saved folders and hub sets; a CSV
file is one part, since a quoted cell may hold line breaks. Each part knows the line it starts at, so a bad row has its
file and line whoever reads it. JSONL and CSV are read here, in binary; the rest through pyarrow and ``datasets``.

Price: one pass to count the lines of a JSONL file (about 2 GB/s), one to read them; memory of a part's batch.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import io
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clsgen_dist.data.example import Columns
from clsgen_dist.data.first_bytes import BYTE_ORDER_MARK, file_fault
from clsgen_dist.errors import DataError

_KINDS = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
SUFFIXES = tuple(_KINDS)
_DELIMITERS = ",;\t|"
PART_BYTES = 16 * 2**20
"""Size of a JSONL part: a second's work for one core."""
PART_ROWS = 65_536
"""Rows of a part elsewhere."""
_READ_ROWS = 1024


class Fault(Exception):
    """Why a row is rejected: a stable phrase, then detail behind a colon."""


Record = tuple[int, "dict[str, Any] | Fault", str]
"""Line (the row elsewhere; from 1), the row's columns or what is wrong with it, and the row as it came."""


@dataclass(frozen=True)
class Part:
    """A piece of a source, to be read by one process."""

    source: str
    """The source as it was named, for messages."""
    kind: str
    """jsonl, csv, parquet, folder or hub."""
    path: str
    split: str
    start: int
    """First byte of a JSONL part; first row elsewhere."""
    stop: int
    """One past the last; a line or row belongs to the part in which it begins."""
    line: int
    """Number of the first line or row, from 1."""


def find_source(source: str) -> Part:
    """A source as one part; DataError if there is no such thing, or it is no text of rows."""
    if not source.strip():
        raise DataError("a source is named '', expected a file, a folder or a hub id")
    try:
        return _find(source)
    except OSError as error:
        raise DataError(f"{source} cannot be opened ({error.strerror}); check its name and who may read it") from error


def _find(source: str) -> Part:
    path, _, split = source.rpartition(":") if ":" in source and not os.path.exists(source) else (source, "", "")
    local = Path(path).expanduser()
    if local.is_dir():
        return Part(source, "folder", str(local), split, 0, sys.maxsize, 1)
    if "://" in source:
        raise DataError(
            f"{source} is an address of shards, which are streamed: set data.stream_window and data.labels, or fetch "
            "the file and name it here"
        )
    if local.is_file() and split:
        raise DataError(f"{source}: a file has no splits; name the file alone, {path}")
    if local.is_file():
        kind = _KINDS.get(local.suffix)
        if kind is None:
            raise DataError(
                f"{source}: files ending in {local.suffix!r} cannot be read; use one of {', '.join(SUFFIXES)}"
            )
        if kind != "parquet" and (fault := file_fault(local)):
            raise DataError(f"{source} {fault.what}; {fault.remedy}")
        os.close(os.open(local, os.O_RDONLY))  # whether we may read it shows here, not in a worker
        return Part(source, kind, str(local), "", 0, sys.maxsize, 1)
    if local.suffix in SUFFIXES or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise DataError(f"{source} does not exist (looked in {Path.cwd()}); check the path")
    return Part(source, "hub", path, split or "train", 0, sys.maxsize, 1)


def cut(whole: Part) -> list[Part]:
    """The parts of a source, in order."""
    if whole.kind == "jsonl":
        return _cut_jsonl(whole)
    if whole.kind == "csv":
        return [replace(whole, stop=os.path.getsize(whole.path))]
    rows = _parquet(whole).metadata.num_rows if whole.kind == "parquet" else len(dataset_of(whole))
    starts = range(0, max(rows, 1), PART_ROWS)
    return [replace(whole, start=at, stop=min(at + PART_ROWS, rows), line=at + 1) for at in starts]


def read_part(part: Part, columns: Columns) -> Iterator[Record]:
    """The records of a part, in order; DataError if the source as a whole cannot be used."""
    return {
        "jsonl": _from_jsonl,
        "csv": _from_csv,
        "parquet": _from_parquet,
        "folder": _from_dataset,
        "hub": _from_dataset,
    }[part.kind](part, columns)


# --- JSONL ---------------------------------------------------------------------------------------------------------


def _cut_jsonl(whole: Part) -> list[Part]:
    size = os.path.getsize(whole.path)
    parts: list[Part] = []
    line = 1
    with open(whole.path, "rb") as file:
        for start in range(0, max(size, 1), PART_BYTES):
            stop = min(start + PART_BYTES, size)
            # A line that begins before `start` belongs to the part before: this part's first is the next one.
            carried = 0
            if start:
                file.seek(start - 1)
                carried = file.read(1) != b"\n"
            parts.append(replace(whole, start=start, stop=stop, line=line + carried))
            file.seek(start)
            line += file.read(stop - start).count(b"\n")
    return parts


def _from_jsonl(part: Part, columns: Columns) -> Iterator[Record]:
    with open(part.path, "rb") as file:
        if part.start:
            file.seek(part.start - 1)
            file.readline()
        line = part.line - 1
        while file.tell() < part.stop and (data := file.readline()):
            line += 1
            data = data.removeprefix(BYTE_ORDER_MARK) if line == 1 else data
            if not data.strip():
                continue
            raw = data.decode("utf-8", "backslashreplace").rstrip("\r\n")
            try:
                record = json.loads(_decode(data))
            except Fault as fault:
                yield line, fault, raw
            except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a plain ValueError
                yield line, Fault(f"not JSON: {error}"), raw
            else:
                if isinstance(record, dict):
                    yield line, record, raw
                else:
                    yield line, Fault(f"not a JSON object: {type(record).__name__}"), raw


# --- CSV -----------------------------------------------------------------------------------------------------------


def _from_csv(part: Part, columns: Columns) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)
    with open(part.path, "rb") as file:
        # surrogateescape carries bad bytes through the parser, so that they are told of with their record's line.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        first = text.readline()
        text.seek(0)
        reader = csv.reader(text, strict=True, delimiter=_delimiter(first, columns))
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise DataError(f"{part.source}: its header, line 1, is not CSV ({error}); mend its quotes") from None
        _require_columns(part.source, header, columns)
        end = reader.line_num
        while True:
            line = end + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error):
                    raise DataError(
                        f"{part.source}: a quote opened in the record of line {line} is never closed, so the rest of "
                        f"the file, {reader.line_num - line + 1} lines, would be one cell; close it, or double a quote "
                        "that is meant as one"
                    ) from None
                if reader.line_num > line:
                    raise DataError(
                        f"{part.source}: a quote opened in the record of line {line} closes only in line "
                        f"{reader.line_num}, and not at the end of a cell; close it where its cell ends, or double a "
                        "quote that is meant as one"
                    ) from None
                end = reader.line_num
                yield line, Fault(f"not CSV: {error}"), ""
                continue
            end = reader.line_num
            if not cells:
                continue
            raw = ",".join(cells).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            if len(cells) != len(header):
                yield line, Fault(f"wrong number of cells: {len(cells)}, the header has {len(header)}"), raw
                continue
            try:
                _decode(",".join(cells).encode("utf-8", "surrogateescape"))
            except Fault as fault:
                yield line, fault, raw
                continue
            record: dict[str, Any] = {name: cell or None for name, cell in zip(header, cells, strict=True)}
            several = record.get(columns.explanations)
            if isinstance(several, str):
                record[columns.explanations] = _json_list(several)
            yield line, record, raw


def _delimiter(header: str, columns: Columns) -> str:
    """What separates the cells: a comma, or whatever makes the text column stand in the header by itself."""
    for delimiter in _DELIMITERS:
        if columns.text in [cell.strip().strip('"') for cell in header.split(delimiter)]:
            return delimiter
    return ","


def _json_list(cell: str) -> Any:
    try:
        value = json.loads(cell)
    except json.JSONDecodeError:
        return [cell]
    return value if isinstance(value, list) else [cell]


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Fault(f"not valid UTF-8: byte {data[error.start]:#04x} at offset {error.start}") from None


# --- Parquet, saved folders, the hub -------------------------------------------------------------------------------


def _from_parquet(part: Part, columns: Columns) -> Iterator[Record]:
    table = _parquet(part)
    names = _class_names(table.schema_arrow, columns.label)
    _require_columns(part.source, table.schema_arrow.names, columns)
    try:
        yield from _row_groups(table, part, columns, names)
    except (OSError, ValueError, OverflowError) as error:  # pyarrow's own, and numbers and dates beyond Python's
        raise DataError(f"{part.source} cannot be read as Parquet ({error}); write it again") from error


def _row_groups(table: Any, part: Part, columns: Columns, names: list[str] | None) -> Iterator[Record]:
    line = 0
    wanted = [name for name in _wanted(columns) if name in table.schema_arrow.names]
    for group in range(table.metadata.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        if line + rows > part.start and line < part.stop:
            at = line
            for batch in table.iter_batches(_READ_ROWS, row_groups=[group], columns=wanted):
                first, last = max(part.start - at, 0), min(part.stop - at, len(batch))
                if first < last:
                    yield from _named(batch.slice(first, last - first).to_pylist(), at + first + 1, names, columns)
                at += len(batch)
        line += rows


def _from_dataset(part: Part, columns: Columns) -> Iterator[Record]:
    data = dataset_of(part)
    _require_columns(part.source, data.column_names, columns)
    data = data.select_columns([name for name in _wanted(columns) if name in data.column_names])
    stop = min(part.stop, len(data))
    for at in range(part.start, stop, _READ_ROWS):
        rows = data[at : min(at + _READ_ROWS, stop)]
        records = [dict(zip(rows, cells, strict=True)) for cells in zip(*rows.values(), strict=True)]
        yield from _named(records, at + 1, getattr(data.features.get(columns.label), "names", None), columns)


def _named(records: list[dict[str, Any]], line: int, names: list[str] | None, columns: Columns) -> Iterator[Record]:
    """The records, with class names for label numbers."""
    for number, record in enumerate(records, start=line):
        raw = json.dumps(record, default=str, ensure_ascii=False)
        label = record.get(columns.label)
        if names and isinstance(label, int):
            if label >= len(names):
                yield number, Fault(f"unknown label: number {label}, but the set names {len(names)} classes"), raw
                continue
            record[columns.label] = None if label < 0 else names[label]
        yield number, record, raw


def _class_names(schema: Any, label: str) -> list[str] | None:
    """The class names that ``datasets`` wrote into a Parquet file."""
    from datasets import Features

    try:
        return getattr(Features.from_arrow_schema(schema).get(label), "names", None)
    except (ValueError, KeyError):  # a column of a type that datasets does not know, which is not ours to read
        return None


def _parquet(part: Part) -> Any:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(part.path, memory_map=True)
    except Exception as error:  # pyarrow raises many kinds for a broken file
        raise DataError(f"{part.path} cannot be read as Parquet ({error}); write it again") from error


def dataset_of(part: Part) -> Any:
    from datasets import DatasetDict, load_dataset, load_from_disk

    if part.kind == "hub":
        try:
            return load_dataset(part.path, split=part.split)
        except Exception as error:  # offline, unknown, gated, no such split: the hub has an exception for each
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{part.path!r} is no file or folder here, and the hub did not give it: {first}") from error
    if not any((Path(part.path) / name).exists() for name in ("state.json", "dataset_dict.json")):
        raise DataError(f"{part.path} is no folder of Dataset.save_to_disk; name a file in it, or save the set so")
    try:
        data = load_from_disk(part.path)
    except Exception as error:  # cut JSON, Arrow files short or gone: datasets and pyarrow have an exception for each
        raise DataError(f"{part.path} is a damaged folder of Dataset.save_to_disk ({error}); save it again") from error
    if not isinstance(data, DatasetDict):
        return data
    if part.split not in data:
        raise DataError(f"{part.path} holds the splits {', '.join(data)}; name one: {part.path}:{next(iter(data))}")
    return data[part.split]


def _wanted(columns: Columns) -> list[str]:
    """The columns that are read; others may hold anything."""
    return [name for name in dataclasses.astuple(columns) if name]


def _require_columns(source: str, found: Sequence[str], columns: Columns) -> None:
    twice = sorted({name for name in _wanted(columns) if list(found).count(name) > 1})
    if twice:
        raise DataError(f"{source} has {len(twice)} columns twice: {', '.join(twice)}; which one counts? Rename one")
    if columns.text in found:
        return
    near = difflib.get_close_matches(columns.text, found, n=1)
    flag = f"--data.columns.text={shlex.quote(near[0] if near else 'NAME')}"
    raise DataError(
        f"{source} has the columns {', '.join(map(repr, found)) or '(none)'}, and no text column {columns.text!r}; "
        + (f"did you mean {near[0]!r}? Then say {flag}" if near else f"name it with {flag}")
        + " (for `data check`: --columns.text)"
    )
