"""The files of a gate: every row of the input is in one of them, byte for byte, and together they are the input again.

A row of a JSONL or CSV file is its lines: from the one it begins in up to that of the next row, so that empty lines
stay with the row before them. Lines before the first row (a header, ``sep=;``, a byte order mark on a line of its own)
are in each file, so that each can be read by itself. Rows of Parquet files are copied by their number.

Cost: one pass over the input; memory of a row, for Parquet of a batch.
"""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from clsgen_dist.data.reading.sniff import is_gzip_name, kind_of_file, open_bytes
from clsgen_dist.errors import DataError

_PARQUET_ROWS = 8192
"""Rows that are read, and written as a row group at most, at a time."""


class Destination(StrEnum):
    """Where a row goes; also the names of the files."""

    KEPT = "kept"
    REVIEW = "review"
    REJECTED = "rejected"


Placed = tuple[int, Destination]
"""The line that a row begins in (its number in Parquet files), and where it goes."""


def suffix_of(path: Path) -> str:
    """``.jsonl``, ``.csv.gz`` …, as the file has it."""
    inner = path.with_suffix("") if is_gzip_name(path) else path
    return path.name[len(inner.stem) :]


def gate_file(folder: Path, destination: Destination, suffix: str) -> Path:
    """The file of the rows with a destination."""
    return folder / f"{destination}{suffix}"


def raw_lines(path: Path) -> Iterator[bytes]:
    """The lines of a text file with their ends, as the readers of rows count them."""
    with open_bytes(path) as file:
        if kind_of_file(path) == "jsonl":
            yield from file
            return
        # CSV's reader ends lines at \r too. What is not UTF-8 passes through surrogates unchanged.
        for line in io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline=""):
            yield line.encode("utf-8", "surrogateescape")


def split_lines(source: Path, folder: Path, rows: Iterable[Placed]) -> int:
    """Write each row of a text file to the file of its destination; returns the lines before the first row."""
    lines, suffix = enumerate(raw_lines(source), start=1), suffix_of(source)
    with contextlib.ExitStack() as stack:
        files = {to: _create(gate_file(folder, to, suffix), stack) for to in Destination}
        destination, above, pending = None, 0, next(lines, None)
        for start, following in rows:
            while pending and pending[0] < start:
                above += _put(pending[1], destination, files)
                pending = next(lines, None)
            destination = following
        while pending:
            above += _put(pending[1], destination, files)
            pending = next(lines, None)
    return above


def _put(line: bytes, destination: Destination | None, files: dict[Destination, IO[bytes]]) -> bool:
    """Write a line to its file, one before the first row to all; whether it was such a line."""
    for file in files.values() if destination is None else [files[destination]]:
        file.write(line)
    return destination is None


def restored_lines(folder: Path, suffix: str, above: int, rows: Iterable[Placed]) -> Iterator[bytes]:
    """The lines of the text file that the gate was given.

    Args:
        folder: what :func:`split_lines` wrote.
        suffix: of its files.
        above: lines before the first row.
        rows: the same rows.
    """
    lines = {to: raw_lines(gate_file(folder, to, suffix)) for to in Destination}
    head = {to: list(islice(of, above)) for to, of in lines.items()}
    yield from head[Destination.KEPT]
    line, destination = above + 1, None
    for start, following in rows:
        if destination is not None:
            yield from islice(lines[destination], start - line)
        line, destination = start, following
    if destination is not None:
        yield from lines[destination]


def _create(path: Path, stack: contextlib.ExitStack) -> IO[bytes]:
    """A file to write, which the stack closes."""
    return stack.enter_context(compressed(stack.enter_context(path.open("wb")), path))


@contextlib.contextmanager
def compressed(file: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    """The file, or its gzip stream if the path says so; without a time, so that the same rows are the same bytes."""
    if not is_gzip_name(path):
        yield file
        return
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as stream:
        yield cast(IO[bytes], stream)


def split_parquet(source: Path, folder: Path, rows: Iterable[Placed]) -> None:
    """Write each row of a Parquet file to the file of its destination, with the file's schema."""
    import pyarrow.parquet

    table, places = pyarrow.parquet.ParquetFile(source), iter(rows)
    with contextlib.ExitStack() as stack:
        writers = {
            to: stack.enter_context(
                pyarrow.parquet.ParquetWriter(gate_file(folder, to, suffix_of(source)), table.schema_arrow)
            )
            for to in Destination
        }
        for batch in table.iter_batches(_PARQUET_ROWS):
            to_rows = [destination for _, destination in islice(places, len(batch))]
            for to, writer in writers.items():
                chosen = [at for at, destination in enumerate(to_rows) if destination == to]
                if chosen:
                    writer.write_batch(batch.take(pyarrow.array(chosen)))


def restored_batches(folder: Path, suffix: str, rows: Iterable[Placed]) -> Iterator[Any]:
    """The rows of the Parquet file that the gate was given, as record batches in its order."""
    import pyarrow

    readers = {to: _BatchReader(gate_file(folder, to, suffix)) for to in Destination}
    places = iter(rows)
    while chunk := [destination for _, destination in islice(places, _PARQUET_ROWS)]:
        taken = {to: readers[to].take(chunk.count(to)) for to in Destination}
        starts, offset = {}, 0
        for to in Destination:
            starts[to], offset = offset, offset + len(taken[to])
        order = []
        for destination in chunk:
            order.append(starts[destination])
            starts[destination] += 1
        table = pyarrow.concat_tables(list(taken.values())).take(pyarrow.array(order))
        yield from table.combine_chunks().to_batches()


class _BatchReader:
    """Reads a Parquet file a few rows at a time."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet

        file = pyarrow.parquet.ParquetFile(path)
        self._path = path
        self._schema = file.schema_arrow
        self._batches = file.iter_batches(_PARQUET_ROWS)
        self._rest: Any = None

    def take(self, count: int) -> Any:
        """The next ``count`` rows, as a table."""
        import pyarrow

        parts: list[Any] = []
        while count:
            if self._rest is None or not len(self._rest):
                self._rest = next(self._batches, None)
            if self._rest is None:
                raise DataError(f"{self._path} has fewer rows than the gate wrote: it was changed; run the gate again")
            part = self._rest.slice(0, count)
            self._rest = self._rest.slice(len(part))
            parts.append(part)
            count -= len(part)
        return pyarrow.Table.from_batches(parts, schema=self._schema)


def schema_of(path: Path) -> Any:
    """The Arrow schema of a Parquet file."""
    import pyarrow.parquet

    return pyarrow.parquet.read_schema(path)
