"""The sequences that a run visits, each once: a row's prompt with one of its explanations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clsgen_dist.data.loader import TrainStream
from clsgen_dist.data.tables.dataset import RowDataset

# E sequences that a run visits, p positions

_POSITIONS = 2**16
"""Positions of the order that are looked at at once."""


@dataclass(frozen=True)
class Visited:
    """The sequences that a run visits, each once, by ascending key."""

    key_E: np.ndarray
    row_E: np.ndarray
    visit_E: np.ndarray
    limit_E: np.ndarray
    """Longest prompt at that visit; 0: data.max_prompt_length."""
    length_E: np.ndarray
    """Tokens."""
    answer_E: np.ndarray
    """Tokens of the explanation."""
    visits: int
    """Of all of them, in the whole run."""


def visited_sequences(stream: TrainStream, rows: RowDataset, steps: int) -> Visited:
    """The sequences of the first ``steps`` steps; the same on every rank."""
    nothing = np.zeros(0, dtype=np.int64)
    once, visits = [nothing] * 4, 0
    for planned in stream.stages:
        positions = min(planned.positions, planned.steps_before(steps) * stream.batch_size)
        limit = planned.stage.max_prompt_length
        for start in range(0, positions, _POSITIONS):
            row_p, visit_p = stream.order.at(planned, start, min(start + _POSITIONS, positions))
            found = (rows.sequence_keys(row_p, visit_p, limit), row_p, visit_p, np.full(len(row_p), limit or 0))
            columns = [np.concatenate(pair) for pair in zip(once, found, strict=True)]
            _, first_E = np.unique(columns[0], return_index=True)
            once = [column[first_E] for column in columns]
            visits += len(row_p)
    key_E, row_E, visit_E, limit_E = once
    answer_E = rows.answer_lengths(row_E, visit_E)
    prompt_E = key_E % (rows.encoder.max_prompt_length + 1)
    return Visited(key_E, row_E, visit_E, limit_E, prompt_E + answer_E, answer_E, visits)
