"""How the columns of a source are matched to the names in the settings: invisible differences do not count."""

from __future__ import annotations

import dataclasses
import difflib
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.cells import clean_name
from clsgen_dist.data.reading.rejection import Fault, Rejection
from clsgen_dist.errors import DataError

_MAX_COLUMNS = 1000
"""Column names of JSON objects that are cached."""


class ColumnNames:
    """Matches a source's column names to those of the settings, ignoring invisible differences.

    ``every``: other columns are read too, under their own names.
    """

    def __init__(self, columns: Columns, *, every: bool = False) -> None:
        single = (name for name in dataclasses.astuple(columns) if isinstance(name, str))
        self.wanted = {name for name in (*single, *columns.groups) if name}
        self.text, self.label = columns.text, columns.label
        self._every = every
        self._by_look = {clean_name(name): name for name in self.wanted}
        self._as_written: set[str] = set()

    def of(self, name: str) -> str:
        """The settings' name for a source's column; the column's own name if it is not among them."""
        return name if name in self.wanted else self._by_look.get(clean_name(name), name)

    def reads(self, name: str) -> bool:
        """Whether a source's column is read."""
        return self._every or self.of(name) in self.wanted

    def renamed(self, record: dict[str, Any]) -> dict[str, Any] | Fault:
        """A JSON object with its columns named as in the settings."""
        if record.keys() <= self._as_written:
            return record
        names = {name: self.of(name) for name in record}
        if len(self._as_written) < _MAX_COLUMNS:
            self._as_written |= {name for name, known in names.items() if name == known}
        if len(set(names.values())) < len(names):
            repeated = next(name for name in self.wanted if list(names.values()).count(name) > 1)
            return Fault(Rejection.DUPLICATE_COLUMN, f"{repeated!r}, apart from invisible characters; keep one")
        return {known: record[name] for name, known in names.items()}


def check_columns(source: str, column_names: Sequence[str], names: ColumnNames) -> None:
    """DataError if a source lacks the text column, or has one that is read twice; names are those of the settings."""
    counts = Counter(column_names)
    repeated = sorted(name for name in counts if names.reads(name) and counts[name] > 1)
    if repeated:
        raise DataError(
            f"{source} has {len(repeated)} columns more than once: {', '.join(repeated)}; rename or delete one of each"
        )
    if names.text in column_names:
        return
    near = difflib.get_close_matches(names.text, column_names, n=1)
    flag = f"--data.columns.text={shlex.quote(near[0] if near else 'NAME')}"
    raise DataError(
        f"{source} has the columns {', '.join(map(repr, column_names)) or '(none)'}, but no text column "
        f"{names.text!r}; "
        + (f"did you mean {near[0]!r}? Then set {flag}" if near else f"name it with {flag}")
        + " (for `data check`: --columns.text)"
    )
