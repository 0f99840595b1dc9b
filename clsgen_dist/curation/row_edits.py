"""A copy of a file in which some cells of some rows have other values, and all else is what it was.

Of JSON lines and CSV only the bytes of those cells change: numbers keep their digits, strings their escapes, cells
their quotes, lines their ends. Parquet rows keep the schema. Cost: one pass; memory of a row, for Parquet of a batch.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from clsgen_dist.curation.raw_rows import PARQUET_ROWS, compressed, raw_rows
from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.columns import ColumnNames
from clsgen_dist.data.reading.records import csv_head
from clsgen_dist.data.reading.sniff import kind_of_file, open_bytes
from clsgen_dist.io.files import atomic_file

Cells = dict[str, Any]
"""A row's cells, named as in ``Columns``."""
Edit = Callable[[Cells], Cells]
"""From a row's cells to those that change, with their new values."""
EditedRow = tuple[int, Edit | None]
"""The line that a row begins in (its number in Parquet files); None leaves it as it is."""

_BLANKS = re.compile(r"[ \t\r\n,:]*")
"""What is between the values of a valid JSON object."""


def write_edited(
    source: Path, output: Path, columns: Columns, rows: Iterable[EditedRow], needed: Collection[str]
) -> None:
    """Copy a .jsonl, .csv or .parquet file to one of the same kind; it appears once it is complete and on disk.

    Args:
        source: the file.
        output: the copy; compressed if its name ends in .gz.
        columns: the names of its columns.
        rows: every row that its reader finds, in order.
        needed: the cells that edits look at; of Parquet files they are given no others.
    """
    names, kind = ColumnNames(columns, every=True), kind_of_file(source)
    with atomic_file(output, "wb", durable=True) as file:
        if kind == "parquet":
            _write_parquet(source, file, names, rows, needed)
            return
        change = _json_line(names) if kind == "jsonl" else _csv_record(source, names)
        with compressed(file, output) as target:
            for edit, lines in raw_rows(source, rows):
                target.writelines(lines if edit is None else [change(b"".join(lines).decode(), edit).encode()])


def _json_line(names: ColumnNames) -> Callable[[str, Edit], str]:
    decoder = json.JSONDecoder()

    def change(text: str, edit: Edit) -> str:
        place, spans, cells = text.index("{") + 1, dict[str, tuple[int, int]](), Cells()
        while text[place := _after_blanks(text, place)] != "}":
            name, place = decoder.raw_decode(text, place)
            start = _after_blanks(text, place)
            cells[names.of(name)], place = decoder.raw_decode(text, start)
            spans[names.of(name)] = start, place  # of equal names the last counts, as for the reader
        is_escaped = text.isascii()
        return _replaced(text, {spans[n]: json.dumps(v, ensure_ascii=is_escaped) for n, v in edit(cells).items()})

    return change


def _after_blanks(text: str, place: int) -> int:
    found = _BLANKS.match(text, place)
    return found.end() if found else place


def _csv_record(source: Path, names: ColumnNames) -> Callable[[str, Edit], str]:
    with open_bytes(source) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        first, delimiter, _ = csv_head(text, names)
        header = [names.of(name) for name in next(csv.reader(itertools.chain([first], text), delimiter=delimiter))]
    cell = re.compile(rf'"(?:[^"]+|"")*"|[^{re.escape(delimiter)}\r\n]*')

    def spans(text: str) -> Iterator[tuple[int, int]]:
        place = 0
        for _ in header:
            found = cell.match(text, place)
            assert found
            yield found.span()
            place = found.end() + 1

    def change(text: str, edit: Edit) -> str:
        places = dict(zip(header, spans(text), strict=True))
        cells = {name: _unquoted(text[start:end]) for name, (start, end) in places.items()}
        return _replaced(text, {places[name]: _csv_cell(value, delimiter) for name, value in edit(cells).items()})

    return change


def _unquoted(cell: str) -> str | None:
    return (cell[1:-1].replace('""', '"') if cell.startswith('"') else cell) or None


def _csv_cell(value: Any, delimiter: str) -> str:
    """A value as a CSV cell; a list as its JSON."""
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    is_plain = text.isprintable() and '"' not in text and delimiter not in text
    return text if is_plain else '"' + text.replace('"', '""') + '"'


def _replaced(text: str, by_span: dict[tuple[int, int], str]) -> str:
    for (start, end), value in sorted(by_span.items(), reverse=True):
        text = text[:start] + value + text[end:]
    return text


def _write_parquet(
    source: Path, file: IO[bytes], names: ColumnNames, rows: Iterable[EditedRow], needed: Collection[str]
) -> None:
    import pyarrow
    import pyarrow.parquet

    table, edits = pyarrow.parquet.ParquetFile(source), (edit for _, edit in rows)
    known = [names.of(name) for name in table.schema_arrow.names]
    places = {name: place for place, name in enumerate(known) if name in needed}
    with pyarrow.parquet.ParquetWriter(file, table.schema_arrow) as writer:
        for batch in table.iter_batches(PARQUET_ROWS):
            cells_of = {name: batch.column(place).to_pylist() for name, place in places.items()}
            changed: set[str] = set()
            for row, edit in enumerate(itertools.islice(edits, len(batch))):
                if edit is not None:
                    for name, value in edit({name: cells[row] for name, cells in cells_of.items()}).items():
                        cells_of[name][row] = value
                        changed.add(name)
            for name in sorted(changed):
                field = batch.schema.field(places[name])
                batch = batch.set_column(places[name], field, pyarrow.array(cells_of[name], type=field.type))
            writer.write_batch(batch)
