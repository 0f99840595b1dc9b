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
from clsgen_dist.data.tables.reference import ReferenceLogProbs
from clsgen_dist.data.tables.table import RowTable

# N rows, p positions

Compared = Literal["own", "rejected", "mismatched"]
"""The explanations that a sample has: its own; also one that reviewers rejected; also that and another row's."""
_MULTIPLIER = 2654435761
"""Knuth's multiplicative hash of the row number: with which explanation the row starts."""


class RowDataset:
    """Samples of a table by row number and visit.

    Args:
        table: the rows.
        encoder: the prompt.
        compared: which explanations samples have besides their own.
    """

    def __init__(self, table: RowTable, encoder: Encoder, *, compared: Compared = "own") -> None:
        self.table, self.encoder, self.compared = table, encoder, compared
        self.reference: ReferenceLogProbs | None = None
        """Log-probabilities of all explanations before training, where the run is compared with these."""
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
        """The row with the explanation of its visit number ``visit`` (from 0), and the rejected one."""
        table, nothing = self.table, np.zeros(0, dtype=np.int32)
        rows, visits = np.array([row]), np.array([visit])
        which = int(_turn(table.explanation_start_N1, rows, visits)[0])
        rejected = -1 if self.compared == "own" else int(_turn(table.rejected_start_N1, rows, visits)[0])
        return Sample(
            self.encoder.build_prompt(table.text_ids(row), max_prompt_length),
            table.explanation_ids(row, which) if which >= 0 else nothing,
            self._label(row),
            self._evidence(row, "evidence", max_prompt_length),
            self._evidence(row, "counter_evidence", max_prompt_length),
            table.rejected_ids(row, rejected) if rejected >= 0 else nothing,
            self.mismatched(row) if self.compared == "mismatched" else nothing,
            self._reference(row, which, rejected),
        )

    def _reference(self, row: int, which: int, rejected: int) -> tuple[float, float, float]:
        """What :class:`clsgen_dist.data.pack.Sample` holds as log-probabilities before training."""
        known, table = self.reference, self.table
        if known is None:
            return 0.0, 0.0, 0.0
        own_at, rejected_at = table.explanation_start_N1[row] + which, table.rejected_start_N1[row] + rejected
        return (
            float(known.explanation_E[own_at]) if which >= 0 else 0.0,
            float(known.rejected_R[rejected_at]) if rejected >= 0 else 0.0,
            float(known.mismatched_N[row]) if self.compared == "mismatched" else 0.0,
        )

    def mismatched(self, row: int) -> Ids:
        """The first explanation, or rejected one, of the next row; of the last, the first row's."""
        table, other = self.table, (row + 1) % len(self.table)
        if table.explanation_start_N1[other + 1] > table.explanation_start_N1[other]:
            return table.explanation_ids(other, 0)
        if table.rejected_start_N1[other + 1] > table.rejected_start_N1[other]:
            return table.rejected_ids(other, 0)
        return np.zeros(0, dtype=np.int32)

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
        prompt_p = self.encoder.prompt_lengths(table.text_length_N[row_p], max_prompt_length)
        length_p = prompt_p + _length_of_turn(table.explanation_start_N1, table.explanation_length_E, row_p, visit_p)
        if self.compared != "own":
            rejected_p = _length_of_turn(table.rejected_start_N1, table.rejected_length_R, row_p, visit_p)
            length_p += np.where(rejected_p > 0, prompt_p + rejected_p, 0)
        if self.compared == "mismatched":
            mismatched_p = self.mismatched_lengths()[row_p]
            length_p += np.where(mismatched_p > 0, prompt_p + mismatched_p, 0)
        return length_p

    def sequence_keys(self, row_p: np.ndarray, visit_p: np.ndarray, max_prompt_length: int | None = None) -> np.ndarray:
        """``[p]`` a number of each sample's own sequence: prompt and explanation. Equal numbers are equal tokens."""
        table = self.table
        which_p = _turn(table.explanation_start_N1, row_p, visit_p)
        explanations = len(table.explanation_length_E)  # a row without any is numbered after all of them
        own_p = np.where(which_p >= 0, table.explanation_start_N1[row_p] + which_p, explanations + row_p)
        prompt_p = self.encoder.prompt_lengths(table.text_length_N[row_p], max_prompt_length)
        return own_p.astype(np.int64) * (self.encoder.max_prompt_length + 1) + prompt_p

    def answer_lengths(self, row_p: np.ndarray, visit_p: np.ndarray) -> np.ndarray:
        """``[p]`` tokens of the explanations of these rows at these visits, 0 without."""
        return _length_of_turn(self.table.explanation_start_N1, self.table.explanation_length_E, row_p, visit_p)

    def mismatched_lengths(self) -> np.ndarray:
        """``[N]`` lengths of :meth:`mismatched`."""
        table = self.table
        own_N = _first_of_each(table.explanation_start_N1, table.explanation_length_E)
        rejected_N = _first_of_each(table.rejected_start_N1, table.rejected_length_R)
        return np.roll(np.where(own_N > 0, own_N, rejected_N), -1)

    def longest(self, max_prompt_length: int | None = None) -> int:
        """Tokens of the longest sample over all explanations."""
        table = self.table
        prompt_N = self.encoder.prompt_lengths(np.asarray(table.text_length_N), max_prompt_length)
        length_N = prompt_N + _longest_of_each(table.explanation_start_N1, table.explanation_length_E)
        if self.compared != "own":
            rejected_N = _longest_of_each(table.rejected_start_N1, table.rejected_length_R)
            length_N += np.where(rejected_N > 0, prompt_N + rejected_N, 0)
        if self.compared == "mismatched":
            mismatched_N = self.mismatched_lengths()
            length_N += np.where(mismatched_N > 0, prompt_N + mismatched_N, 0)
        return int(length_N.max())

    def truncated(self, max_prompt_length: int | None = None) -> int:
        """Number of rows whose text loses its middle."""
        room = (max_prompt_length or self.encoder.max_prompt_length) - self.encoder.template_length
        return int((self.table.text_length_N > room).sum())

    def first_visit(self, row_p: np.ndarray) -> np.ndarray:
        """``[p]`` the visit at which each row has its first explanation."""
        starts = self.table.explanation_start_N1
        count_p = np.maximum(starts[row_p + 1] - starts[row_p], 1)
        return -(row_p * _MULTIPLIER) % count_p


def _turn(start_N1: np.ndarray, row_p: np.ndarray, visit_p: np.ndarray) -> np.ndarray:
    """``[p]`` which of a row's lists it has at each visit, or -1 where it has none."""
    count_p = start_N1[row_p + 1] - start_N1[row_p]
    return np.where(count_p > 0, (visit_p + row_p * _MULTIPLIER) % np.maximum(count_p, 1), -1)


def _length_of_turn(start_N1: np.ndarray, length_E: Ids, row_p: np.ndarray, visit_p: np.ndarray) -> np.ndarray:
    """``[p]`` length of the list that each row has at each visit, 0 where it has none."""
    which_p = _turn(start_N1, row_p, visit_p)
    length_p = np.zeros(len(row_p), dtype=np.int64)
    has_p = which_p >= 0
    length_p[has_p] = length_E[start_N1[row_p[has_p]] + which_p[has_p]]
    return length_p


def _first_of_each(start_N1: np.ndarray, length_E: Ids) -> np.ndarray:
    """``[N]`` length of each row's first list, 0 without any."""
    first_N = np.zeros(len(start_N1) - 1, dtype=np.int64)
    has_N = np.diff(start_N1) > 0
    first_N[has_N] = length_E[np.asarray(start_N1[:-1])[has_N]]
    return first_N


def _longest_of_each(start_N1: np.ndarray, length_E: Ids) -> np.ndarray:
    """``[N]`` length of each row's longest list, 0 without any."""
    longest_N = np.zeros(len(start_N1) - 1, dtype=np.int64)
    has_N = np.diff(start_N1) > 0
    if has_N.any():
        longest_N[has_N] = np.maximum.reduceat(length_E, np.asarray(start_N1[:-1])[has_N])
    return longest_N
