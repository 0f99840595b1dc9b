"""A document as Markdown, for a terminal, a pull request or a model card; figures are given in words."""

from __future__ import annotations

import re

from clsgen_dist.io.tables import markdown_table
from clsgen_dist.report.document import Block, Document, Figure, Paragraph, Table


def render_markdown(document: Document, *, level: int = 1) -> str:
    """The document; ``level`` is that of its title's heading."""
    parts = [f"{'#' * level} {_plain(document.title)}", "\n".join(f"- {n}: {_plain(v)}" for n, v in document.facts)]
    parts.append(" ".join(map(_plain, document.summary)))
    for section in document.sections:
        parts.append(f"{'#' * (level + 1)} {_plain(section.title)}")
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return f"> {_plain(block.text)}" if block.tone == "warning" else _plain(block.text)
    if isinstance(block, Table):
        cells = [[_cell(cell) for cell in row] for row in [block.header, *block.rows]]
        return f"{_plain(block.caption)}\n\n{markdown_table(cells)}"
    if isinstance(block, Figure):
        return f"*{_plain(block.caption)}* {_plain(block.description)}"
    text = "".join(_bold(piece) if marked else _escaped(piece) for piece, marked in block.pieces())
    facts = "; ".join(f"{name}: {_plain(value)}" for name, value in block.facts)
    return f"**{_plain(block.heading)}** ({facts})\n\n> {text}\n\nExplanation: {_plain(block.explanation)}"


def _plain(text: str) -> str:
    """One line, in which nothing is markup."""
    return _escaped(text).strip()


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", re.sub(r"\s+", " ", text))


def _bold(text: str) -> str:
    """Bold, with the spaces outside, where Markdown wants them."""
    inner = text.strip()
    start = text.index(inner)
    return f"{_escaped(text[:start])}**{_escaped(inner)}**{_escaped(text[start + len(inner) :])}" if inner else text


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<")
