"""The rows of a file as its bytes have them, so that what is copied stays what it was.

A row of a JSONL or CSV file is its lines: from the one it begins in up to that of the next row, so that empty lines
stay with the row before them. Cost: one pass over the file; memory of a row.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TypeVar, cast

from clsgen_dist.data.reading.sniff import is_gzip_name, kind_of_file, open_bytes
from clsgen_dist.errors import DataError

PARQUET_ROWS = 8192
"""Rows of a Parquet file that are read, and written as a row group at most, at a time."""
T = TypeVar("T")


def suffix_of(path: Path) -> str:
    """``.jsonl``, ``.csv.gz`` …, as the file has it."""
    inner = path.with_suffix("") if is_gzip_name(path) else path
    return path.name[len(inner.stem) :]


def raw_lines(path: Path) -> Iterator[bytes]:
    """The lines of a text file with their ends, as the readers of rows count them; DataError for a broken gzip file."""
    try:
        with open_bytes(path) as file:
            if kind_of_file(path) == "jsonl":
                yield from file
                return
            # CSV's reader ends lines at \r too. What is not UTF-8 passes through surrogates unchanged.
            for line in io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline=""):
                yield line.encode("utf-8", "surrogateescape")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not a complete gzip file ({error}); write it again") from error


def raw_rows(path: Path, rows: Iterable[tuple[int, T]]) -> Iterator[tuple[T | None, list[bytes]]]:
    """The lines of each row of a text file; first, with None, those before the first row.

    Args:
        path: the file.
        rows: the line that each row begins in, in order, and what is known of the row.
    """
    lines, known, own = enumerate(raw_lines(path), start=1), None, list[bytes]()
    pending = next(lines, None)
    for start, following in rows:
        while pending and pending[0] < start:
            own.append(pending[1])
            pending = next(lines, None)
        if own:
            yield known, own
        known, own = following, []
    own += [pending[1]] if pending else []
    own += [line for _, line in lines]
    if own:
        yield known, own


@contextlib.contextmanager
def compressed(file: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    """The file, or its gzip stream if the path says so; without a time, so that the same rows are the same bytes."""
    if not is_gzip_name(path):
        yield file
        return
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as stream:
        yield cast(IO[bytes], stream)
