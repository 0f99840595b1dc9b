"""One row of a data set, as everything after ingestion sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

from clsgen_dist.data.reading.cells import Notice


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A text with what is known of it: a label, explanations, or both."""

    id: str
    text: str
    label: str | None = None
    """Class name; a row without one trains the generation head only."""
    explanations: tuple[str, ...] = ()
    """Reasons written for this row; a row without any trains the classification head only."""
    difficulty: float | None = None
    """How hard the user says it is; higher is harder."""
    source: str = ""
    """Where it came from, like ``train.jsonl:17``."""
    notices: tuple[tuple[Notice, str], ...] = field(default=(), compare=False)
    """What was read as something else than it looks, with the cell's beginning; counted, and not kept in tables."""


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
    difficulty: str | None = None
    """Column of a number, higher being harder, for the scorer `given` of a curriculum; none: not read."""
