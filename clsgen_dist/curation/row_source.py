"""A source of rows in pieces, that several processes can look at; the pieces do not depend on their number.

Parts of JSON lines and Parquet files are read by the process that looks at them. A CSV file, and one that is
compressed, only one process can read: this one, which passes its rows on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from clsgen_dist.data.example import Columns, Example
from clsgen_dist.data.reading.ingest import iter_rows, resolve_space
from clsgen_dist.data.reading.label_cells import Space
from clsgen_dist.data.reading.records import PART_BYTES, Part, cut, find_source
from clsgen_dist.data.reading.rejection import RejectedRow
from clsgen_dist.data.tables.workers import worker_count

_FINER = 8
"""Parts are 2 MB of JSON lines, or 8,192 rows: a few seconds of work, and what is found in one fits into memory."""
_ROWS = 512
"""Rows of a piece that this process reads."""
Piece = Part | list[Example | RejectedRow]
"""A part of a source, still to be read; or rows."""


@dataclass(frozen=True)
class RowSource:
    """A source, and how its rows are read."""

    path: str
    columns: Columns
    labels: Sequence[str] | None
    """The classes; None accepts any."""
    space: Space

    def pieces(self) -> tuple[Iterable[Piece], int]:
        """The source in pieces, in order, and the processes that they are worth."""
        parts = cut(find_source(self.path), finer=_FINER)
        if len(parts) > 1:
            return parts, worker_count(len(parts))
        file, rows = Path(parts[0].path), self.rows(parts[0])
        size = file.stat().st_size if file.is_file() else 0
        return iter(lambda: list(islice(rows, _ROWS)), []), worker_count(size * _FINER // PART_BYTES)

    def all_rows(self) -> Iterator[Example | RejectedRow]:
        """All rows in order, read by this process; ids are not compared."""
        return chain.from_iterable(map(self.rows, self.pieces()[0]))

    def rows(self, piece: Piece) -> Iterator[Example | RejectedRow]:
        """The rows of a piece in order; ids are not compared."""
        if isinstance(piece, list):
            return iter(piece)
        return iter_rows(piece, columns=self.columns, labels=self.labels, space=self.space)


def row_source(path: str, columns: Columns, labels: Sequence[str] | None, space: Space) -> RowSource:
    """A source, its label space found from its first rows if it is ``auto``; DataError if it cannot be read."""
    return RowSource(path, columns, labels, resolve_space(path, columns, space))
