"""What a report consists of, before it is laid out: sections of paragraphs, tables, figures and examples.

A document is plain text: HTML and Markdown escape it, so a row's text cannot change the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Paragraph:
    """Sentences."""

    text: str
    tone: Literal["plain", "warning"] = "plain"


@dataclass(frozen=True)
class Table:
    """Cells of text; the first column names the row."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.rows} - {len(self.header)}
        if widths:
            raise ValueError(
                f"table {self.caption!r}: rows of {sorted(widths)} cells, expected {len(self.header)} as in the header"
            )


@dataclass(frozen=True)
class Drawing:
    """A picture in two forms."""

    svg: str
    """For pages."""
    pixels_HWC: np.ndarray
    """For TensorBoard: red, green and blue, 0 to 255."""


@dataclass(frozen=True)
class Figure:
    """A drawing, and what it shows in words for those who cannot see it."""

    caption: str
    drawing: Drawing
    description: str
    """What a reader should take from it; also read aloud by screen readers."""


@dataclass(frozen=True)
class Example:
    """A row with what the model said of it."""

    heading: str
    text: str
    """The row's text."""
    evidence: Sequence[tuple[int, int]]
    """Ranges of characters of ``text`` that the explanation names, ``[start, end)``; they may overlap."""
    explanation: str
    facts: Sequence[tuple[str, str]]
    """Names and values: label, probability, why it is listed."""

    def pieces(self) -> list[tuple[str, bool]]:
        """The text in pieces, each with whether it is evidence."""
        found: list[tuple[str, bool]] = []
        at = 0
        for start, end in sorted(self.evidence):
            start = max(start, at)
            if start < end:
                found += [(self.text[at:start], False), (self.text[start:end], True)]
                at = end
        return [piece for piece in [*found, (self.text[at:], False)] if piece[0]]


Block = Paragraph | Table | Figure | Example


@dataclass(frozen=True)
class Section:
    """A part of the report with an entry in its table of contents."""

    name: str
    """Anchor in the page: ``calibration``."""
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A report."""

    title: str
    summary: Sequence[str]
    """The sentences that come first."""
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]] = field(default_factory=tuple)
    """Names and values below the title: model, data, date."""
    language: str = "en"
