"""Decisions back into rows: JSON lines with the original record, what was changed, and who decided what when.

Beside the record's own columns a row gets

    verdict    accepted or rejected, of its explanations; null where nobody decided, or readings disagree
    chosen     explanations that a reviewer accepted or wrote
    rejected   explanations that a reviewer rejected or replaced
    review     status (undecided, partly_read, decided, disputed), reviewer, time, decision, changed, seconds, notes,
               readings

which training reads with ``--data.columns.verdict verdict``, and so on. What a reviewer wrote has the ``provenance``
``human``; explanations that stay keep theirs. A row whose readings disagree is written as it
was: what it should be is for people to settle. What the record had in ``review`` is kept in ``review.earlier``.

Cost: one pass, one row in memory at a time, and all decisions.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clsgen_dist.data.reading.cells import Notice, Notices, written_explanations
from clsgen_dist.data.reading.provenance_cells import HUMAN, provenance_cell, provenance_of
from clsgen_dist.io.files import atomic_file, writing
from clsgen_dist.review.decision import Decision, ReviewRow, Verdict, judged
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
            convert = to_label_studio if kind == Format.LABEL_STUDIO else to_argilla
            separator = "[\n"
            for read in all_rows(store):
                file.write(separator + json.dumps(convert(read), ensure_ascii=False))
                counts[read.status] += 1
                separator = ",\n"
            file.write("\n]\n" if counts else "[]\n")
    return counts


def exported_rows(store: Store) -> Iterator[tuple[Read, dict[str, Any]]]:
    """Each row of a store with its record as the export writes it."""
    columns = columns_of(store)
    for read in all_rows(store):
        yield read, exported(read, columns)


def exported(read: Read, columns: dict[str, str]) -> dict[str, Any]:
    """A row's record with its decision."""
    record: dict[str, Any] = json.loads(read.record)
    made = read.outcome
    for name, empty in (("verdict", None), ("chosen", []), ("rejected", []), (columns["id"], read.row.id)):
        record.setdefault(name, empty)
    earlier = record.get("review")
    if made is not None:
        _change(record, read.row, made, columns)
        chosen, rejected = judged(read.row, made)
        is_bad = made.verdict == Verdict.REJECT or (bool(rejected) and not chosen)
        record |= {"verdict": "rejected" if is_bad else "accepted", "chosen": list(chosen), "rejected": list(rejected)}
    record["review"] = {
        "status": str(read.status),
        **(_decided_by(made) if made is not None else {}),
        "notes": [{"reviewer": name, "text": text} for name, text in read.notes],
        "readings": [_decided_by(one) | {"label": one.label} for one in read.decisions],
        **({} if earlier is None else {"earlier": earlier}),
    }
    return record


def _change(record: dict[str, Any], row: ReviewRow, made: Decision, columns: dict[str, str]) -> None:
    """Write into a record what a decision changed."""
    if "label" in made.changed:
        record[columns["label"]] = made.label
    if "explanations" in made.changed:
        _change_provenance(record, row, made, columns)
        had_list = record.pop(columns["explanations"], None) is not None
        record.pop(columns["explanation"], None)
        if had_list or len(made.explanations) > 1:
            record[columns["explanations"]] = list(made.explanations)
        else:
            record[columns["explanation"]] = next(iter(made.explanations), None)
    if "evidence" in made.changed:
        record[columns["evidence"]] = [list(span) for span in made.evidence]


def _change_provenance(record: dict[str, Any], row: ReviewRow, made: Decision, columns: dict[str, str]) -> None:
    """Explanations that stay keep theirs, those that the reviewer wrote are human; a cell that is not read stays."""
    notices: Notices = []
    written = written_explanations([record.get(columns[name]) for name in ("explanation", "explanations")], notices)
    stated = provenance_of(record.get(columns["provenance"]), written, row.explanations, notices)
    if Notice.UNREAD_PROVENANCE in dict(notices):
        return
    of_text = dict(zip(row.explanations, stated, strict=True))
    record[columns["provenance"]] = provenance_cell(of_text.get(text, HUMAN) for text in made.explanations)


def _decided_by(made: Decision) -> dict[str, Any]:
    time = dt.datetime.fromtimestamp(made.time, dt.UTC).isoformat(timespec="milliseconds")
    return {
        "reviewer": made.reviewer,
        "time": time,
        "decision": str(made.verdict),
        "changed": list(made.changed),
        "seconds": made.seconds,
    }
