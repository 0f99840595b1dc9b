"""The rows of a file of which some lack an explanation, and the file in which they have one.

A row is to explain if it has a label, which an explanation can be checked against, and no explanation. Every other row
is written as it is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clsgen_dist.data.example import Columns, Example
from clsgen_dist.data.reading.ingest import iter_rows, resolve_space
from clsgen_dist.data.reading.label_cells import Space
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
    had_explanation: int = 0
    unlabelled: int = 0
    to_explain: int = 0
    """Rows that lack an explanation and have a label."""
    explained: int = 0
    kept: int = 0
    """Explanations, of which a row may have several."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Explanations that are not kept, by code."""


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

    def classes(self, row: Example) -> tuple[str, ...]:
        """The names of a row's classes."""
        if row.label is not None:
            return (row.label,)
        return tuple(name for name, answer in (row.answers or {}).items() if name and answer >= 0.5)

    def class_indices(self, row: Example) -> list[int]:
        """Their places among ``labels``."""
        return [self.labels.index(name) for name in self.classes(row)]

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
        self, output: Path, explain: Callable[[Example], Sequence[str]], provenance: str, report: ExplainedRows
    ) -> None:
        """Write all rows in order, as JSON lines; those explained have two more columns.

        Args:
            output: the file.
            explain: the explanations of a row to explain; none leaves the row as it is.
            provenance: where they come from.
            report: counts the rows.
        """
        records = read_part(self.part, self.columns, every_column=True)
        with writing(output), atomic_file(output, durable=True, errors="backslashreplace") as file:
            for row, (_, record, raw) in zip(self, records, strict=True):
                explanations: Sequence[str] = ()
                report.rows += 1
                if isinstance(row, RejectedRow):
                    report.bad += 1
                elif is_to_explain(row):
                    report.to_explain += 1
                    explanations = explain(row)
                    report.kept += len(explanations)
                    report.explained += bool(explanations)
                else:
                    report.had_explanation += bool(row.explanations)
                    report.unlabelled += not row.explanations
                if isinstance(record, Fault):
                    raw = raw if self.part.kind == "jsonl" else ""
                elif explanations:
                    raw = _json_line(
                        {**record, self.columns.explanations: list(explanations), "provenance": provenance}
                    )
                elif self.part.kind != "jsonl":
                    raw = _json_line(record)
                if raw:
                    file.write(raw + "\n")


def is_to_explain(row: Example) -> bool:
    """Whether an explanation is missing that can be checked against a label."""
    return row.is_labelled and not row.explanations


def _json_line(record: dict[str, Any]) -> str:
    """A row as JSON; what JSON has no form for, such as a date, as its text."""
    return json.dumps(record, ensure_ascii=False, default=str)
