"""Files and hub datasets as records, in parts that separate processes can read.

A source is cut into parts: byte ranges of a JSONL file; row ranges of Parquet files, saved folders and hub datasets. A
CSV file is one part, since a quoted cell may hold line breaks, and so is a gzipped file. Each part knows its first
line, so a bad row is reported with file and line by any process. JSONL and CSV are read here, in binary; the rest by
pyarrow and ``datasets``.

Cost: one pass to count the lines of a JSONL file (about 2 GB/s), one to read them; memory of a part's batch.
"""

from __future__ import annotations

import csv
import gzip
import inspect
import io
import itertools
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from clsgen_dist.data.demos.source import is_demo, resolve_demo
from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.columns import ColumnNames, check_columns
from clsgen_dist.data.reading.rejection import Fault, Rejection
from clsgen_dist.data.reading.sniff import (
    BYTE_ORDER_MARK,
    SUFFIXES,
    csv_delimiter,
    file_fault,
    is_gzip_name,
    kind_of_file,
    open_bytes,
)
from clsgen_dist.errors import DataError, first_line

PART_BYTES = 16 * 2**20
"""Size of a JSONL part: about a second of work for one core."""
PART_ROWS = 65_536
"""Rows of a part of other formats."""
_READ_ROWS = 1024


Record = tuple[int, "dict[str, Any] | Fault", str]
"""Line in a text file, else row number (from 1); the row's columns, or what is wrong with it; the raw row."""


@dataclass(frozen=True)
class Part:
    """A piece of a source, to be read by one process."""

    source: str
    """The source's name, for messages."""
    kind: str
    """jsonl, csv, parquet, folder or hub."""
    path: str
    split: str
    start: int
    """First byte of a JSONL part; first row of other formats."""
    stop: int
    """One past the last; a line or row belongs to the part in which it begins."""
    line: int
    """Number of the first line or row, from 1."""


def find_source(source: str) -> Part:
    """A source as one part; everything that reads rows starts here.

    Args:
        source: ``.jsonl``, ``.csv``, ``.parquet``; a folder of ``save_to_disk`` (``folder:split``); a hub id
            (``owner/name:split``, split ``train`` by default); or an embedded dataset, ``demo:NAME/SPLIT``.

    Raises:
        DataError: there is no such source, or it cannot be read as rows.
    """
    if not source.strip():
        raise DataError("a source is named '', expected a file, a folder or a hub id")
    source = resolve_demo(source)
    try:
        return _find(source)
    except OSError as error:
        raise DataError(f"{source} cannot be opened ({error.strerror}); check its name and permissions") from error


def is_local(source: str) -> bool:
    """Whether a source is on this machine: an embedded dataset, a file, or a saved folder."""
    path, _ = _path_and_split(source)
    return is_demo(source) or Path(path).expanduser().exists()


def _path_and_split(source: str) -> tuple[str, str]:
    path, _, split = source.rpartition(":") if ":" in source and not os.path.exists(source) else (source, "", "")
    return path, split


def _find(source: str) -> Part:
    path, split = _path_and_split(source)
    local = Path(path).expanduser()
    if local.is_dir():
        return Part(source, "folder", str(local), split, 0, sys.maxsize, 1)
    if "://" in source:
        raise DataError(
            f"{source} is an address of shards, which must be streamed: set data.stream_window and data.labels, or "
            "download the file and name it here"
        )
    if local.is_file() and split:
        raise DataError(f"{source}: a file has no splits; name the file alone, {path}")
    if local.is_file():
        kind = kind_of_file(local)
        if kind is None:
            raise DataError(
                f"{source}: files ending in {local.suffix!r} cannot be read; use one of {', '.join(SUFFIXES)} (text "
                "formats also with .gz)"
            )
        if kind != "parquet" and (fault := file_fault(local)):
            raise DataError(f"{source} {fault.what}; {fault.remedy}")
        os.close(os.open(local, os.O_RDONLY))  # a missing permission should show here, not in a worker
        return Part(source, kind, str(local), "", 0, sys.maxsize, 1)
    if kind_of_file(local) or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise DataError(f"{source} does not exist (looked in {Path.cwd()}); check the path")
    return Part(source, "hub", path, split or "train", 0, sys.maxsize, 1)


def cut(source: Part, *, finer: int = 1) -> list[Part]:
    """The parts of a source, in order; ``finer`` times smaller ones than usual."""
    if source.kind == "csv" or is_gzip_name(Path(source.path)):
        return [source]
    if source.kind == "jsonl":
        return _cut_jsonl(source, PART_BYTES // finer)
    rows = _parquet(source).metadata.num_rows if source.kind == "parquet" else len(dataset_of(source))
    step = PART_ROWS // finer
    starts = range(0, max(rows, 1), step)
    return [replace(source, start=at, stop=min(at + step, rows), line=at + 1) for at in starts]


def read_part(part: Part, columns: Columns, *, every_column: bool = False) -> Iterator[Record]:
    """The records of a part in order, columns named as in ``columns``; DataError if the source cannot be read.

    Formats with typed columns are read in those of ``columns``, unless every column is asked for.
    """
    reader = {
        "jsonl": _from_jsonl,
        "csv": _from_csv,
        "parquet": _from_parquet,
        "folder": _from_dataset,
        "hub": _from_dataset,
    }[part.kind]
    try:
        yield from reader(part, ColumnNames(columns, every=every_column))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{part.source} is not a complete gzip file ({error}); write it again") from error


# --- JSONL ---------------------------------------------------------------------------------------------------------


def _cut_jsonl(source: Part, step: int) -> list[Part]:
    size = os.path.getsize(source.path)
    parts: list[Part] = []
    line = 1
    with open(source.path, "rb") as file:
        for start in range(0, max(size, 1), step):
            stop = min(start + step, size)
            # A line that begins before `start` belongs to the part before; this part begins with the next line.
            carried = 0
            if start:
                file.seek(start - 1)
                carried = file.read(1) != b"\n"
            parts.append(replace(source, start=start, stop=stop, line=line + carried))
            file.seek(start)
            line += file.read(stop - start).count(b"\n")
    return parts


def _from_jsonl(part: Part, names: ColumnNames) -> Iterator[Record]:
    with open_bytes(Path(part.path)) as file:
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
                yield line, Fault(Rejection.NOT_JSON, str(error)), raw
            else:
                if isinstance(record, dict):
                    yield line, names.renamed(record), raw
                else:
                    yield line, Fault(Rejection.NOT_AN_OBJECT, type(record).__name__), raw


# --- CSV -----------------------------------------------------------------------------------------------------------


_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
"""What Excel writes, and reads, above the header: how cells are separated."""


def csv_head(text: IO[str], names: ColumnNames) -> tuple[str, str, int]:
    """The line that the header of an opened CSV file begins in, how cells are separated, and the lines above it."""
    first = text.readline()
    if separator := _SEPARATOR_LINE.fullmatch(first):
        return text.readline(), separator[1], 1
    return first, csv_delimiter(first, names), 0


def _from_csv(part: Part, names: ColumnNames) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)
    with open_bytes(Path(part.path)) as file:
        # surrogateescape carries bad bytes through the parser, so that they are reported with their record's line.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        first, delimiter, above = csv_head(text, names)
        lines = (line for line in itertools.chain([first], text))
        reader = csv.reader(lines, strict=True, delimiter=delimiter)
        try:
            header = [names.of(name) for name in next(reader, [])]
        except csv.Error as error:
            raise DataError(
                f"{part.source}: its header, line {above + 1}, is not CSV ({error}); fix its quotes"
            ) from None
        check_columns(part.source, header, names)
        end = reader.line_num + above
        while True:
            line = end + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if inspect.getgeneratorstate(lines) == inspect.GEN_CLOSED:  # the reader looked for a closing quote
                    rest = reader.line_num + above - line + 1
                    raise DataError(
                        f"{part.source}: a quote opened in the record of line {line} is never closed, so the rest of "
                        f"the file, {rest} lines, would be one cell; close it, or double the "
                        "quote if it is meant literally"
                    ) from None
                end = reader.line_num + above
                if end > line:
                    raise DataError(
                        f"{part.source}: a quote opened in the record of line {line} closes only in line "
                        f"{end}, and not at the end of a cell; close it where its cell ends, or double the "
                        "quote if it is meant literally"
                    ) from None
                yield line, Fault(Rejection.NOT_CSV, str(error)), ""
                continue
            end = reader.line_num + above
            if not cells:
                continue
            raw = ",".join(cells).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            if len(cells) != len(header):
                yield line, Fault(Rejection.WRONG_CELL_COUNT, f"{len(cells)}, the header has {len(header)}"), raw
                continue
            try:
                _decode(",".join(cells).encode("utf-8", "surrogateescape"))
            except Fault as fault:
                yield line, fault, raw
                continue
            yield line, {name: cell or None for name, cell in zip(header, cells, strict=True)}, raw


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Fault(Rejection.NOT_UTF8, f"byte {data[error.start]:#04x} at offset {error.start}") from None


# --- Parquet, saved folders, the hub -------------------------------------------------------------------------------


def _from_parquet(part: Part, names: ColumnNames) -> Iterator[Record]:
    table = _parquet(part)
    check_columns(part.source, [names.of(name) for name in table.schema_arrow.names], names)
    try:
        yield from _row_groups(table, part, names)
    except (OSError, ValueError, OverflowError) as error:  # pyarrow's own, and numbers and dates beyond Python's
        raise DataError(f"{part.source} cannot be read as Parquet ({error}); write it again") from error


def _row_groups(table: Any, part: Part, names: ColumnNames) -> Iterator[Record]:
    line = 0
    wanted = {name: names.of(name) for name in table.schema_arrow.names if names.reads(name)}
    classes = _class_names(table.schema_arrow, {known: name for name, known in wanted.items()}.get(names.label, ""))
    for group in range(table.metadata.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        if line + rows > part.start and line < part.stop:
            at = line
            for batch in table.iter_batches(_READ_ROWS, row_groups=[group], columns=list(wanted)):
                first, last = max(part.start - at, 0), min(part.stop - at, len(batch))
                if first < last:
                    known = batch.rename_columns([wanted[name] for name in batch.schema.names])
                    records = known.slice(first, last - first).to_pylist()
                    yield from _with_class_names(records, at + first + 1, classes, names.label)
                at += len(batch)
        line += rows


def _from_dataset(part: Part, names: ColumnNames) -> Iterator[Record]:
    data = dataset_of(part).with_format(None)  # a saved dataset may have a numpy or torch format
    check_columns(part.source, [names.of(name) for name in data.column_names], names)
    wanted = {name: names.of(name) for name in data.column_names if names.reads(name)}
    data = data.select_columns(list(wanted)).rename_columns(wanted)
    classes = _names_of(data.features.get(names.label))
    stop = min(part.stop, len(data))
    for at in range(part.start, stop, _READ_ROWS):
        rows = data[at : min(at + _READ_ROWS, stop)]
        records = [dict(zip(rows, cells, strict=True)) for cells in zip(*rows.values(), strict=True)]
        yield from _with_class_names(records, at + 1, classes, names.label)


def _with_class_names(
    records: list[dict[str, Any]], line: int, classes: list[str] | None, column: str
) -> Iterator[Record]:
    """The records, with class names for label numbers."""
    for number, record in enumerate(records, start=line):
        raw = json.dumps(record, default=str, ensure_ascii=False)
        label = record.get(column)
        if classes:
            numbers = label if isinstance(label, list) else [label]
            if wrong := next((n for n in numbers if isinstance(n, int) and n >= len(classes)), None):
                detail = f"number {wrong}, but the dataset names {len(classes)} classes"
                yield number, Fault(Rejection.UNKNOWN_LABEL, detail), raw
                continue
            names = [n if not isinstance(n, int) else None if n < 0 else classes[n] for n in numbers]
            if column in record:
                record[column] = names if isinstance(label, list) else names[0]
        yield number, record, raw


def _names_of(feature: Any) -> list[str] | None:
    """The class names of a ``ClassLabel``, or of a list of them."""
    return getattr(getattr(feature, "feature", feature), "names", None)


def _class_names(schema: Any, label: str) -> list[str] | None:
    """The class names that ``datasets`` wrote into a Parquet file."""
    from datasets import Features

    try:
        return _names_of(Features.from_arrow_schema(schema).get(label))
    except (ValueError, KeyError):  # a column of a type that datasets does not know; it is not read
        return None


def _parquet(part: Part) -> Any:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(part.path, memory_map=True)
    except Exception as error:  # pyarrow raises many kinds for a broken file
        raise DataError(f"{part.path} cannot be read as Parquet ({error}); write it again") from error


def dataset_of(part: Part) -> Any:
    """The ``datasets.Dataset`` of a saved folder or hub id; DataError if it cannot be had."""
    from datasets import DatasetDict, load_dataset, load_from_disk

    if part.kind == "hub":
        try:
            return load_dataset(part.path, split=part.split)
        except Exception as error:  # offline, unknown, gated, no such split: each has its own exception
            raise DataError(
                f"{part.path!r} is not a local file or folder, and could not be loaded from the hub: "
                f"{first_line(error)}"
            ) from error
    if not any((Path(part.path) / name).exists() for name in ("state.json", "dataset_dict.json")):
        raise DataError(
            f"{part.path} is not a folder of Dataset.save_to_disk; name a file in it, or save the dataset with it"
        )
    try:
        data = load_from_disk(part.path)
    except Exception as error:  # truncated JSON, Arrow files truncated or missing: each has its own exception
        raise DataError(f"{part.path} is a damaged folder of Dataset.save_to_disk ({error}); save it again") from error
    if not isinstance(data, DatasetDict):
        return data
    if part.split not in data:
        raise DataError(f"{part.path} has the splits {', '.join(data)}; name one: {part.path}:{next(iter(data))}")
    return data[part.split]
