"""``clsgen data thin``: explanations that are nearly the same are kept a few times in each class; the rows all stay.

A row without the explanation still trains the classification head. Of those that are the same
(:mod:`clsgen_dist.curation.near_explanations`) the first ones of the file are kept: what is kept stays kept when rows
are added at the end. Everything else in the file stays as it is (:mod:`clsgen_dist.curation.row_edits`).

Cost: two passes over the file; 2.5 KB of memory for each different explanation, 8 KB where all are alike.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clsgen_dist.curation.diversity import DiversitySamples
from clsgen_dist.curation.near_explanations import NearExplanations
from clsgen_dist.curation.row_checks import MAX_NAMED
from clsgen_dist.curation.row_edits import Cells, Edit, EditedRow, write_edited
from clsgen_dist.curation.row_facts import classes_of
from clsgen_dist.curation.row_source import RowSource, row_source
from clsgen_dist.data.checks.diversity import ClassDiversity
from clsgen_dist.data.example import Columns, Example
from clsgen_dist.data.reading.cells import Notice, Notices, explanations_of, list_in_text, written_explanations
from clsgen_dist.data.reading.label_cells import Space
from clsgen_dist.data.reading.provenance_cells import provenance_of
from clsgen_dist.data.reading.records import find_source
from clsgen_dist.data.reading.sniff import kind_of_file
from clsgen_dist.errors import DataError, SettingsError
from clsgen_dist.explanations.stated_class import ClassNames
from clsgen_dist.io.files import require_writable, writing
from clsgen_dist.io.tables import markdown_table
from clsgen_dist.io.text import quoted, row_count_phrase

Label = tuple[str, ...]
"""A row's classes; none without label."""


@dataclass
class ThinReport:
    """What was removed."""

    keep: int
    rows: int = 0
    bad: int = 0
    """Rows that cannot be read; they stay as they are."""
    emptied: int = 0
    """Rows that have no explanation left."""
    explanations: Counter[Label] = field(default_factory=Counter)
    removed: Counter[Label] = field(default_factory=Counter)
    groups: Counter[Label] = field(default_factory=Counter)
    """Groups of which explanations were removed."""
    largest: Counter[Label] = field(default_factory=Counter)
    """Explanations of the largest group."""
    before: list[ClassDiversity] = field(default_factory=list)
    """How different the explanations of the largest classes were, and are."""
    after: list[ClassDiversity] = field(default_factory=list)
    is_lower_bound: bool = False
    """Whether some explanations were not compared, so that more may be nearly the same."""


def thin(
    path: str, output: Path, *, keep: int, near: float = 0.8, columns: Columns, space: Space = "auto"
) -> ThinReport:
    """Copy a file of rows without the explanations that repeat others of their class too often.

    Args:
        path: a .jsonl, .csv or .parquet file.
        output: the copy, a file of the same kind.
        keep: explanations of each group that stay.
        near: Jaccard index from which two explanations are near duplicates.
        columns: the names of the file's columns; explanations in ``chosen`` and ``rejected`` are left alone.
        space: how label cells are read.

    Raises:
        DataError: the file cannot be read as rows, or changed meanwhile.
        SettingsError: the output is of another kind, the file itself, or cannot be written.
    """
    part = find_source(path)
    if part.kind not in ("jsonl", "csv", "parquet"):
        raise DataError(f"{path} is no file, expected a .jsonl, .csv or .parquet file; save the rows as one")
    file = Path(part.path)
    if kind_of_file(output) != part.kind:
        raise SettingsError(f"--output is {output}, expected a file like the input's, {file.name}: give it that suffix")
    if output.exists() and output.samefile(file):
        raise SettingsError(f"--output is {output}, the rows themselves; name another file")
    require_writable(output)
    columns = dataclasses.replace(columns, chosen=None, rejected=None)
    source, state = row_source(path, columns, None, space), _state(file)
    known, names = _survey(source, near)
    report = ThinReport(keep, is_lower_bound=known.is_lower_bound)

    def rows() -> Iterator[EditedRow]:
        try:
            yield from _thinned(source, known, names, report)
        except KeyError:
            raise _changed(file) from None
        if _state(file) != state:
            raise _changed(file)

    with writing(output):
        write_edited(file, output, columns, rows(), (columns.explanation, columns.explanations, columns.provenance))
    return report


def _state(file: Path) -> tuple[int, int]:
    known = file.stat()
    return known.st_size, known.st_mtime_ns


def _changed(file: Path) -> DataError:
    return DataError(f"{file} changed while it was read; thin it again once it is complete")


def _survey(source: RowSource, near: float) -> tuple[NearExplanations, ClassNames]:
    """The first pass: groups of explanations, and the classes."""
    found, classes = NearExplanations(), set[str]()
    for row in source.all_rows():
        if isinstance(row, Example):
            label = classes_of(row)
            if len(classes) <= MAX_NAMED:
                classes |= set(label)
            for explanation in row.explanations:
                found.add(label, row.text, explanation)
    found.link(near)
    return found, ClassNames(sorted(classes) if len(classes) <= MAX_NAMED else [])


def _thinned(source: RowSource, known: NearExplanations, names: ClassNames, report: ThinReport) -> Iterator[EditedRow]:
    """The second pass: what is removed from each row; counts and measures on the way."""
    seen, before, after = Counter[int](), DiversitySamples(names), DiversitySamples(names)
    for row in source.all_rows():
        report.rows += 1
        if not isinstance(row, Example):
            report.bad += 1
            yield row.line, None
            continue
        label, removed = classes_of(row), set[str]()
        for explanation in row.explanations:
            group = known.group(label, explanation)
            seen[group] += 1
            if seen[group] > report.keep:
                removed.add(explanation)
            report.groups[label] += seen[group] == report.keep + 1
            report.largest[label] = max(report.largest[label], seen[group])
        report.explanations[label] += len(row.explanations)
        report.removed[label] += len(removed)
        report.emptied += bool(removed) and len(removed) == len(row.explanations)
        before.add(row)
        after.add(dataclasses.replace(row, explanations=tuple(e for e in row.explanations if e not in removed)))
        yield row.line, _removal(removed, source.columns) if removed else None
    report.before, report.after = before.measure("before"), after.measure("after")


def _removal(removed: set[str], columns: Columns) -> Edit:
    """The edit that takes explanations from a row, and their entries from its list of origins."""

    def edit(cells: Cells) -> Cells:
        changed = Cells()
        for name in (columns.explanation, columns.explanations):
            if removed.intersection(explanations_of((cells.get(name),), [])):
                changed[name] = _without(cells[name], removed)
        if isinstance(origins := _origins_left(cells, changed, columns), list):
            is_text = isinstance(cells[columns.provenance], str)
            changed[columns.provenance] = json.dumps(origins, ensure_ascii=False) if is_text else origins
        return changed

    return edit


def _origins_left(cells: Cells, changed: Cells, columns: Columns) -> list[str | None] | None:
    """The list of origins of what is left; None where the cell has one for all, or another meaning."""
    cell, names = cells.get(columns.provenance), (columns.explanation, columns.explanations)
    notices: Notices = []
    written = written_explanations([cells.get(name) for name in names], [])
    stated = provenance_of(cell, written, written, notices)
    if Notice.UNREAD_PROVENANCE in dict(notices) or not (
        isinstance(cell, (list, tuple)) or (isinstance(cell, str) and list_in_text(cell) is not None)
    ):
        return None
    of_text = dict(reversed(list(zip(written, stated, strict=True))))
    return [of_text[text] for text in written_explanations([changed.get(n, cells.get(n)) for n in names], [])]


def _without(cell: Any, removed: set[str]) -> Any:
    """A cell without these explanations, of the same kind: a list, the text of a list, or one explanation."""
    if isinstance(cell, (list, tuple)):
        return [left for item in cell if (left := _without(item, removed)) is not None]
    if isinstance(cell, str) and (items := list_in_text(cell)) is not None:
        left = _without(items, removed)
        return json.dumps(left, ensure_ascii=False) if left else None
    return None if cell in removed else cell


def to_text(report: ThinReport, output: str) -> str:
    """The report as plain text: removed explanations by class, then how different they are before and after."""
    rows = [["class", "explanations", "removed", f"groups of more than {report.keep}", "largest group"]]
    for label in sorted(report.explanations, key=lambda label: (-report.removed[label], label)):
        if report.explanations[label]:
            counts = (report.explanations[label], report.removed[label], report.groups[label], report.largest[label])
            rows.append([", ".join(map(quoted, label)) or "(no label)", *map(str, counts)])
    parts = [markdown_table(rows)] if len(rows) > 1 else []
    after = {row.label: row for row in report.after}
    measured = [row.cells() for was in report.before for row in (was, after[was.label])]
    if measured:
        parts.append(markdown_table([list(measured[0]), *(list(row.values()) for row in measured)]))
    at_least = ", at least: some were not compared" if report.is_lower_bound else ""
    parts.append(
        f"{report.removed.total()} of {report.explanations.total()} explanations removed{at_least}; "
        f"{row_count_phrase(report.emptied, 'has', 'have')} none left and will train the classification head alone"
        + (f"; {row_count_phrase(report.bad, 'is', 'are')} bad and left as they are" if report.bad else "")
    )
    parts.append(f"written: {output}")
    return "\n\n".join(parts)
