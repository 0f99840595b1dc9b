"""Rows and decisions as columns of the store, and back."""

from __future__ import annotations

import json
import sqlite3

from clsgen_dist.data.reading.label_cells import OTHERS
from clsgen_dist.errors import DataError
from clsgen_dist.review.classes import claimed
from clsgen_dist.review.decision import Decision, Issue, ReviewRow, Spans, Verdict
from clsgen_dist.review.schema import NO_DOUBT


def insert(store: sqlite3.Connection, row: ReviewRow, record: str) -> bool:
    """Add a row with its record; False if its id is there already. DataError if that one has another text."""
    there = store.execute("SELECT text FROM rows WHERE id = ?", (row.id,)).fetchone()
    if there is not None:
        if there["text"] != row.text:
            raise DataError(
                f"row {row.id!r} has another text than in the store; name another --store, or give the row another id"
            )
        return False
    number = store.execute(
        "INSERT INTO rows (id, record, text, label, answers, is_multilabel, explanations, evidence, counter_evidence, "
        "issues, issue_count, doubt, readings, open) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.id,
            record,
            row.text,
            row.label,
            json.dumps(row.answers),
            row.is_multilabel,
            json.dumps(row.explanations),
            json.dumps(row.evidence),
            json.dumps(row.counter_evidence),
            json.dumps([(issue.code, issue.detail) for issue in row.issues]),
            len(row.issues),
            NO_DOUBT if row.doubt is None else row.doubt,
            row.readings,
            row.readings,
        ),
    ).lastrowid
    for name in dict.fromkeys([*claimed(row.label, row.answers), *(name for name, _ in row.answers if name != OTHERS)]):
        store.execute("INSERT OR IGNORE INTO class_names VALUES (?)", (name,))
    for name in claimed(row.label, row.answers):
        store.execute("INSERT INTO row_classes VALUES (?, ?)", (name, number))
    for code in dict.fromkeys(issue.code for issue in row.issues):
        store.execute("INSERT INTO issue_codes VALUES (?, ?)", (code, number))
        store.execute(
            "INSERT INTO issue_totals VALUES (?, 1) ON CONFLICT (code) DO UPDATE SET row_count = row_count + 1", (code,)
        )
    return True


def row_of(found: sqlite3.Row) -> ReviewRow:
    """A row from its columns."""
    return ReviewRow(
        id=found["id"],
        text=found["text"],
        label=found["label"],
        answers=tuple((name, share) for name, share in json.loads(found["answers"])),
        is_multilabel=bool(found["is_multilabel"]),
        explanations=tuple(json.loads(found["explanations"])),
        evidence=_spans(json.loads(found["evidence"])),
        counter_evidence=_spans(json.loads(found["counter_evidence"])),
        issues=tuple(Issue(code, detail) for code, detail in json.loads(found["issues"])),
        doubt=None if found["doubt"] == NO_DOUBT else found["doubt"],
        number=found["number"],
        readings=found["readings"],
        is_disputed=bool(found["disputed"]),
    )


def content_of(made: Decision) -> str:
    """What the log keeps of a decision, as JSON."""
    names = ("label", "answers", "explanations", "evidence", "counter_evidence", "changed", "seconds")
    return json.dumps({name: getattr(made, name) for name in names}, ensure_ascii=False)


def decision_of(found: sqlite3.Row) -> Decision:
    """A decision from its entry in the log."""
    content = json.loads(found["content"])
    return Decision(
        verdict=Verdict(found["verdict"]),
        label=content["label"],
        answers=tuple((name, value) for name, value in content["answers"]),
        explanations=tuple(content["explanations"]),
        evidence=_spans(content["evidence"]),
        counter_evidence=_spans(content["counter_evidence"]),
        changed=tuple(content["changed"]),
        settles=bool(found["settles"]),
        seconds=content["seconds"],
        row=found["row"],
        reviewer=found["reviewer"],
        time=found["time"],
        entry=found["entry"],
    )


def _spans(pairs: list[list[int]]) -> Spans:
    return tuple((start, end) for start, end in pairs)
