"""Prediction sets that hold the true class as often as promised (split conformal prediction).

    s_i = 1 - p_i(y_i)             of held-out row i                              (Sadinle, Lei & Wasserman 2019)
    q   = the ⌈(n+1)(1-α)⌉-th smallest s_i
    set = {c : 1 - p(c) <= q}      P(y in set) >= 1-α, whatever the model, if new rows are like the held-out ones

The promise is an average over rows and over draws of the held-out rows: with n of them, the coverage that one draw
reaches follows Beta(n+1-l, l) with l = ⌊(n+1)α⌋ (Vovk 2012), so a few hundred rows leave a few points of play
(:func:`coverage_band`). *Class-conditional* sets have one q for each class, from its own rows: the promise is kept for
each class, rare ones too, and the sets are larger. A set of one class is a decision, of several a doubt; an empty one
says that the row is unlike the held-out rows.

Multi-label: each class is a question of its own, with the answers yes and no, and has a q of its own; if sets are
class-conditional, one for each of the two answers. (Of a rare class, one q promises little: always no is right often.)

Cost: a sort. (MAPIE and crepes wrap estimators; all that is stored here is one number for each class.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clsgen_dist.errors import DataError
from clsgen_dist.model.label_space import Kind

# N rows, C classes


@dataclass(frozen=True)
class ConformalSets:
    """Cutoffs that turn calibrated probabilities into sets."""

    coverage: float
    """Promised share of rows whose true class is in their set, 1-α."""
    class_conditional: bool
    """Whether the promise is kept for each class alone; multi-label: for each of the answers yes and no."""
    cutoff_C: tuple[float, ...]
    """Least probability of a class in the set, 1-q; multi-label: of the answer yes to the class's question."""
    rows_C: tuple[int, ...]
    """Held-out rows behind each cutoff."""
    no_cutoff_C: tuple[float, ...] | None = None
    """Multi-label: least probability of the answer no."""
    no_rows_C: tuple[int, ...] | None = None
    """The rows behind it."""

    def contains(self, probabilities_NC: np.ndarray) -> np.ndarray:
        """``[N, C]`` whether a class is in a row's set; multi-label: whether yes is a possible answer."""
        return np.asarray(probabilities_NC >= np.asarray(self.cutoff_C))

    def contains_no(self, probabilities_NC: np.ndarray) -> np.ndarray:
        """``[N, C]`` multi-label: whether no is a possible answer."""
        return np.asarray(1 - probabilities_NC >= np.asarray(self.no_cutoff_C))

    def to_json(self) -> dict[str, Any]:
        """JSON values for ``clsgen.json``."""
        return {
            "coverage": self.coverage,
            "class_conditional": self.class_conditional,
            "cutoff": list(self.cutoff_C),
            "rows": list(self.rows_C),
            "no_cutoff": self.no_cutoff_C and list(self.no_cutoff_C),
            "no_rows": self.no_rows_C and list(self.no_rows_C),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ConformalSets:
        """Inverse of :meth:`to_json`."""
        cutoff, rows = tuple(map(float, fields["cutoff"])), tuple(map(int, fields["rows"]))
        no_cutoff = fields["no_cutoff"] and tuple(map(float, fields["no_cutoff"]))
        no_rows = fields["no_rows"] and tuple(map(int, fields["no_rows"]))
        return cls(float(fields["coverage"]), bool(fields["class_conditional"]), cutoff, rows, no_cutoff, no_rows)


def fit_sets(
    probabilities_NC: np.ndarray,
    labels: np.ndarray,
    kind: Kind = "single",
    *,
    coverage: float = 0.9,
    class_conditional: bool = False,
    names: Sequence[str] | None = None,
) -> ConformalSets:
    """The cutoffs from held-out rows, which should not be those on which the calibration was fitted.

    Args:
        probabilities_NC: calibrated probabilities.
        labels: classes ``[N]``; multi-label: answers ``[N, C]``, NaN where not known.
        kind: the label space.
        coverage: promised share, above 0 and below 1.
        class_conditional: keep the promise for each class; multi-label: for each answer to each class's question.
        names: of the classes, for errors; None: their indices.

    Raises:
        DataError: too few rows to promise that coverage: a cutoff needs coverage / (1 - coverage) rows.
    """
    classes = probabilities_NC.shape[1]
    names = names or [str(c) for c in range(classes)]
    if kind == "multilabel":
        yes_NC, no_NC = labels >= 0.5, labels < 0.5
        own_NC = np.where(yes_NC, probabilities_NC, 1 - probabilities_NC)
        groups = (yes_NC, no_NC) if class_conditional else (yes_NC | no_NC,) * 2
        answers = (" with yes", " with no") if class_conditional else ("", "")
        (cutoff_C, rows_C), no = (
            _cutoffs(
                [p_N[of_N] for p_N, of_N in zip(own_NC.T, of_NC.T, strict=True)],
                coverage,
                [f" for class {name}{answer}" for name in names],
                class_conditional,
            )
            for of_NC, answer in zip(groups, answers, strict=True)
        )
        return ConformalSets(coverage, class_conditional, cutoff_C, rows_C, *no)
    own_N = probabilities_NC[np.arange(len(labels)), labels]
    own = [own_N[labels == c] for c in range(classes)] if class_conditional else [own_N] * classes
    where = [f" for class {name}" if class_conditional else "" for name in names]
    return ConformalSets(coverage, class_conditional, *_cutoffs(own, coverage, where, class_conditional))


def _cutoffs(
    own: Sequence[np.ndarray], coverage: float, where: Sequence[str], class_conditional: bool
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """A cutoff for each class from the probabilities of its true answers, and their number; ``where`` for errors."""
    cutoffs = [_cutoff(own_N, coverage, what, class_conditional) for own_N, what in zip(own, where, strict=True)]
    return tuple(cutoffs), tuple(map(len, own))


def _cutoff(own_N: np.ndarray, coverage: float, where: str, class_conditional: bool) -> float:
    """1-q from the probabilities of the true answers: a low rank from below, since 1-p is ranked from above."""
    # Rounded first: 0.9 · 10 is above 9 by floating point, which would ask for one row more.
    rank = math.ceil(round((len(own_N) + 1) * coverage, 9))
    if rank > len(own_N):
        least = math.ceil(round(coverage / (1 - coverage), 9))
        remedy = "lower the coverage, or make sets that are not class-conditional"
        raise DataError(
            f"{len(own_N)} rows{where}, expected {least} or more to promise a coverage of {coverage:g}; add rows, "
            f"{remedy if class_conditional else 'or lower the coverage'}"
        )
    return float(np.sort(own_N)[::-1][rank - 1])


def covered(sets: ConformalSets, probabilities_NC: np.ndarray, labels: np.ndarray, kind: Kind = "single") -> np.ndarray:
    """``[N]`` whether the true class is in a row's set; multi-label: ``[N, C]``, NaN where the answer is not known."""
    contains_NC = sets.contains(probabilities_NC)
    if kind != "multilabel":
        return np.asarray(contains_NC[np.arange(len(labels)), labels])
    right_NC = np.where(labels >= 0.5, contains_NC, sets.contains_no(probabilities_NC)).astype(float)
    return np.where(np.isnan(labels), np.nan, right_NC)


def coverage_band(held_out_rows: int, coverage: float, test_rows: int, level: float = 0.95) -> tuple[float, float]:
    """Between which shares the coverage of so many test rows lies with probability ``level``, if the promise holds.

    Beta-binomial: the draw of the held-out rows and that of the test rows together.
    """
    from scipy.stats import betabinom

    allowed = (held_out_rows + 1) - math.ceil(round((held_out_rows + 1) * coverage, 9))
    spread = betabinom(test_rows, held_out_rows + 1 - allowed, max(allowed, 1e-9))
    low, high = spread.ppf([(1 - level) / 2, (1 + level) / 2]) / test_rows
    return float(low), float(high)
