"""One row of a dataset, as everything after ingestion sees it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from clsgen_dist.data.reading.cells import Notice


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A text with a label, explanations, or both."""

    id: str
    text: str
    label: str | None = None
    """Class name; a row without any label trains the generation head only."""
    answers: dict[str, float] | None = None
    """Several classes, or the shares of several annotators' votes: :mod:`clsgen_dist.data.reading.label_cells`."""
    explanations: tuple[str, ...] = ()
    """Explanations of the label; a row without any trains the classification head only."""
    provenance: tuple[str | None, ...] = field(default=(), compare=False)
    """Where each explanation came from, None where that is not stated; not stored in tables."""
    rejected: tuple[str, ...] = ()
    """Explanations that reviewers rejected."""
    difficulty: float | None = None
    """Difficulty given by the user; higher is harder."""
    evidence: tuple[tuple[int, int], ...] = ()
    """Characters [start, end) of the text that speak for the label."""
    counter_evidence: tuple[tuple[int, int], ...] = ()
    """Characters [start, end) of the text that speak against it."""
    groups: tuple[str | None, ...] = ()
    """Cells of the columns ``columns.groups``, None where missing; not stored in tables."""
    cluster: str | None = None
    """Cell of the column ``columns.cluster``; not stored in tables."""
    file: str = ""
    """Name of its file; of its source, where that is no file."""
    line: int = 0
    """From 1: the line in a text file, the row elsewhere."""
    has_own_id: bool = field(default=True, compare=False)
    """Whether the id is the user's, not made from file and line; not stored in tables."""
    notices: tuple[tuple[Notice, str], ...] = field(default=(), compare=False)
    """Cells that were not read literally, with their beginning; counted, and not stored in tables."""

    @property
    def location(self) -> str:
        """File and line for people, like ``train.jsonl:17``."""
        return f"{self.file}:{self.line}"

    def to_json(self) -> str:
        """What the user gave, as JSON for the quarantine."""
        optional = (name for name in ("rejected", "answers", "evidence", "counter_evidence") if getattr(self, name))
        names = ("id", "text", "label", "difficulty", "explanations", *optional)
        return json.dumps({name: getattr(self, name) for name in names})

    @property
    def classes(self) -> tuple[str, ...]:
        """The row's class, or those it more likely has than not, as written; none without label, or of no class."""
        if self.label is not None:
            return (self.label,)
        return tuple(name for name, answer in (self.answers or {}).items() if name and answer >= 0.5)

    @property
    def is_labelled(self) -> bool:
        """Whether the row has a label of any kind."""
        return self.label is not None or self.answers is not None


@dataclass(frozen=True, kw_only=True)
class Columns:
    """How the user's columns are called."""

    id: str = "id"
    """Column of the row's id (optional)."""
    text: str = "text"
    """Column of the text."""
    label: str = "label"
    """Column of the class name (optional)."""
    explanation: str = "explanation"
    """Column of one explanation (optional)."""
    explanations: str = "explanations"
    """Column of a list of explanations (optional)."""
    provenance: str = "provenance"
    """Column of where they came from, such as `human` or `teacher:NAME`: one text, or a list for each (optional)."""
    chosen: str | None = None
    """Column of explanations that reviewers preferred, one or a list, like TRL's `chosen`; none: not read."""
    rejected: str | None = None
    """Column of explanations that reviewers rejected, one or a list, like TRL's `rejected`; none: not read."""
    verdict: str | None = None
    """Column of what reviewers thought of the row's explanations, `accepted` or `rejected`; none: not read."""
    evidence: str = "evidence"
    """Column of the parts of the text that speak for the label (optional): quotes, or characters `[start, end]`."""
    counter_evidence: str = "counter_evidence"
    """Column of the parts that speak against it (optional)."""
    difficulty: str | None = None
    """Column of a number, higher being harder, for the scorer `given` of a curriculum; none: not read."""
    groups: tuple[str, ...] = ()
    """Columns whose values divide the rows into groups, such as a site: `clsgen evaluate` reports on each."""
    cluster: str | None = None
    """Column of what several rows belong to, such as a patient: `clsgen evaluate` resamples whole clusters."""

    def without_explanations(self) -> Columns:
        """The columns of rows whose explanations and evidence do not matter."""
        unread: dict[str, Any] = dict.fromkeys(("explanation", "explanations", "provenance"), "")
        unread |= dict.fromkeys(("evidence", "counter_evidence"), "") | dict.fromkeys(("chosen", "rejected", "verdict"))
        return dataclasses.replace(self, **unread)

    def text_only(self) -> Columns:
        """The columns of rows of which only text and id matter."""
        return dataclasses.replace(self.without_explanations(), label="", difficulty=None)
