"""Recalibration of an exported model on rows that it was not trained on."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clsgen_dist.calibration.choice import choose
from clsgen_dist.calibration.fitting_rows import fittable_classes, require_rows
from clsgen_dist.calibration.names import Method, MethodOrAuto
from clsgen_dist.data.example import Columns
from clsgen_dist.errors import DataError, SettingsError
from clsgen_dist.evaluation.classification import best_f1_threshold
from clsgen_dist.evaluation.multilabel import best_thresholds
from clsgen_dist.hf_export.artifact import ModelCard
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.rows import labelled_rows, labels_of
from clsgen_dist.model.label_space import LabelSpace

logger = logging.getLogger(__name__)

# N rows, C classes, K logits


def calibrate(
    model: str | Path,
    data: str | None = None,
    columns: Columns | None = None,
    *,
    method: MethodOrAuto = "auto",
    batch_size: int = 32,
    max_bad_fraction: float = 0.01,
) -> ModelCard:
    """Fit a calibration of the class logits and the thresholds with the best F1, and store them with the model.

    Thresholds: binary, of the positive class; multi-label, of each class. A model that decides before and after its
    explanation gets both for each reading, on the explanations that it writes. Weights do not change.

    Args:
        model: folder that :func:`clsgen_dist.export` wrote; its ``clsgen.json`` is updated.
        data: labelled rows that were neither trained on nor will be reported on; not needed for ``none``.
        columns: how the columns are called.
        method: ``auto`` chooses by cross-fitted likelihood (:func:`clsgen_dist.calibration.choice.choose`); ``none``
            removes calibration and thresholds, so that probabilities are the raw ones again.
        batch_size: rows put through the model together.
        max_bad_fraction: more bad rows than this share raise; fewer are left out.

    Raises:
        ModelError: ``model`` is no exported folder.
        SettingsError: the method is not for the model's label space, or there is no ``data``.
        DataError: the rows cannot be read, a class has none, or they are fewer than the method needs.
    """
    folder = Path(model)
    if method == "none":
        return _remove(folder)
    if data is None:
        raise SettingsError("--data is missing, expected labelled held-out rows; only --method none needs none")
    only = None if method == "auto" else method
    predictor = Predictor(folder)
    rows = labelled_rows(predictor, data, columns, max_bad_fraction)
    space, both = predictor.space, predictor.card.decide == "both"
    labels = labels_of(predictor, rows.examples)
    try:
        _require_rows(labels, space, data)
        predictions = predictor.predict(
            [row.text for row in rows.examples], batch_size=batch_size, explain=both, progress=True
        )
        fitted = _fit([p.logits for p in predictions], labels, space, only)
        after = _fit([p.after.logits for p in predictions if p.after], labels, space, only) if both else _Fitted()
    except DataError as error:
        raise DataError(f"{data}: {error}") from None
    card = _with(predictor.card, fitted, after, calibrated_on={"source": data, "rows": len(labels)})
    card.write(folder)
    return card


def _require_rows(labels: np.ndarray, space: LabelSpace, data: str) -> None:
    """DataError for too few rows; multi-label: a warning with the classes that are left uncalibrated."""
    if space.kind != "multilabel":
        require_rows(labels, space.names)
    elif not (fittable := fittable_classes(labels)).all():
        missing = [name for name, fits in zip(space.names, fittable, strict=True) if not fits]
        logger.warning("%s: too few rows with both answers, left uncalibrated: %s", data, ", ".join(missing))


@dataclasses.dataclass(frozen=True)
class _Fitted:
    """What the card holds of one reading."""

    calibration: dict[str, Any] | None = None
    choice: dict[str, Any] | None = None
    thresholds: list[float] | None = None


def _fit(logits: Sequence[tuple[float, ...]], labels: np.ndarray, space: LabelSpace, method: Method | None) -> _Fitted:
    logits_NK = np.array(logits)
    calibration, comparison = choose(logits_NK, labels, space.kind, method)
    thresholds = _thresholds(calibration.probabilities(logits_NK), space)
    return _Fitted(calibration.to_json(), comparison.to_json(), thresholds)


def _with(card: ModelCard, fitted: _Fitted, after: _Fitted, calibrated_on: dict[str, Any] | None) -> ModelCard:
    return dataclasses.replace(
        card,
        calibration=fitted.calibration,
        calibration_choice=fitted.choice,
        thresholds=fitted.thresholds,
        calibration_after=after.calibration,
        calibration_choice_after=after.choice,
        thresholds_after=after.thresholds,
        calibrated_on=calibrated_on,
    )


def _remove(folder: Path) -> ModelCard:
    """The card as exported."""
    card = ModelCard.read(folder)
    card = _with(card, _Fitted(), _Fitted(), calibrated_on=None)
    card.write(folder)
    return card


def _thresholds(probabilities_NC: np.ndarray, space: LabelSpace) -> list[float] | None:
    """The thresholds with the best expected F1; None where the label space has none."""
    if space.kind == "multilabel":
        return best_thresholds(probabilities_NC)
    if space.kind == "single" and space.is_binary:
        return [best_f1_threshold(probabilities_NC[:, space.positive_index])]
    return None
