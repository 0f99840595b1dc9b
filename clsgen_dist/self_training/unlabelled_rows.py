"""The rows of a file that a model may label; guard rows are neither among them nor among those of its calibration.

A row is left as it is if it has a label, or an explanation of its own, which nobody has checked against a class.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from clsgen_dist.data.checks.near_duplicates import normalised, text_hash
from clsgen_dist.data.example import Columns, Example
from clsgen_dist.data.reading.ingest import iter_rows, iter_texts
from clsgen_dist.data.reading.label_cells import Space
from clsgen_dist.data.reading.records import Part, find_source, is_local, read_part
from clsgen_dist.data.reading.rejection import Fault
from clsgen_dist.errors import DataError, SettingsError

logger = logging.getLogger(__name__)

_WINDOW = 4096
"""Rows that are read, sorted by length and predicted together."""

Row = tuple[Example, dict[str, Any]]
"""A row, and all its columns."""


@dataclass
class RowCounts:
    """What the rows of a file are."""

    rows: int = 0
    bad: int = 0
    labelled: int = 0
    explained: int = 0
    """Without a label, but with an explanation of their own."""
    unlabelled: int = 0
    """Those that may be labelled."""


class UnlabelledRows:
    """Rows of a source, in order and in bounded memory."""

    def __init__(self, source: str, columns: Columns, space: Space) -> None:
        self.part: Part = find_source(source)
        self.columns = dataclasses.replace(columns, groups=(), cluster=None, difficulty=None)
        self._space = space

    def __iter__(self) -> Iterator[Row]:
        return self._rows(RowCounts(), {})

    def windows(self) -> Iterator[list[Row]]:
        """The rows, some at a time."""
        left = iter(self)
        while rows := list(islice(left, _WINDOW)):
            yield rows

    def survey(self, guard: Sequence[Example]) -> RowCounts:
        """Count the rows.

        Raises:
            DataError: there is no row to label, or a guard row is among the rows.
        """
        counts, known = RowCounts(), hashes(row.text for row in guard)
        for _ in self._rows(counts, known):
            pass
        if not counts.unlabelled:
            raise DataError(
                f"{self.part.source} has no row to label: {counts.labelled} have a label, {counts.explained} only an "
                f"explanation, {counts.bad} are bad; name a file of unlabelled rows"
            )
        return counts

    def _rows(self, counts: RowCounts, guard: dict[int, int]) -> Iterator[Row]:
        options: dict[str, Any] = {"columns": self.columns, "labels": None, "space": self._space}
        records = read_part(self.part, self.columns, every_column=True)
        for row, (_, record, _) in zip(iter_rows(self.part, require_target=False, **options), records, strict=True):
            counts.rows += 1
            if not isinstance(row, Example) or isinstance(record, Fault):
                counts.bad += 1
                continue
            if guard and text_hash(normalised(row.text)) in guard:
                raise DataError(
                    f"{row.location} has the text of a guard row, apart from case and white space: a model trained on "
                    "it would pass the guard whatever it has learned; delete the guard's rows from this file, or "
                    "hold out others"
                )
            if row.is_labelled:
                counts.labelled += 1
            elif row.explanations:
                counts.explained += 1
            else:
                counts.unlabelled += 1
                yield row, record


def require_apart_from_calibration(
    model: str, calibrated_on: dict[str, Any], guard: Sequence[Example], columns: Columns
) -> None:
    """SettingsError if guard rows are among those that the model was calibrated on; logs if that cannot be known."""
    source = str(calibrated_on.get("source"))
    try:
        texts = [row.text for row in iter_texts(source, columns) if not row.rejected] if is_local(source) else []
    except DataError:
        texts = []
    if not texts:
        logger.warning("%s, on which %s was calibrated, cannot be read here: keep guard rows out of it", source, model)
        return
    known = hashes(texts)
    if shared := [row for row in guard if text_hash(normalised(row.text)) in known]:
        raise SettingsError(
            f"{len(shared)} of {len(guard)} guard rows ({shared[0].location} is one) are among {source}, on which "
            f"{model} was calibrated: its probabilities were fitted to be right there; name other held-out rows as "
            "--guard"
        )


def hashes(texts: Iterable[str]) -> dict[int, int]:
    """The hash of each normalised text, with its place."""
    return {text_hash(normalised(text)): place for place, text in enumerate(texts)}
