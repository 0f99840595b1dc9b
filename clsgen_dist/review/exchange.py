"""Label Studio's and Argilla's JSON: their annotations as rows, and decisions as their annotations.

    Label Studio   a list of tasks: data.text, annotations[].result[] with choices, textarea and labels (spans)
    Argilla 2      a list of records: fields.text, suggestions and responses by question, with value

Names that are read: the text is ``text`` (else the only text). In Label Studio the label is what has choices,
explanations are what was typed; in Argilla the label is the question ``label`` (else the first one with a text), other
texts are explanations. Evidence is what has start and end in both, counter-evidence what is labelled so. Names that are
written: ``label``, ``explanation``, ``evidence`` with the labels ``evidence`` and ``counter_evidence``. Of several
annotations of a task the ground truth counts, else the first that was not cancelled; the others are kept in the row's
column ``annotations``. Offsets count Unicode code points, as Label Studio's do.

A row's other columns go along: in a task's data, and in a record's metadata as JSON. An explanation that somebody typed
there has the ``provenance`` ``human``; the row's own keep theirs.

Both know of a class only whether it was chosen: of multi-label rows the classes that are more likely than not are
written, and probabilities and what is not known are lost. Label Studio's server exports only the ids of predictions, so
a task's data has the row's label, explanations and evidence too. They count where a task has no annotation, and where
no annotation of the file answers the question; else what an annotation leaves out is not there.

Neither takes annotations of people whom it does not know: Label Studio gives annotations without ``completed_by`` to
whoever imports them, and its server drops ``meta``, where reviewers are; Argilla's user ids are UUIDs, made from the
names in ``metadata.reviewers``.

Sources: Label Studio's "Raw JSON format of completed tasks" and ``tasks/serializers.py``; Argilla 2's
``Record.to_dict`` and ``from_dict``.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from clsgen_dist.data.reading.label_cells import Space
from clsgen_dist.data.reading.provenance_cells import HUMAN, provenance_cell, provenance_of
from clsgen_dist.errors import DataError
from clsgen_dist.io.files import atomic_file, writing
from clsgen_dist.review.classes import claimed, label_cell
from clsgen_dist.review.decision import Decision, ReviewRow
from clsgen_dist.review.overview import Read

logger = logging.getLogger(__name__)

_REVIEWERS = uuid.UUID("7b0c3c1e-5d0f-4b41-9d5e-1f6a1f0f2a11")
"""Namespace of the ids that stand for reviewers."""


_ROW = "row"
"""In an Argilla record's metadata, whose values are single ones: the row's other columns, as JSON."""


class Format(StrEnum):
    """How a file of annotations is laid out."""

    ROWS = "rows"
    LABEL_STUDIO = "label-studio"
    ARGILLA = "argilla"


def write_as_rows(path: Path, kind: Format, rows: Path, space: Space = "auto") -> int:
    """Write the annotations of a file as JSON lines that are read like any rows; how many there are.

    Args:
        path: JSON file.
        kind: its layout.
        rows: file to write.
        space: of the labels; ``auto`` has several where one of the annotations has.

    Raises:
        DataError: the file is not JSON of this kind.
    """
    try:
        items = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); export it as JSON again") from error
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DataError(f"{path} is {type(items).__name__} JSON, expected a list of {kind} objects; export it again")
    is_label_studio = kind == Format.LABEL_STUDIO
    convert = partial(from_label_studio, asked=_answered_kinds(items)) if is_label_studio else from_argilla
    converted = []
    for place, item in enumerate(items, start=1):
        try:
            converted.append(convert(item))
        except (KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
            raise DataError(
                f"{path}: item {place} is no {kind} object ({type(error).__name__}: {error}); export it again, or "
                "name another --format"
            ) from error
    chosen = [row["label"] for row in converted if isinstance(row["label"], list)]
    is_multilabel = space == "multilabel" or any(len(classes) > 1 for classes in chosen)
    outside = sum(_without_spans_outside(row) for row in converted)
    if outside:
        logger.warning("%s: %d spans of evidence are not within their text and are left out", path, outside)
    with writing(rows), atomic_file(rows) as file:
        for row in converted:
            if isinstance(row["label"], list) and not is_multilabel:
                row["label"] = next(iter(row["label"]), None)
            kept = {name: cell for name, cell in row.items() if cell is not None and (cell != [] or name == "label")}
            file.write(json.dumps(kept) + "\n")
    return len(items)


def _without_spans_outside(row: dict[str, Any]) -> int:
    """Leave out spans that are not within the row's text; how many there were."""
    left_out = 0
    for name in ("evidence", "counter_evidence"):
        spans = row.get(name) or []
        if all(isinstance(span, list) for span in spans):
            row[name] = [span for span in spans if 0 <= span[0] < span[1] <= len(row["text"])]
            left_out += len(spans) - len(row[name])
    return left_out


# --- Label Studio --------------------------------------------------------------------------------------------------


_CHOICES, _TYPED, _SPANS = "choices", "text", "start"
"""What the value of a result has, by its kind."""


def _annotation(task: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The annotation that counts, empty without one, and the other valid ones."""
    valid = [one for one in task.get("annotations") or () if not one.get("was_cancelled")]
    valid.sort(key=lambda one: not one.get("ground_truth"))
    predictions = [one for one in task.get("predictions") or () if isinstance(one, dict)]
    return next(iter(valid or predictions), {}), valid[1:]


def _answered_kinds(tasks: Sequence[dict[str, Any]]) -> set[str]:
    """The kinds of results that annotations of a file have."""
    annotations = [one for task in tasks for one in task.get("annotations") or () if isinstance(one, dict)]
    values = [result.get("value") or {} for one in annotations for result in one.get("result") or ()]
    return {kind for kind in (_CHOICES, _TYPED, _SPANS) if any(kind in value and _is(kind, value) for value in values)}


def _is(kind: str, value: dict[str, Any]) -> bool:
    return kind != _TYPED or _SPANS not in value  # a span has its text too


def from_label_studio(task: dict[str, Any], asked: Collection[str] = ()) -> dict[str, Any]:
    """A task as a row; ``asked`` are the kinds of results that an annotation would have."""
    data = dict(task["data"])
    text = _only_text(data)
    counted, others = _annotation(task)
    chosen: dict[str, list[str]] = {}
    found: dict[str, Any] = {"explanations": [], "evidence": [], "counter_evidence": []}
    for result in counted.get("result") or ():
        value = result.get("value") or {}
        if _SPANS in value and "end" in value:
            found[_side(*(value.get("labels") or ()))].append([int(value["start"]), int(value["end"])])
        elif _CHOICES in value:
            chosen.setdefault(str(result.get("from_name")), []).extend(value["choices"] or ())
        elif _TYPED in value:
            found["explanations"] += [value["text"]] if isinstance(value["text"], str) else value["text"] or ()
    found["label"] = chosen.get("label", next(iter(chosen.values()), None))
    before = [text for text in data.get("explanations") or () if isinstance(text, str)]
    is_typed = bool(found["explanations"]) and counted in (task.get("annotations") or ())
    kinds = {"label": _CHOICES, "explanations": _TYPED, "evidence": _SPANS, "counter_evidence": _SPANS}
    for name, kind in kinds.items():
        if not found[name] and not (counted and kind in asked):
            found[name] = data.get(name)
        elif name == "explanations":
            data.pop("explanation", None)
    inner_id = data.pop("id", None)
    row = {
        **data,
        "id": task.get("id") if inner_id is None else inner_id,
        "text": text,
        **found,
        **({"annotations": others} if others else {}),
    }
    return _with_provenance(row, before, is_typed)


def to_label_studio(read: Read, labels: Sequence[str], columns: Mapping[str, str]) -> dict[str, Any]:
    """A row with all its readings as a task; the row as it was is its prediction.

    Args:
        read: the row.
        labels: all classes.
        columns: how the columns are called that the task's own fields stand for.
    """
    row = read.row
    return {
        "id": row.number,
        "data": {
            **_other_columns(read, columns),
            "id": row.id,
            "text": row.text,
            "issues": _issues(row),
            "label": label_cell(row.label, row.answers, labels),
            "explanations": row.explanations,
            "evidence": row.evidence,
            "counter_evidence": row.counter_evidence,
        },
        "annotations": [
            {
                "id": made.entry,
                "was_cancelled": False,
                "ground_truth": made == read.outcome,
                "created_at": _time(made),
                "lead_time": made.seconds,
                "result": list(_results(made, row.text)),
                "meta": {"reviewer": made.reviewer, "decision": str(made.verdict), "changed": list(made.changed)},
            }
            for made in read.decisions
        ],
        "predictions": [{"model_version": "rows", "result": list(_results(row, row.text))}],
    }


def _other_columns(read: Read, columns: Mapping[str, str]) -> dict[str, Any]:
    """The record's columns that have no field of their own; ``provenance`` under that name."""
    record = json.loads(read.record)
    stated = record.get(columns["provenance"])
    named = {*columns.values(), "text", "label", "explanation", "explanations", "issues"}
    others = {name: cell for name, cell in record.items() if name not in named}
    return others if stated is None else {**others, "provenance": stated}


def _issues(row: ReviewRow) -> list[dict[str, str]]:
    return [{"code": issue.code, "detail": issue.detail} for issue in row.issues]


def _with_provenance(row: dict[str, Any], before: Sequence[str], is_answered: bool) -> dict[str, Any]:
    """A row whose explanations say where they came from: those that somebody typed are human, others keep theirs.

    Args:
        row: the row, with the ``provenance`` that its explanations had before.
        before: these explanations.
        is_answered: whether a person gave the explanations.
    """
    if not is_answered or not row["explanations"]:
        return row
    stated = provenance_of(row.get("provenance"), before, before, [])
    of_text = dict(zip(before, stated, strict=True))
    return {**row, "provenance": provenance_cell(of_text.get(text, HUMAN) for text in row["explanations"])}


def _results(held: Decision | ReviewRow, text: str) -> Iterator[dict[str, Any]]:
    if held.label is not None or held.answers:
        yield _result("label", "choices", {"choices": list(claimed(held.label, held.answers))}, "label")
    if held.explanations:
        yield _result("explanation", "textarea", {"text": list(held.explanations)}, "explanation")
    for name, spans in (("evidence", held.evidence), ("counter_evidence", held.counter_evidence)):
        for start, end in spans:
            span = {"start": start, "end": end, "text": text[start:end], "labels": [name]}
            yield _result("evidence", "labels", span, f"{name}-{start}-{end}")


def _side(*labels: str) -> str:
    """Whether a span with these labels is evidence or counter-evidence."""
    names = " ".join(map(str, labels)).casefold()
    return "counter_evidence" if "counter" in names or "against" in names else "evidence"


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
    found: dict[str, Any] = {"label": None, "explanations": [], "evidence": [], "counter_evidence": []}
    for name, answers in (suggested | answered).items():
        value = answers[0]["value"]
        if isinstance(value, list) and value and isinstance(value[0], dict) and "start" in value[0]:
            for span in value:
                found[_side(span.get("label") or "")].append([int(span["start"]), int(span["end"])])
        elif name == "label":
            found["label"] = value
        elif isinstance(value, str) and (name.startswith("explanation") or found["label"] is not None):
            found["explanations"].append(value)
        elif found["label"] is None:
            found["label"] = value
    others = {name: answers[1:] for name, answers in answered.items() if len(answers) > 1}
    metadata = dict(record.get("metadata") or {})
    columns = metadata.pop(_ROW, None)
    row = {
        **(json.loads(columns) if isinstance(columns, str) else {}),
        **metadata,
        "id": record.get("id"),
        "text": text,
        **found,
        **({"annotations": others} if others else {}),
    }
    before = [one["value"] for name, [one] in suggested.items() if name.startswith("explanation")]
    return _with_provenance(row, before, any(name.startswith("explanation") for name in answered))


def to_argilla(read: Read, columns: Mapping[str, str]) -> dict[str, Any]:
    """A row with all its readings as a record; the row as it was is its suggestions. ``columns``: see above."""
    row = read.row

    def answers(held: Decision | ReviewRow) -> dict[str, Any]:
        spans = [
            {"start": start, "end": end, "label": name}
            for name, found in (("evidence", held.evidence), ("counter_evidence", held.counter_evidence))
            for start, end in found
        ]
        typed = {"explanation" if n == 0 else f"explanation_{n + 1}": text for n, text in enumerate(held.explanations)}
        label = list(claimed(None, held.answers)) if row.is_multilabel and held.answers else held.label
        return ({"label": label} if label is not None else {}) | typed | ({"evidence": spans} if spans else {})

    responses: dict[str, list[dict[str, Any]]] = {}
    for made in sorted(read.decisions, key=lambda made: made != read.outcome):  # what counts comes first
        for name, value in answers(made).items():
            user = str(uuid.uuid5(_REVIEWERS, made.reviewer))
            responses.setdefault(name, []).append({"value": value, "user_id": user})
    suggestions = answers(row)
    others = _other_columns(read, columns) | ({"issues": _issues(row)} if row.issues else {})
    last = read.decisions[-1] if read.decisions else None
    names = [made.reviewer for made in read.decisions]
    return {
        "id": row.id,
        "status": "completed" if len(read.decisions) >= row.readings else "pending",
        "fields": {"text": row.text},
        "metadata": {
            **({"decision": str(last.verdict), "decided_at": _time(last), "reviewers": names} if last else {}),
            **({_ROW: json.dumps(others)} if others else {}),
        },
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
