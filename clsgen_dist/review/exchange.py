"""Label Studio's and Argilla's JSON: their annotations as rows, and decisions as their annotations.

    Label Studio   a list of tasks: data.text, annotations[].result[] with choices, textarea and labels (spans)
    Argilla 2      a list of records: fields.text, suggestions and responses by question, with value

Names that are read: the text is ``text`` (else the only text). In Label Studio the label is what has choices,
explanations are what was typed; in Argilla the label is the question ``label`` (else the first one with a text), other
texts are explanations. Evidence is what has start and end in both. Names that are written: ``label``, ``explanation``,
``evidence``. Of several annotations of a task the first that was not cancelled counts; the others are kept in the row's
column ``annotations``. Offsets count Unicode code points, as Label Studio's do.

Neither takes annotations of people whom it does not know: Label Studio gives annotations without ``completed_by`` to
whoever imports them, so reviewers are in ``meta``; Argilla's user ids are UUIDs, made from the names in
``metadata.reviewers``.

Sources: Label Studio's "Raw JSON format of completed tasks" and ``tasks/serializers.py``; Argilla 2's
``Record.to_dict`` and ``from_dict``.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from clsgen_dist.errors import DataError
from clsgen_dist.io.files import atomic_file, writing
from clsgen_dist.review.decision import Decision, ReviewRow, Spans
from clsgen_dist.review.overview import Read

_REVIEWERS = uuid.UUID("7b0c3c1e-5d0f-4b41-9d5e-1f6a1f0f2a11")
"""Namespace of the ids that stand for reviewers."""


class Format(StrEnum):
    """How a file of annotations is laid out."""

    ROWS = "rows"
    LABEL_STUDIO = "label-studio"
    ARGILLA = "argilla"


def write_as_rows(path: Path, kind: Format, rows: Path) -> int:
    """Write the annotations of a file as JSON lines that are read like any rows; how many there are.

    Raises:
        DataError: the file is not JSON of this kind.
    """
    try:
        items = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); export it as JSON again") from error
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DataError(f"{path} is {type(items).__name__} JSON, expected a list of {kind} objects; export it again")
    convert = from_label_studio if kind == Format.LABEL_STUDIO else from_argilla
    with writing(rows), atomic_file(rows) as file:
        for place, item in enumerate(items, start=1):
            try:
                row = convert(item)
            except (KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
                raise DataError(
                    f"{path}: item {place} is no {kind} object ({type(error).__name__}: {error}); export it again, or "
                    "name another --format"
                ) from error
            file.write(json.dumps({name: cell for name, cell in row.items() if cell not in (None, [])}) + "\n")
    return len(items)


# --- Label Studio --------------------------------------------------------------------------------------------------


def from_label_studio(task: dict[str, Any]) -> dict[str, Any]:
    """A task as a row."""
    data = dict(task["data"])
    text = _only_text(data)
    valid = [one for one in task.get("annotations") or () if not one.get("was_cancelled")]
    first: dict[str, Any] = next(iter(valid or task.get("predictions") or ()), {})
    found: dict[str, Any] = {"explanations": [], "evidence": []}
    chosen: dict[str, list[str]] = {}
    for result in first.get("result") or ():
        value = result.get("value") or {}
        chosen.setdefault(str(result.get("from_name")), []).extend(value.get("choices") or ())
        typed = value.get("text") if result.get("type") == "textarea" else ()
        found["explanations"] += [typed] if isinstance(typed, str) else typed or ()
        if "start" in value and "end" in value:
            found["evidence"].append([int(value["start"]), int(value["end"])])
    classes = chosen.get("label") or next(filter(None, chosen.values()), [])
    label = classes[0] if len(classes) == 1 else classes
    others = {"annotations": valid[1:]} if len(valid) > 1 else {}
    inner_id = data.pop("id", None)
    return {
        **data,
        "id": task.get("id") if inner_id is None else inner_id,
        "text": text,
        "label": label or data.get("label"),
        "explanations": found["explanations"] or data.get("explanations"),
        "evidence": found["evidence"] or data.get("evidence"),
        **others,
    }


def to_label_studio(read: Read) -> dict[str, Any]:
    """A row with all its readings as a task; the row as it was is its prediction."""
    row = read.row
    return {
        "id": row.number,
        "data": {"id": row.id, "text": row.text, "issues": [issue.code for issue in row.issues]},
        "annotations": [
            {
                "id": made.entry,
                "was_cancelled": False,
                "created_at": _time(made),
                "lead_time": made.seconds,
                "result": list(_results(made, row.text)),
                "meta": {"reviewer": made.reviewer, "decision": str(made.verdict), "changed": list(made.changed)},
            }
            for made in read.decisions
        ],
        "predictions": [{"model_version": "rows", "result": list(_results(row, row.text))}],
    }


def _results(held: Decision | ReviewRow, text: str) -> Iterator[dict[str, Any]]:
    if held.label is not None:
        yield _result("label", "choices", {"choices": [held.label]}, "label")
    if held.explanations:
        yield _result("explanation", "textarea", {"text": list(held.explanations)}, "explanation")
    for start, end in held.evidence:
        span = {"start": start, "end": end, "text": text[start:end], "labels": ["evidence"]}
        yield _result("evidence", "labels", span, f"evidence-{start}-{end}")


def _result(name: str, kind: str, value: dict[str, Any], identity: str) -> dict[str, Any]:
    return {"id": identity, "from_name": name, "to_name": "text", "type": kind, "value": value}


# --- Argilla -------------------------------------------------------------------------------------------------------


def from_argilla(record: dict[str, Any]) -> dict[str, Any]:
    """A record as a row; what people answered counts before what was suggested."""
    text = _only_text(dict(record["fields"]))
    suggested = {name: [one] for name, one in (record.get("suggestions") or {}).items() if one}
    answered = {
        name: given
        for name, answers in (record.get("responses") or {}).items()
        if (given := [one for one in answers or () if one.get("status") not in ("draft", "discarded")])
    }
    found: dict[str, Any] = {"label": None, "explanations": [], "evidence": []}
    for name, answers in (suggested | answered).items():
        value = answers[0]["value"]
        if isinstance(value, list) and value and isinstance(value[0], dict) and "start" in value[0]:
            found["evidence"] += [[int(span["start"]), int(span["end"])] for span in value]
        elif name == "label":
            found["label"] = value
        elif isinstance(value, str) and (name.startswith("explanation") or found["label"] is not None):
            found["explanations"].append(value)
        elif found["label"] is None:
            found["label"] = value
    others = {name: answers[1:] for name, answers in answered.items() if len(answers) > 1}
    metadata = dict(record.get("metadata") or {})
    return {**metadata, "id": record.get("id"), "text": text, **found, **({"annotations": others} if others else {})}


def to_argilla(read: Read) -> dict[str, Any]:
    """A row with all its readings as a record; the row as it was is its suggestions."""
    row = read.row

    def answers(label: str | None, explanations: Sequence[str], evidence: Spans) -> dict[str, Any]:
        spans = [{"start": start, "end": end, "label": "evidence"} for start, end in evidence]
        typed = {"explanation" if n == 0 else f"explanation_{n + 1}": text for n, text in enumerate(explanations)}
        return ({"label": label} if label is not None else {}) | typed | ({"evidence": spans} if spans else {})

    responses: dict[str, list[dict[str, Any]]] = {}
    for made in read.decisions:
        for name, value in answers(made.label, made.explanations, made.evidence).items():
            user = str(uuid.uuid5(_REVIEWERS, made.reviewer))
            responses.setdefault(name, []).append({"value": value, "user_id": user})
    suggestions = answers(row.label, row.explanations, row.evidence)
    last = read.decisions[-1] if read.decisions else None
    names = [made.reviewer for made in read.decisions]
    return {
        "id": row.id,
        "status": "completed" if len(read.decisions) >= row.readings else "pending",
        "fields": {"text": row.text},
        "metadata": {"decision": str(last.verdict), "decided_at": _time(last), "reviewers": names} if last else {},
        "suggestions": {name: {"value": value, "score": None, "agent": "rows"} for name, value in suggestions.items()},
        "responses": responses,
        "vectors": {},
    }


def _time(made: Decision) -> str:
    return dt.datetime.fromtimestamp(made.time, dt.UTC).isoformat(timespec="milliseconds")


def _only_text(cells: dict[str, Any]) -> str:
    """The text among named cells."""
    if isinstance(cells.get("text"), str):
        return cells["text"]
    texts = [cell for name, cell in cells.items() if isinstance(cell, str) and name != "id"]
    if len(texts) != 1:
        raise ValueError(f"it has the texts {', '.join(cells) or '(none)'}, expected one called 'text'")
    return texts[0]
