"""The files of a gate: every row of the input is in one of them, byte for byte, and together they are the input again.

Lines before the first row (a header, ``sep=;``, a byte order mark on a line of its own) are in each file, so that each
can be read by itself. Rows of Parquet files are copied by their number.

Cost: one pass over the input; memory of a row, for Parquet of a batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import IO, Any

from clsgen_dist.curation.raw_rows import PARQUET_ROWS, compressed, raw_lines, raw_rows, suffix_of
from clsgen_dist.errors import DataError


class Destination(StrEnum):
    """Where a row goes; also the names of the files."""

    KEPT = "kept"
    REVIEW = "review"
    REJECTED = "rejected"


Placed = tuple[int, Destination]
"""The line that a row begins in (its number in Parquet files), and where it goes."""


def gate_file(folder: Path, destination: Destination, suffix: str) -> Path:
    """The file of the rows with a destination."""
    return folder / f"{destination}{suffix}"


def split_lines(source: Path, folder: Path, rows: Iterable[Placed]) -> int:
    """Write each row of a text file to the file of its destination; returns the lines before the first row."""
    above, suffix = 0, suffix_of(source)
    with contextlib.ExitStack() as stack:
        files = {to: _create(gate_file(folder, to, suffix), stack) for to in Destination}
        for destination, lines in raw_rows(source, rows):
            above += len(lines) if destination is None else 0
            for file in files.values() if destination is None else [files[destination]]:
                file.writelines(lines)
    return above


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
        for batch in table.iter_batches(PARQUET_ROWS):
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
    while chunk := [destination for _, destination in islice(places, PARQUET_ROWS)]:
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
        self._batches = file.iter_batches(PARQUET_ROWS)
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
