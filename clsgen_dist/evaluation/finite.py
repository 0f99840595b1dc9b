"""Refuses NaN and infinity: comparisons with NaN are false, so that metrics would come out, and look like any other."""

from __future__ import annotations

import numpy as np

# N rows, C classes


def require_finite(values: np.ndarray, what: str = "probabilities") -> None:
    """ValueError if some of the values ``[N]`` or ``[N, C]`` are not finite."""
    if not (finite := np.isfinite(values)).all():
        rows = np.flatnonzero(~finite.reshape(len(values), -1).all(axis=1))
        raise ValueError(
            f"{what} of {len(rows)} of {len(values)} rows are not finite, the first in row {rows[0]}, expected "
            "numbers; leave these rows out, or use a model that did not diverge"
        )
