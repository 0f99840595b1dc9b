"""Rows on disk, in tokens, read by row number. :mod:`clsgen_dist.data.tables.build` writes them.

A table is a folder: Arrow streams with the rows as read and in tokens (``datasets.Dataset.from_file`` opens them too),
columns of numbers, ``table.json`` with counts, and ``quarantine.jsonl`` with the rejected rows.

Cost: milliseconds to open; 20 bytes per row, mapped, not read.
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from clsgen_dist.data.encode import Ids
from clsgen_dist.data.example import Example
from clsgen_dist.data.reading.ingest import Noticed, summary
from clsgen_dist.data.reading.label_cells import Space
from clsgen_dist.data.reading.rejection import RejectedRow

# N rows of a table


@dataclass(frozen=True)
class TableCard:
    """Counts of a table and the fingerprint of its rows: ``table.json``."""

    source: str
    rows: int
    stored: int
    """Rows in the Arrow files: those of the table, and those with a repeated id."""
    labels: list[str]
    """Class names."""
    unlabelled: int
    unexplained: int
    rejected: dict[str, int]
    """Rejected rows by code."""
    noticed: Noticed
    """Cells that were not read literally, by kind: how many, and the first one."""
    sha256: str
    """Fingerprint of the rows in their order."""
    space: Space = "auto"
    """How label cells were read."""
    has_answers: bool = False
    """Whether some row has several classes or votes."""
    evidence_sha256: str = ""
    """Fingerprint of the rows' evidence, which only some runs learn from."""
    with_evidence: int = 0
    """Rows whose evidence is in their text."""

    def summary(self) -> str:
        """One line for people."""
        return summary(self.rows, self.unlabelled, self.unexplained, Counter(self.rejected), self.noticed)


EXAMPLE_COLUMNS = [
    "id", "line", "text", "label", "answers", "difficulty", "explanations", "rejected", "evidence",
    "counter_evidence",
]  # fmt: skip
"""Columns of the Arrow files that hold a row as it was read."""


def stored_example(cells: dict[str, Any], file: str) -> Example:
    """The row of these cells."""
    answers = cells["answers"] and {answer["class"]: answer["answer"] for answer in cells["answers"]}
    spans = {name: tuple(map(tuple, cells[name])) for name in ("evidence", "counter_evidence")}
    texts = {name: tuple(cells[name]) for name in ("explanations", "rejected")}
    return Example(**{**cells, **spans, **texts, "answers": answers}, file=file)


class DamagedTableError(Exception):
    """A file of a table is missing or changed."""


class RowTable:
    """A table on disk, opened. Rows are numbered from 0 in the order of the source, without the rejected ones.

    Raises:
        DamagedTableError: a file is missing, cut short, or of another table.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._open(folder)
        except (OSError, ValueError, TypeError, KeyError) as error:  # pyarrow and numpy have these for a broken file
            if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
                raise  # not damage: no permission, no memory, a server that does not answer
            raise DamagedTableError(f"the table {folder} is damaged ({error})") from error

    def _open(self, folder: Path) -> None:
        self.folder = folder
        card = json.loads((folder / "table.json").read_text(encoding="utf-8"))
        self.card = TableCard(**card)
        self.label_N: np.ndarray = self._column("label")
        """Class index, or -1 without label; multi-label: the rarest class of a row, C for none of them."""
        self.answers_NC: np.ndarray | None = self._column("answers") if self.card.has_answers else None
        """float32 answers of rows with several classes or votes, -1 where not known; None if no row has any."""
        self.text_length_N: Ids = self._column("text_length")
        """Tokens of the text."""
        self.explanation_start_N1: np.ndarray = self._column("explanation_start")
        """``[N + 1]`` where each row's explanations begin in :attr:`explanation_length_E`."""
        self.explanation_length_E: Ids = self._column("explanation_length")
        """Tokens of every explanation, end token included."""
        self.rejected_start_N1: np.ndarray = self._column("rejected_start")
        """``[N + 1]`` where each row's rejected explanations begin in :attr:`rejected_length_R`."""
        self.rejected_length_R: Ids = self._column("rejected_length")
        """Tokens of every rejected explanation, end token included."""
        self.difficulty_N: np.ndarray = self._column("difficulty")
        """The rows' own difficulty, NaN where there is none."""
        self._place_N = self._column("place")
        self._line_N: np.ndarray | None = None
        self._batches: list[pa.RecordBatch] = []
        starts = [0]
        for file in sorted(folder.glob("part-*.arrow")):
            for batch in pa.ipc.open_stream(pa.memory_map(str(file))):
                self._batches.append(batch)
                starts.append(starts[-1] + len(batch))
        self._starts = np.array(starts)
        lengths = (len(self.label_N), len(self._place_N), len(self.explanation_start_N1) - 1, starts[-1])
        if lengths != (*[self.card.rows] * 3, self.card.stored):
            raise ValueError(f"rows found are {lengths}, expected {self.card.rows} and {self.card.stored} stored")

    def _column(self, name: str) -> np.ndarray:
        file = self.folder / f"{name}.npy"
        empty = os.path.getsize(file) <= 128  # a header alone cannot be mapped
        return np.load(file, mmap_mode=None if empty else "r")

    def __len__(self) -> int:
        return self.card.rows

    @property
    def quarantine(self) -> Path:
        """The rejected rows, if any."""
        return self.folder / "quarantine.jsonl"

    def rejected(self) -> Iterator[RejectedRow]:
        """The rejected rows, in order."""
        if self.quarantine.exists():
            with self.quarantine.open(encoding="ascii") as file:
                for line in file:
                    yield RejectedRow(**json.loads(line))

    def text_ids(self, row: int) -> Ids:
        """Tokens of a row's text."""
        return _ints(*self._cell(row, "text_ids"))

    def evidence(self, row: int, column: Literal["evidence", "counter_evidence"] = "evidence") -> Ids:
        """``[P, 2]`` tokens [start, stop) of a row's text that its evidence is in, or its counter-evidence."""
        return _ints(*self._cell(row, f"{column}_ids")).reshape(-1, 2)

    def explanation_ids(self, row: int, which: int) -> Ids:
        """Tokens of a row's explanation number ``which`` (from 0), end token included."""
        return self._explanation(row, "explanation_ids", which)

    def rejected_ids(self, row: int, which: int) -> Ids:
        """Tokens of a row's rejected explanation number ``which`` (from 0), end token included."""
        return self._explanation(row, "rejected_ids", which)

    def _explanation(self, row: int, name: str, which: int) -> Ids:
        column, at = self._cell(row, name)
        return _ints(column.values, column.offsets[at].as_py() + which)

    def id(self, row: int) -> str:
        """The row's id."""
        column, at = self._cell(row, "id")
        return str(column[at].as_py())

    def example(self, row: int) -> Example:
        """The row as it was read."""
        batch, at = self._find(row)
        return stored_example(batch.slice(at, 1).select(EXAMPLE_COLUMNS).to_pylist()[0], Path(self.card.source).name)

    def lines(self) -> np.ndarray:
        """``[N]`` line of each row in its source, increasing."""
        if self._line_N is None:
            columns = [batch.column("line").to_numpy()[kept] for batch, kept in self._kept()]
            self._line_N = np.concatenate(columns) if columns else np.zeros(0, dtype=np.int64)
        return self._line_N

    def texts(self) -> Iterator[str]:
        """The texts of all rows, in order."""
        for batch, kept in self._kept():
            column = batch.column("text")
            yield from (column[at].as_py() for at in kept)

    def token_batches(self) -> Iterator[tuple[np.ndarray, np.ndarray, Ids]]:
        """Blocks of rows in order: row numbers ``[n]``, start of each one's tokens ``[n + 1]``, the text tokens."""
        row = 0
        for batch, kept in self._kept():
            column = batch.column("text_ids")
            offsets, values = column.offsets.to_numpy(), column.values.to_numpy()
            if len(kept) < len(batch):
                pieces = [values[offsets[at] : offsets[at + 1]] for at in kept]
                values = np.concatenate(pieces) if pieces else values[:0]
                offsets = np.concatenate([[0], np.cumsum([len(p) for p in pieces])]).astype(np.int64)
            yield np.arange(row, row + len(kept)), offsets, values
            row += len(kept)

    def _kept(self) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        """Every record batch, with the positions in it of the table's rows."""
        for index, batch in enumerate(self._batches):
            first, last = np.searchsorted(self._place_N, self._starts[index : index + 2])
            yield batch, self._place_N[first:last] - self._starts[index]

    def _cell(self, row: int, name: str) -> tuple[Any, int]:
        batch, at = self._find(row)
        return batch.column(name), at

    def _find(self, row: int) -> tuple[pa.RecordBatch, int]:
        place = int(self._place_N[row])
        index = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self._batches[index], place - int(self._starts[index])


def _ints(column: pa.ListArray, at: int) -> Ids:
    start, stop = column.offsets[at].as_py(), column.offsets[at + 1].as_py()
    return column.values.slice(start, stop - start).to_numpy()
