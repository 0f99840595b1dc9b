"""Recalibration of an exported model on rows that it was not trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from clsgen_dist.calibration.affine import fit_affine, probabilities, require_rows
from clsgen_dist.data.example import Columns
from clsgen_dist.errors import DataError
from clsgen_dist.evaluation.classification import best_f1_threshold
from clsgen_dist.hf_export.artifact import ModelCard
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.rows import labelled_rows, labels_of, logits_and_labels


def calibrate(
    model: str | Path,
    data: str,
    columns: Columns | None = None,
    *,
    batch_size: int = 32,
    max_bad_fraction: float = 0.01,
) -> ModelCard:
    """Fit an affine map on the class logits and (binary) the best F1 threshold, and store them with the model.

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
    try:
        require_rows(labels_of(predictor, rows.examples), predictor.card.labels)
    except DataError as error:
        raise DataError(f"{data}: {error}") from None
    predictions = predictor.predict(
        [row.text for row in rows.examples], batch_size=batch_size, explain=False, progress=True
    )
    logits_NC, labels_N = logits_and_labels(predictor, rows.examples, predictions)
    calibration = fit_affine(logits_NC, labels_N)
    threshold = None
    if len(predictor.card.labels) == 2:
        threshold = best_f1_threshold(probabilities(logits_NC, calibration)[:, predictor.positive])
    card = dataclasses.replace(
        predictor.card,
        calibration=calibration.to_json(),
        threshold=threshold,
        calibrated_on={"source": data, "rows": len(labels_N)},
    )
    card.write(folder)
    return card
