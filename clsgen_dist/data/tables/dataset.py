"""A table of rows seen through a prompt: samples by row number, and their lengths from the columns alone.

A row with E explanations gives, on its v-th visit, explanation (v + 2654435761·row) mod E: all in turn, from a start
that is spread over the rows.

Cost: lengths are arithmetic on mapped columns; a sample reads one row.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

from clsgen_dist.data.encode import Encoder, Ids
from clsgen_dist.data.pack import Sample
from clsgen_dist.data.tables.table import RowTable

# N rows, p positions

_MULTIPLIER = 2654435761
"""Knuth's multiplicative hash of the row number: with which explanation the row starts."""


class RowDataset:
    """Samples of a table by row number and visit."""

    def __init__(self, table: RowTable, encoder: Encoder) -> None:
        self.table, self.encoder = table, encoder
        self.label_N = np.asarray(table.label_N)
        self.space = table.card.space

    @property
    def labels(self) -> np.ndarray:
        """Labels for metrics: ``[N]`` classes, -1 without; multi-label: ``[N, C]`` answers, NaN where not known."""
        if self.space != "multilabel":
            return self.label_N
        answers_NC = self.table.answers_NC
        if answers_NC is None:
            return np.full((len(self), len(self.table.card.labels)), np.nan)
        return np.where(answers_NC >= 0, answers_NC, np.nan)

    @property
    def group_names(self) -> list[str]:
        """What the values of :attr:`label_N` mean: the classes, and for multi-label "(none)" after them."""
        return [*self.table.card.labels, *(["(none)"] if self.space == "multilabel" else [])]

    def class_counts(self) -> np.ndarray:
        """``[C]`` rows of each class; multi-label: rows that have it."""
        classes = len(self.table.card.labels)
        if self.space != "multilabel":
            return np.bincount(self.label_N[self.label_N >= 0], minlength=classes)
        return np.asarray((np.nan_to_num(self.labels) >= 0.5).sum(axis=0))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def name(self) -> str:
        """Where the rows come from."""
        return self.table.card.source

    @property
    def fingerprint(self) -> str:
        """Identifies these rows with this prompt."""
        prompt = self.encoder.build_prompt(np.zeros(0, dtype=np.int32)).tobytes()
        identity = f"{self.table.card.sha256}/{self.encoder.max_prompt_length}/".encode() + prompt
        return hashlib.sha256(identity).hexdigest()

    def id(self, row: int) -> str:
        """The row's id."""
        return self.table.id(row)

    def sample(self, row: int, visit: int = 0, max_prompt_length: int | None = None) -> Sample:
        """The row with the explanation of its visit number ``visit`` (from 0)."""
        which = int(self._explanation_at(np.array([row]), np.array([visit]))[0])
        return Sample(
            self.encoder.build_prompt(self.table.text_ids(row), max_prompt_length),
            self.table.explanation_ids(row, which) if which >= 0 else np.zeros(0, dtype=np.int32),
            self._label(row),
            self._evidence(row, "evidence", max_prompt_length),
            self._evidence(row, "counter_evidence", max_prompt_length),
        )

    def _evidence(
        self, row: int, column: Literal["evidence", "counter_evidence"], max_prompt_length: int | None
    ) -> Ids:
        length = int(self.table.text_length_N[row])
        return self.encoder.place_spans(self.table.evidence(row, column), length, max_prompt_length)

    def lost_evidence(self, max_prompt_length: int | None = None) -> int:
        """Number of rows of whose evidence nothing is left, as their text loses its middle."""
        room = (max_prompt_length or self.encoder.max_prompt_length) - self.encoder.template_length
        shortened = np.flatnonzero(self.table.text_length_N > room)
        return sum(
            bool(len(self.table.evidence(row))) and not len(self._evidence(row, "evidence", max_prompt_length))
            for row in map(int, shortened)
        )

    def _label(self, row: int) -> int | np.ndarray:
        """What :class:`clsgen_dist.data.pack.Sample` holds as the label of a row."""
        answers_NC = self.table.answers_NC
        if answers_NC is not None and (answers_NC[row] >= 0).any():
            return np.array(answers_NC[row])
        return -1 if self.space == "multilabel" else int(self.label_N[row])

    def lengths(self, row_p: np.ndarray, visit_p: np.ndarray, max_prompt_length: int | None = None) -> Ids:
        """``[p]`` tokens of the samples of these rows at these visits."""
        table = self.table
        which_p = self._explanation_at(row_p, visit_p)
        explanation_p = np.zeros(len(row_p), dtype=np.int64)
        has_p = which_p >= 0
        explanation_p[has_p] = table.explanation_length_E[table.explanation_start_N1[row_p[has_p]] + which_p[has_p]]
        return self.encoder.prompt_lengths(table.text_length_N[row_p], max_prompt_length) + explanation_p

    def longest(self, max_prompt_length: int | None = None) -> int:
        """Tokens of the longest sample over all explanations."""
        table = self.table
        explanation_N = np.zeros(len(table), dtype=np.int64)
        has_N = np.diff(table.explanation_start_N1) > 0
        if has_N.any():
            starts = np.asarray(table.explanation_start_N1[:-1])[has_N]
            explanation_N[has_N] = np.maximum.reduceat(table.explanation_length_E, starts)
        return int(
            (self.encoder.prompt_lengths(np.asarray(table.text_length_N), max_prompt_length) + explanation_N).max()
        )

    def truncated(self, max_prompt_length: int | None = None) -> int:
        """Number of rows whose text loses its middle."""
        room = (max_prompt_length or self.encoder.max_prompt_length) - self.encoder.template_length
        return int((self.table.text_length_N > room).sum())

    def first_visit(self, row_p: np.ndarray) -> np.ndarray:
        """``[p]`` the visit at which each row has its first explanation."""
        starts = self.table.explanation_start_N1
        count_p = np.maximum(starts[row_p + 1] - starts[row_p], 1)
        return -(row_p * _MULTIPLIER) % count_p

    def _explanation_at(self, row_p: np.ndarray, visit_p: np.ndarray) -> np.ndarray:
        """``[p]`` index of the explanation of each visit, or -1 where there is none."""
        starts = self.table.explanation_start_N1
        count_p = starts[row_p + 1] - starts[row_p]
        return np.where(count_p > 0, (visit_p + row_p * _MULTIPLIER) % np.maximum(count_p, 1), -1)
