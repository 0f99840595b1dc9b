"""What every calibration can do: logits in, probabilities out, and numbers for ``clsgen.json``."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from clsgen_dist.model.label_space import Kind

# N rows, C classes, K logits

SMALLEST = 1e-12
"""Smallest probability of a formula (temperature, affine, …): softmax and sigmoid of far logits round to 0 or 1."""


class Calibration(Protocol):
    """A fitted map from raw class logits to probabilities."""

    @property
    def method(self) -> str:
        """Its name, a key of :data:`clsgen_dist.calibration.methods.METHODS`."""

    def probabilities(self, logits_NK: np.ndarray) -> np.ndarray:
        """Calibrated probabilities ``[N, C]``, never exactly 0 or 1; each row sums to 1, but for multi-label."""

    def to_json(self) -> dict[str, Any]:
        """JSON values for ``clsgen.json``, read by :func:`clsgen_dist.calibration.methods.from_json`."""


def within_limits(probabilities_NC: np.ndarray, kind: Kind, smallest: float = SMALLEST) -> np.ndarray:
    """The probabilities raised to ``smallest``, and summing to 1 again (multi-label: between it and 1 minus it).

    One wrong answer that had probability 0 makes the likelihood 0, and the log-odds infinite.
    """
    if kind == "multilabel":
        return np.clip(probabilities_NC, smallest, 1 - smallest)
    raised_NC = np.maximum(probabilities_NC, smallest)
    return np.asarray(raised_NC / raised_NC.sum(axis=1, keepdims=True))


def smallest_seen(rows: int) -> float:
    """1 / (rows + 2): Laplace's rule of succession for what none of the rows showed."""
    return 1.0 / (rows + 2)
