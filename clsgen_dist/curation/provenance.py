"""Where a row's explanations came from: the column ``provenance``.

It has one name for all explanations of the row, such as ``human``, or a list with an entry for each, in the order in
which they are read: ``["human", null, "teacher:NAME"]``. None (null) is an origin that is not known.
"""

from __future__ import annotations

from typing import Any

from clsgen_dist.data.reading.cells import is_missing, list_in_text
from clsgen_dist.data.reading.rejection import Fault

PROVENANCE = "provenance"


def listed_origins(cell: Any, count: int) -> list[Any] | None:
    """The entries of a cell that has one for each of ``count`` explanations; None for any other cell."""
    items = cell
    if isinstance(cell, str):
        try:
            items = list_in_text(cell)
        except Fault:
            return None
    return list(items) if isinstance(items, (list, tuple)) and len(items) == count else None


def origins(cell: Any, count: int) -> list[Any]:
    """The origin of each of ``count`` explanations; None where the cell does not say."""
    listed = listed_origins(cell, count)
    if listed is not None:
        return listed
    return [None if is_missing(cell) or not isinstance(cell, str) or cell.lstrip().startswith("[") else cell] * count
