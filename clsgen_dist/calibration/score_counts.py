"""How the probabilities of the calibration rows are distributed, so that a server can tell when new ones are not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BINS = 10
"""Of equal width from 0 to 1."""


def bin_of(probability: float) -> int:
    """The bin of a probability, from 0 to 9; 1 belongs to the last."""
    return min(BINS - 1, int(probability * BINS))


def score_counts(probabilities_NC: np.ndarray, names: Sequence[str]) -> dict[str, list[int]]:
    """Rows in each bin of each class's probability."""
    edges = np.linspace(0, 1, BINS + 1)
    columns = np.asarray(probabilities_NC).T
    return {name: np.histogram(p_N, edges)[0].tolist() for name, p_N in zip(names, columns, strict=True)}
