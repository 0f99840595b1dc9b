"""Recalibration of an exported model on rows that it was not trained on."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clsgen_dist.calibration.decisions import DecisionRules
from clsgen_dist.calibration.fit_reading import FittedReading, fit_reading
from clsgen_dist.calibration.fitting_rows import fittable_classes, require_rows
from clsgen_dist.calibration.names import MethodOrAuto
from clsgen_dist.calibration.prevalence import stated_shares
from clsgen_dist.calibration.score_counts import score_counts
from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.ingest import iter_texts
from clsgen_dist.data.reading.rejection import require_few_bad_rows
from clsgen_dist.errors import DataError, SettingsError
from clsgen_dist.hf_export.artifact import ModelCard
from clsgen_dist.inference.measures import clusters
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.prediction import Prediction
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
    threshold: str = "f1",
    prevalence: str | None = None,
    prevalence_from: str | None = None,
    coverage: float | None = None,
    class_conditional: bool | None = None,
    hand_over: str | None = None,
    intervals: bool = False,
    batch_size: int = 32,
    max_bad_fraction: float = 0.01,
) -> ModelCard:
    """Fit a calibration of the class logits and decisions on it, and store them with the model.

    Thresholds: binary, of the positive class; multi-label, of each class. A model that decides before and after its
    explanation gets all of it for each reading, on the explanations that it writes. Weights do not change. Nothing of
    an earlier call is kept.

    Args:
        model: folder that :func:`clsgen_dist.export` wrote; its ``clsgen.json`` is updated.
        data: labelled rows that were neither trained on nor will be reported on; not needed for ``none``.
        columns: how the columns are called; rows of one ``cluster`` are in one fold, and resampled together.
        method: ``auto`` chooses by cross-fitted likelihood (:func:`clsgen_dist.calibration.choice.choose`); ``none``
            removes calibration and decisions, so that probabilities are the raw ones again.
        threshold: ``f1``, ``recall=R``, ``precision=P`` or ``cost=FP:FN`` (:mod:`clsgen_dist.calibration.thresholds`).
        prevalence: shares of the classes where the model is used, ``a=0.2,b=0.1``; None: those of ``data``.
        prevalence_from: unlabelled rows from there, to estimate the shares.
        coverage: how many of the sets hold the true class (:mod:`clsgen_dist.calibration.conformal`); None: no sets.
        class_conditional: whether the coverage is promised for each class; None: if the prevalence is another.
        hand_over: ``risk=R`` or ``workload=W`` (:mod:`clsgen_dist.calibration.handing_over`); None: nothing is.
        intervals: whether probabilities get Venn-Abers intervals (:mod:`clsgen_dist.calibration.venn_abers`).
        batch_size: rows put through the model together.
        max_bad_fraction: more bad rows than this share raise; fewer are left out.

    Raises:
        ModelError: ``model`` is no exported folder, or its logits are not finite.
        SettingsError: an option cannot be read, or is not for the model's label space; there is no ``data``.
        DataError: the rows cannot be read, a class has none, they are fewer than an option needs, or no threshold
            achieves what is asked.
    """
    folder, moved = Path(model), prevalence is not None or prevalence_from is not None
    rules = DecisionRules.parse(
        threshold=threshold,
        coverage=coverage,
        class_conditional=class_conditional,
        hand_over=hand_over,
        intervals=intervals,
        other_prevalence=moved,
    )
    if method == "none":
        if moved or rules != DecisionRules():
            raise SettingsError(
                "--method none removes thresholds, prevalence, sets, handing over and intervals; leave their options "
                "out, or use --method auto"
            )
        return _remove(folder)
    if data is None:
        raise SettingsError("--data is missing, expected labelled held-out rows; only --method none needs none")
    if prevalence is not None and prevalence_from is not None:
        raise SettingsError("--prevalence and --prevalence_from are both given, expected one of them; leave one out")
    _check_options(ModelCard.read(folder).space, rules, prevalence)
    predictor = Predictor(folder)
    space, both = predictor.space, predictor.card.decide == "both"
    rows = labelled_rows(predictor, data, columns, max_bad_fraction)
    unlabelled = _texts(prevalence_from, columns, max_bad_fraction) if prevalence_from else None
    labels = labels_of(predictor, rows.examples)
    clustered = {"clusters_N": clusters(rows.examples)} if columns and columns.cluster else {}
    options: dict[str, Any] = {"prevalence": prevalence, **clustered}

    def predict(texts: Sequence[str], ids: Sequence[str] | None = None) -> list[Prediction]:
        return predictor.predict(texts, batch_size=batch_size, explain=both, progress=True, ids=ids)

    def fit(logits: Callable[[Prediction], tuple[float, ...]]) -> FittedReading:
        logits_NK = np.array([logits(prediction) for prediction in labelled])
        new_NK = None if new is None else np.array([logits(prediction) for prediction in new])
        only = None if method == "auto" else method
        return fit_reading(logits_NK, labels, space, only, rules, unlabelled_NK=new_NK, **options)

    try:
        _require_rows(labels, space, data)
        labelled = predict([row.text for row in rows.examples], [row.id for row in rows.examples])
        new = None if unlabelled is None else predict(unlabelled)
        fitted = fit(lambda prediction: prediction.logits)
        after = fit(_after) if both else None
    except DataError as error:
        raise DataError(f"{data}: {error}") from None
    calibrated_on: dict[str, Any] = {"source": data, "rows": len(labels)}
    if prevalence_from is not None:
        calibrated_on["prevalence_from"] = prevalence_from
    if not moved:  # else new rows are not expected to look like these
        calibrated_on["score_counts"] = _score_counts(fitted, labelled, space)
    card = _with(predictor.card, fitted, after, calibrated_on)
    card.write(folder)
    return card


def _check_options(space: LabelSpace, rules: DecisionRules, prevalence: str | None) -> None:
    """SettingsError for what is not for the label space, before the model is loaded and computes for minutes."""
    rules.check(space)
    if prevalence is not None:
        stated_shares(prevalence, space.names, space.kind)


def _texts(source: str, columns: Columns | None, max_bad_fraction: float) -> list[str]:
    """The texts of rows whose labels are not looked at."""
    rows = list(iter_texts(source, columns or Columns()))
    rejected = [row.rejected for row in rows if row.rejected is not None]
    require_few_bad_rows(
        source, len(rows) - len(rejected), len(rejected), rejected, max_bad_fraction, None, "--max_bad_fraction"
    )
    return [row.text for row in rows if row.rejected is None]


def _score_counts(fitted: FittedReading, rows: Sequence[Prediction], space: LabelSpace) -> dict[str, list[int]]:
    probabilities_NC = fitted.calibration.probabilities(np.array([row.logits for row in rows]))
    return score_counts(probabilities_NC, space.names)


def _after(prediction: Prediction) -> tuple[float, ...]:
    assert prediction.after is not None
    return prediction.after.logits


def _require_rows(labels: np.ndarray, space: LabelSpace, data: str) -> None:
    """DataError for too few rows; multi-label: a warning with the classes that are left uncalibrated."""
    if space.kind != "multilabel":
        require_rows(labels, space.names)
    elif not (fittable := fittable_classes(labels)).all():
        missing = [name for name, fits in zip(space.names, fittable, strict=True) if not fits]
        logger.warning("%s: too few rows with both answers, left uncalibrated: %s", data, ", ".join(missing))


def _with(
    card: ModelCard, fitted: FittedReading | None, after: FittedReading | None, calibrated_on: dict[str, Any] | None
) -> ModelCard:
    """The card with what was fitted to each reading; None: nothing."""
    return dataclasses.replace(
        card,
        **_fields(fitted, ""),
        **_fields(after, "_after"),
        calibrated_on=calibrated_on,
    )


def _fields(fitted: FittedReading | None, reading: str) -> dict[str, Any]:
    thresholds = fitted.decisions.thresholds if fitted else None
    return {
        f"calibration{reading}": fitted and fitted.calibration.to_json(),
        f"calibration_choice{reading}": fitted and fitted.comparison.to_json(),
        f"thresholds{reading}": thresholds.values if thresholds else None,
        f"decisions{reading}": fitted and fitted.decisions.to_json(),
    }


def _remove(folder: Path) -> ModelCard:
    """The card as exported."""
    card = _with(ModelCard.read(folder), None, None, calibrated_on=None)
    card.write(folder)
    return card
