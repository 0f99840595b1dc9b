"""Decisions back into rows: JSON lines with the original record, what was changed, and who decided what when.

Explanations that a reviewer rejected or replaced leave their column. Beside the record's own columns a row gets

    chosen     explanations that a reviewer accepted or wrote
    rejected   explanations that a reviewer rejected or replaced, for ``--data.columns.rejected rejected``
    review     status (undecided, partly_read, decided, disputed, settled), reviewer, time, decision, changed, seconds,
               notes, readings

So the file trains on nothing that was rejected, and ``clsgen data explain`` finds what lacks an explanation now. What a
reviewer wrote has the ``provenance`` ``human``; explanations that stay keep theirs. A row whose readings disagree is
written as it was until a third person has settled it. What the record had in ``review`` is kept in ``review.earlier``.

Cost: one pass, one row in memory at a time, and all decisions.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from clsgen_dist.data.reading.cells import Notice, Notices, written_explanations
from clsgen_dist.data.reading.provenance_cells import HUMAN, provenance_cell, provenance_of
from clsgen_dist.io.files import atomic_file, writing
from clsgen_dist.review.classes import label_cell
from clsgen_dist.review.decision import Decision, ReviewRow, judged
from clsgen_dist.review.exchange import Format, to_argilla, to_label_studio
from clsgen_dist.review.import_rows import columns_of
from clsgen_dist.review.overview import Read, all_rows
from clsgen_dist.review.store import Store


def export(store: Store, path: Path, kind: Format = Format.ROWS) -> Counter[str]:
    """Write all rows of a store; all of the file, or nothing.

    Returns:
        How many rows have which status.
    """
    counts: Counter[str] = Counter()
    # A lone surrogate in one of the record's other columns, which UTF-8 has no bytes for, becomes JSON's own escape.
    with writing(path), atomic_file(path, durable=True, errors="backslashreplace") as file:
        if kind == Format.ROWS:
            for read, row in exported_rows(store):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                counts[read.status] += 1
        else:
            labels, columns = store.labels(), columns_of(store)
            convert = partial(to_argilla, columns=columns)
            if kind == Format.LABEL_STUDIO:
                convert = partial(to_label_studio, labels=labels, columns=columns)
            separator = "[\n"
            for read in all_rows(store):
                file.write(separator + json.dumps(convert(read), ensure_ascii=False))
                counts[read.status] += 1
                separator = ",\n"
            file.write("\n]\n" if counts else "[]\n")
    return counts


def exported_rows(store: Store) -> Iterator[tuple[Read, dict[str, Any]]]:
    """Each row of a store with its record as the export writes it."""
    columns, labels = columns_of(store), store.labels()
    for read in all_rows(store):
        yield read, exported(read, columns, labels)


def exported(read: Read, columns: dict[str, str], labels: Sequence[str]) -> dict[str, Any]:
    """A row's record with its decision; ``labels`` are all classes, which a multi-label cell may have to name."""
    record: dict[str, Any] = json.loads(read.record)
    made = read.outcome
    for name, empty in (("chosen", []), ("rejected", []), (columns["id"], read.row.id)):
        record.setdefault(name, empty)
    earlier = record.get("review")
    if made is not None:
        chosen, rejected = judged(read.row, made)
        _change(record, read.row, made, chosen, columns, labels)
        record |= {"chosen": list(chosen), "rejected": list(rejected)}
    record["review"] = {
        "status": str(read.status),
        **(_decided_by(made) if made is not None else {}),
        "notes": [{"reviewer": name, "text": text} for name, text in read.notes],
        "readings": [_decided_by(one) | {"label": label_cell(one.label, one.answers, labels)} for one in read.readings],
        **({} if earlier is None else {"earlier": earlier}),
    }
    return record


def _change(
    record: dict[str, Any],
    row: ReviewRow,
    made: Decision,
    chosen: tuple[str, ...],
    columns: dict[str, str],
    labels: Sequence[str],
) -> None:
    """Write into a record what a decision changed, with the explanations that were chosen."""
    if "label" in made.changed:
        record[columns["label"]] = label_cell(made.label, made.answers, labels)
    if chosen != row.explanations:
        _change_provenance(record, row, chosen, columns)
        had_list = record.pop(columns["explanations"], None) is not None
        record.pop(columns["explanation"], None)
        if had_list or len(chosen) > 1:
            record[columns["explanations"]] = list(chosen)
        else:
            record[columns["explanation"]] = next(iter(chosen), None)
    for name, spans in (("evidence", made.evidence), ("counter_evidence", made.counter_evidence)):
        if name in made.changed:
            record[columns[name]] = [list(span) for span in spans]


def _change_provenance(
    record: dict[str, Any], row: ReviewRow, chosen: tuple[str, ...], columns: dict[str, str]
) -> None:
    """Explanations that stay keep theirs, those that the reviewer wrote are human; a cell that is not read stays."""
    notices: Notices = []
    written = written_explanations([record.get(columns[name]) for name in ("explanation", "explanations")], notices)
    stated = provenance_of(record.get(columns["provenance"]), written, row.explanations, notices)
    if Notice.UNREAD_PROVENANCE in dict(notices):
        return
    of_text = dict(zip(row.explanations, stated, strict=True))
    record[columns["provenance"]] = provenance_cell(of_text.get(text, HUMAN) for text in chosen)


def _decided_by(made: Decision) -> dict[str, Any]:
    time = dt.datetime.fromtimestamp(made.time, dt.UTC).isoformat(timespec="milliseconds")
    return {
        "reviewer": made.reviewer,
        "time": time,
        "decision": str(made.verdict),
        "changed": list(made.changed),
        "seconds": made.seconds,
    }
