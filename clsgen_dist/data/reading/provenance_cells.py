"""Where a row's explanations came from: ``human``, ``teacher:NAME``, ``template``, ``self:ROUND`` or other short texts.

    "teacher:big"                      all of them
    ["human", null, "teacher:big"]     each, in the order of the cells `explanation`, `explanations`; null: not stated

Empty and repeated explanations have an entry too. A cell that is neither, such as a number or a list of another length,
is counted as a :class:`~clsgen_dist.data.reading.cells.Notice`, and the row is used without: the column may mean
something else.

Cost: some microseconds per row that has such a cell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from clsgen_dist.data.reading.cells import (
    MISSING_WORDS,
    Notice,
    Notices,
    clean_name,
    excerpt,
    is_missing,
    list_in_text,
)
from clsgen_dist.data.reading.rejection import Fault

HUMAN = "human"
"""Written or rewritten by a person."""
NOT_STATED = "(not stated)"
"""For people: explanations whose provenance is None."""
OTHERS = "(others)"
"""For people and files: all names beyond those that are counted or reported apart."""
MAX_LENGTH = 100
"""Characters of a provenance; a longer cell is about something else."""
MAX_COUNTED = 1000
"""Different names that are counted apart, so that a file with one for each row takes no memory."""
MAX_REPORTED = 20
"""Different names in a table or report."""

Provenance = str | None
"""Of one explanation; None where it is not stated."""


def provenance_of(
    cell: Any, written: Sequence[str], explanations: Sequence[str], notices: Notices
) -> tuple[Provenance, ...]:
    """The provenance of each of a row's explanations.

    Args:
        cell: one text, or a list with an entry for each of ``written``; also the text of such a list.
        written: the row's explanations as :func:`~clsgen_dist.data.reading.cells.written_explanations` has them.
        explanations: those that are used. One that is not among ``written`` has the provenance of a cell with one text.
        notices: gets one if the cell cannot be read.
    """
    if is_missing(cell):
        return (None,) * len(explanations)
    try:
        items = _items(cell)
        if isinstance(items, list):
            if len(items) != len(written):
                raise ValueError
            # Of equal explanations the first counts.
            of_text = dict(reversed(list(zip(written, map(_name, items), strict=True))))
            return tuple(of_text.get(text) for text in explanations)
        return (_name(items),) * len(explanations)
    except (ValueError, Fault):
        notices.append((Notice.UNREAD_PROVENANCE, excerpt(str(cell))))
        return (None,) * len(explanations)


def provenance_cell(names: Iterable[Provenance]) -> str | list[Provenance] | None:
    """The cell that says this of a row's explanations: one text if they are alike, else a list; None without any."""
    listed = list(names)
    return listed[0] if len(set(listed)) == 1 else listed or None


def _items(cell: Any) -> Any:
    """A list, written as one or as text; any other cell as it is."""
    if hasattr(cell, "tolist"):
        cell = cell.tolist()
    if isinstance(cell, str):
        items = list_in_text(cell)
        return cell if items is None else items
    return list(cell) if isinstance(cell, tuple) else cell


def _name(cell: Any) -> Provenance:
    """The name in a cell; ValueError if it is none."""
    if is_missing(cell):
        return None
    if not isinstance(cell, str) or len(cell) > MAX_LENGTH or "\0" in cell:
        raise ValueError
    name = clean_name(cell)
    name.encode("utf-8")  # a lone surrogate is a ValueError too
    return None if name in MISSING_WORDS else name


def counted_as(name: Provenance, counts: Mapping[Provenance, object]) -> Provenance:
    """The key to count a name by: itself, or :data:`OTHERS` if it is new and there are :data:`MAX_COUNTED` already."""
    return name if name is None or name in counts or len(counts) < MAX_COUNTED else OTHERS


def add_counts(counts: Counter[Provenance], names: Iterable[Provenance]) -> None:
    """Count names by :func:`counted_as`."""
    for name in names:
        counts[counted_as(name, counts)] += 1


def reported_names(counts: Counter[Provenance]) -> list[str]:
    """The most frequent names that are stated, in the order of the alphabet; the others are for :data:`OTHERS`."""
    stated = sorted((name for name in counts if name not in (None, OTHERS)), key=lambda name: (-counts[name], name))
    return sorted(name for name in stated[:MAX_REPORTED] if name is not None)


def reported_as(name: Provenance, apart: Container[str]) -> str:
    """The words for a name: itself, if it is one of those reported apart."""
    if name is None:
        return NOT_STATED
    return name if name in apart else OTHERS
