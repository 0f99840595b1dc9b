"""The rows of a file to which explanations are added, and the file that has them.

Every row to which nothing is added is written as it is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clsgen_dist.data.example import Columns, Example
from clsgen_dist.data.reading.cells import is_missing
from clsgen_dist.data.reading.ingest import iter_rows, resolve_space
from clsgen_dist.data.reading.label_cells import Space
from clsgen_dist.data.reading.provenance_cells import provenance_cell
from clsgen_dist.data.reading.records import find_source, read_part
from clsgen_dist.data.reading.rejection import Fault, RejectedRow
from clsgen_dist.errors import DataError, SettingsError
from clsgen_dist.explanations.stated_class import ClassNames
from clsgen_dist.io.files import atomic_file, require_writable, writing


@dataclass
class ExplainedRows:
    """What was read, and what became of the rows to explain."""

    rows: int = 0
    bad: int = 0
    unlabelled: int = 0
    passed_over: int = 0
    """Labelled rows that need none: explained before; when explanations are paraphrased: without any."""
    to_explain: int = 0
    explained: int = 0
    """Those that got one."""
    kept: int = 0
    """Explanations, of which a row may have several."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Explanations that are not kept, by code."""
    replaced: int = 0
    """Explained rows whose column of provenance held something else."""


class RowsToExplain:
    """The rows of one file.

    Args:
        source: see :func:`clsgen_dist.data.reading.records.find_source`.
        columns: the names of its columns.
        labels: all classes; None: those of the rows.
        space: how label cells are read.

    Raises:
        DataError: the source cannot be read, or has no label.
    """

    def __init__(self, source: str, columns: Columns, labels: Sequence[str] | None, space: Space) -> None:
        self.part, self.columns, self._given = find_source(source), columns, labels
        self.space = resolve_space(source, columns, space)
        self.labels = list(labels) if labels else self._read_labels()
        self.names = ClassNames(self.labels)

    def __iter__(self) -> Iterator[Example | RejectedRow]:
        return iter_rows(self.part, columns=self.columns, labels=self._given, require_target=False, space=self.space)

    def _read_labels(self) -> list[str]:
        found: dict[str, None] = {}
        for row in self:
            if isinstance(row, Example):
                found |= dict.fromkeys(filter(None, (row.label, *(row.answers or ()))))
        if not found:
            raise DataError(
                f"{self.part.source} has no labels, so there is nothing to explain; name their column with "
                "--columns.label"
            )
        return sorted(found)

    def require_output(self, output: Path) -> None:
        """SettingsError if the rows cannot be written there."""
        if output.suffix.lower() != ".jsonl":
            raise SettingsError(
                f"--output is {output}, expected a name that ends in .jsonl: rows are written as JSON lines"
            )
        if output.exists() and Path(self.part.path).exists() and output.samefile(self.part.path):
            raise SettingsError(f"--output is {output}, the rows themselves; name another file")
        require_writable(output)

    def write(
        self, output: Path, explain: Callable[[Example], Sequence[str] | None], provenance: str, report: ExplainedRows
    ) -> None:
        """Write all rows in order, as JSON lines; a row with new explanations has all it has in a list.

        Args:
            output: the file.
            explain: new explanations of a row, perhaps none; None for a row that needs none.
            provenance: where they come from.
            report: counts the rows.
        """
        records = read_part(self.part, self.columns, every_column=True)
        with writing(output), atomic_file(output, durable=True, errors="backslashreplace") as file:
            for row, (_, record, raw) in zip(self, records, strict=True):
                report.rows += 1
                report.bad += isinstance(row, RejectedRow)
                new = self._new(row, explain, report) if isinstance(row, Example) else ()
                if isinstance(record, Fault):
                    raw = raw if self.part.kind == "jsonl" else ""
                elif new and isinstance(row, Example):
                    raw = _json_line({**record, **self._cells(record, row, new, provenance, report)})
                elif self.part.kind != "jsonl":
                    raw = _json_line(record)
                if raw:
                    file.write(raw + "\n")

    def _new(
        self, row: Example, explain: Callable[[Example], Sequence[str] | None], report: ExplainedRows
    ) -> Sequence[str]:
        """The new explanations of a row, counted."""
        new = explain(row)
        if new is None:
            report.unlabelled += not row.is_labelled
            report.passed_over += row.is_labelled
            return ()
        report.to_explain += 1
        report.kept += len(new)
        report.explained += bool(new)
        return new

    def _cells(
        self, record: dict[str, Any], row: Example, new: Sequence[str], provenance: str, report: ExplainedRows
    ) -> dict[str, Any]:
        """The columns of a row that has new explanations."""
        columns = self.columns
        cells: dict[str, Any] = {
            columns.explanations: [*row.explanations, *new],
            columns.provenance: provenance_cell([*row.provenance, *[provenance] * len(new)]),
        }
        if record.get(columns.explanation) is not None:
            cells[columns.explanation] = None  # it is in the list, or was rejected
        if row.rejected and columns.verdict:
            # The verdict was on the explanations that the row had, which are for preference training.
            cells |= {columns.verdict: None, columns.rejected or "rejected": row.rejected}
        elif not is_missing(record.get(columns.provenance)) and not any(row.provenance):
            report.replaced += 1  # what is said of rejected explanations goes with them; this says something else
        return cells


def is_to_explain(row: Example) -> bool:
    """Whether an explanation is missing that can be checked against a label."""
    return row.is_labelled and not row.explanations


def class_indices(row: Example, names: ClassNames) -> list[int]:
    """The places of a row's classes among all."""
    return [names.labels.index(name) for name in row.classes]


def _json_line(record: dict[str, Any]) -> str:
    """A row as JSON; what JSON has no form for, such as a date, as its text."""
    return json.dumps(record, ensure_ascii=False, default=str)
