"""Recalibration of an exported model on rows that it was not trained on."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clsgen_dist.calibration.affine import fit_affine, fittable_classes, probabilities, require_rows
from clsgen_dist.data.example import Columns
from clsgen_dist.errors import DataError
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
    data: str,
    columns: Columns | None = None,
    *,
    batch_size: int = 32,
    max_bad_fraction: float = 0.01,
) -> ModelCard:
    """Fit an affine map of the class logits and the thresholds with the best F1, and store them with the model.

    Thresholds: binary, of the positive class; multi-label, of each class. A model that decides before and after its
    explanation gets both for each reading, on the explanations that it writes.

    Args:
        model: folder that :func:`clsgen_dist.export` wrote; its ``clsgen.json`` is updated.
        data: labelled rows that were neither trained on nor will be reported on.
        columns: how the columns are called.
        batch_size: rows put through the model together.
        max_bad_fraction: more bad rows than this share raise; fewer are left out.

    Raises:
        ModelError: ``model`` is no exported folder.
        DataError: the rows cannot be read, or a class has none.
    """
    folder = Path(model)
    predictor = Predictor(folder)
    rows = labelled_rows(predictor, data, columns, max_bad_fraction)
    space, both = predictor.space, predictor.card.decide == "both"
    labels = labels_of(predictor, rows.examples)
    try:
        _require_rows(labels, space, data)
        predictions = predictor.predict(
            [row.text for row in rows.examples], batch_size=batch_size, explain=both, progress=True
        )
        fitted = _fit([p.logits for p in predictions], labels, space)
        after = _fit([p.after.logits for p in predictions if p.after], labels, space) if both else (None, None)
    except DataError as error:
        raise DataError(f"{data}: {error}") from None
    card = dataclasses.replace(
        predictor.card,
        calibration=fitted[0],
        thresholds=fitted[1],
        calibration_after=after[0],
        thresholds_after=after[1],
        calibrated_on={"source": data, "rows": len(labels)},
    )
    card.write(folder)
    return card


def _require_rows(labels: np.ndarray, space: LabelSpace, data: str) -> None:
    """DataError for too few rows; multi-label: a warning with the classes that are left uncalibrated."""
    if space.kind != "multilabel":
        require_rows(labels, space.names)
    elif not (fittable := fittable_classes(labels)).all():
        missing = [name for name, fits in zip(space.names, fittable, strict=True) if not fits]
        logger.warning("%s: too few rows with both answers, left uncalibrated: %s", data, ", ".join(missing))


def _fit(
    logits: Sequence[tuple[float, ...]], labels: np.ndarray, space: LabelSpace
) -> tuple[dict[str, Any], list[float] | None]:
    """The map of these logits as JSON, and the thresholds."""
    logits_NK = np.array(logits)
    calibration = fit_affine(logits_NK, labels, space.kind)
    return calibration.to_json(), _thresholds(probabilities(logits_NK, calibration, space.kind), space)


def _thresholds(probabilities_NC: np.ndarray, space: LabelSpace) -> list[float] | None:
    """The thresholds with the best expected F1; None where the label space has none."""
    if space.kind == "multilabel":
        return best_thresholds(probabilities_NC)
    if space.kind == "single" and space.is_binary:
        return [best_f1_threshold(probabilities_NC[:, space.positive_index])]
    return None
