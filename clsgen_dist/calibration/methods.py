"""The calibration methods: which label space each is for, how many rows it needs, how it is fitted and read back.

| method | single | multilabel | ordinal | numbers it fits |
|---|---|---|---|---|
| none, temperature, affine | yes | yes | yes | 0, 1, a scale and biases |
| beta, isotonic, scaling_binning, histogram | yes | yes | yes | 3, or up to one a row or bin, for each question |
| vector, dirichlet | more than two classes | - | - | 2 C, C² + C |

From the simplest to the most flexible, binning last since it loses the ranking within a bin. The rows that a method
needs are rules of thumb: ten for each number of a formula, 200 for a free curve.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from clsgen_dist.calibration import affine, curves
from clsgen_dist.calibration.affine import AffineCalibration
from clsgen_dist.calibration.by_question import FitCurve, QuestionCalibration, fit_questions
from clsgen_dist.calibration.dirichlet import DirichletCalibration, dirichlet
from clsgen_dist.calibration.fitting_rows import LEAST_ROWS, checked, fittable_classes
from clsgen_dist.calibration.interface import SMALLEST, Calibration, smallest_seen
from clsgen_dist.calibration.names import Method
from clsgen_dist.calibration.prevalence import Prevalence, PriorCorrected
from clsgen_dist.errors import DataError, ModelError, SettingsError
from clsgen_dist.model.label_space import Kind

# N rows, C classes, K logits


@dataclass(frozen=True)
class MethodSpec:
    """One method."""

    read: Callable[[dict[str, Any], Kind], Calibration]
    """From its JSON."""
    fit: Callable[[np.ndarray, np.ndarray, Kind], Calibration] | None = None
    """Fits logits to labels, on rows that are checked; None: by :attr:`curve`."""
    curve: FitCurve | None = None
    """Fits one yes-no question."""
    least_rows: Callable[[int], int] = lambda classes: LEAST_ROWS
    """Rows needed for C classes."""
    steps: bool = False
    """Whether its curve comes from counts, which know nothing below one row in all."""
    only_several_single: bool = False
    """Whether it is for single labels of more than two classes alone."""

    def applies(self, kind: Kind, classes: int) -> bool:
        """Whether the method is for this label space."""
        return not self.only_several_single or (kind == "single" and classes > 2)


_QUESTION_ROWS = 200
METHODS: dict[Method, MethodSpec] = {
    "none": MethodSpec(AffineCalibration.from_json, lambda logits_NK, labels, kind: AffineCalibration.identity(kind)),
    "temperature": MethodSpec(AffineCalibration.from_json, affine.temperature),
    "affine": MethodSpec(AffineCalibration.from_json, affine.affine),
    "beta": MethodSpec(QuestionCalibration.from_json, curve=curves.beta, least_rows=lambda classes: 30),
    "vector": MethodSpec(
        AffineCalibration.from_json, affine.vector, least_rows=lambda classes: 20 * classes, only_several_single=True
    ),
    "dirichlet": MethodSpec(
        DirichletCalibration.from_json, dirichlet, least_rows=lambda classes: 10 * (classes**2 + classes),
        only_several_single=True,
    ),
    "isotonic": MethodSpec(
        QuestionCalibration.from_json, curve=curves.isotonic, least_rows=lambda classes: _QUESTION_ROWS, steps=True
    ),
    "scaling_binning": MethodSpec(
        QuestionCalibration.from_json, curve=curves.scaling_binning, least_rows=lambda classes: _QUESTION_ROWS,
        steps=True,
    ),
    "histogram": MethodSpec(
        QuestionCalibration.from_json, curve=curves.histogram, least_rows=lambda classes: _QUESTION_ROWS, steps=True
    ),
}  # fmt: skip
"""In the order of :data:`clsgen_dist.calibration.names.Method`."""
assert tuple(METHODS) == get_args(Method)


def fit(method: Method, logits_NK: np.ndarray, labels: np.ndarray, kind: Kind = "single") -> Calibration:
    """The calibration of one method; deterministic, and the same for any order of the rows.

    Args:
        method: a key of :data:`METHODS`.
        logits_NK: raw logits.
        labels: class indices ``[N]``; multi-label: answers ``[N, C]``, NaN where not known.
        kind: the label space.

    Raises:
        SettingsError: the method is not for this label space.
        DataError: the rows cannot be used, or are fewer than the method needs.
    """
    logits_NK, labels = checked(logits_NK, labels, kind)
    require_applicable(method, labels, kind, classes_of(logits_NK, kind))
    return fit_checked(method, logits_NK, labels, kind, enough_answers(method, labels, kind))


def fit_checked(
    method: Method, logits_NK: np.ndarray, labels: np.ndarray, kind: Kind, enough_C: np.ndarray | None
) -> Calibration:
    """:func:`fit` of rows that are checked; multi-label: ``enough_C`` of :func:`enough_answers`."""
    spec = METHODS[method]
    if spec.curve is None:
        assert spec.fit is not None
        return spec.fit(logits_NK, labels, kind)
    smallest = smallest_seen(len(labels)) if spec.steps else SMALLEST
    return fit_questions(method, spec.curve, logits_NK, labels, kind, smallest=smallest, enough_Q=enough_C)


def from_json(fields: dict[str, Any] | None, kind: Kind = "single") -> Calibration:
    """The calibration that a card holds; None: raw probabilities.

    Raises:
        ModelError: the method is unknown.
    """
    if fields is None:
        return AffineCalibration.identity(kind)
    if fields.get("method") not in METHODS:
        raise ModelError(
            f"calibration method {fields.get('method')!r} is unknown, expected one of {', '.join(METHODS)}; run "
            "clsgen calibrate again, or use a later version of clsgen_dist"
        )
    calibration = METHODS[fields["method"]].read(fields, kind)
    if "prevalence" not in fields:
        return calibration
    return PriorCorrected(calibration, Prevalence.from_json(fields["prevalence"]), kind)


def classes_of(logits_NK: np.ndarray, kind: Kind) -> int:
    """Classes, C, of K logits."""
    return logits_NK.shape[1] + (kind == "ordinal")


def usable_rows(labels: np.ndarray, kind: Kind) -> int:
    """Rows that a method can count on; multi-label: known answers of the class with most."""
    if kind != "multilabel":
        return len(labels)
    known_C = (~np.isnan(labels)).sum(axis=0)
    return int(known_C[fittable_classes(labels)].max(initial=0))


def enough_answers(method: Method, labels: np.ndarray, kind: Kind) -> np.ndarray | None:
    """``[C]`` multi-label: which classes have enough answers for the method; None for the other label spaces."""
    if kind != "multilabel":
        return None
    return fittable_classes(labels, METHODS[method].least_rows(labels.shape[1]))


def require_applicable(method: Method, labels: np.ndarray, kind: Kind, classes: int) -> None:
    """SettingsError or DataError if the method is not for this label space, or for so few rows."""
    spec = METHODS[method]
    if not spec.applies(kind, classes):
        possible = [name for name, other in METHODS.items() if other.applies(kind, classes)]
        raise SettingsError(
            f"--method is {method}, which is for single labels of more than two classes, and this model is {kind} with "
            f"{classes}; use auto, or one of {', '.join(possible)}"
        )
    if (rows := usable_rows(labels, kind)) < (least := spec.least_rows(classes)):
        raise DataError(f"{rows} labelled rows, expected {least} or more for {method}; add rows, or use --method auto")
