"""An exported model measured on held-out rows, with baselines that see the same rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from clsgen_dist.calibration.affine import AffineCalibration, probabilities
from clsgen_dist.data.example import Columns, Example
from clsgen_dist.evaluation.report import (
    ExplanationShare,
    Report,
    majority_baseline,
    names_decided_class,
    recalibration_changes,
    score,
    text_baseline,
)
from clsgen_dist.inference.predict import Prediction, Predictor
from clsgen_dist.inference.rows import labelled_rows, labels_of, logits_and_labels
from clsgen_dist.io.text import MAX_LISTED, quoted

# N rows, C classes


def evaluate(
    model: str | Path,
    data: str,
    train: str | None = None,
    columns: Columns | None = None,
    *,
    batch_size: int = 32,
    explain: bool = True,
    max_bad_fraction: float = 0.01,
) -> Report:
    """AUROC, F1 and ECE on held-out rows with bootstrap intervals, with baselines.

    Args:
        model: folder that :func:`clsgen_dist.export` wrote.
        data: labelled rows that were neither trained nor calibrated on.
        train: the training rows, for the baselines; None: no baselines.
        columns: how the columns are called.
        batch_size: rows put through the model together.
        explain: decode explanations too, and count how many name the decided class.
        max_bad_fraction: more bad rows than this share raise; fewer are left out, and counted in the report's notes.

    Raises:
        ModelError: ``model`` is no exported folder.
        DataError: the rows cannot be read, or none has a label.
    """
    predictor = Predictor(Path(model))
    rows = labelled_rows(predictor, data, columns, max_bad_fraction)
    trained_on = labelled_rows(predictor, train, columns, max_bad_fraction) if train else None
    predictions = predictor.predict(
        [row.text for row in rows.examples], batch_size=batch_size, explain=explain, progress=True
    )
    report = build_report(predictor, rows.examples, predictions, trained_on.examples if trained_on else None)
    if rows.rejected:
        report = dataclasses.replace(report, notes=[f"bad rows left out: {len(rows.rejected)}", *report.notes])
    return report


def build_report(
    predictor: Predictor,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    trained_on: Sequence[Example] | None,
) -> Report:
    """Scores of the model, raw and recalibrated, and of the baselines, on labelled rows."""
    card, positive = predictor.card, predictor.positive
    logits_NC, labels_N = logits_and_labels(predictor, examples, predictions)
    identity = AffineCalibration.identity(len(card.labels))
    raw_NC = probabilities(logits_NC, identity)
    scores = [score("dual head, raw", raw_NC, labels_N, positive=positive, threshold=None)]
    changes, notes = [], []
    absent = [name for index, name in enumerate(card.labels) if index not in labels_N]
    if absent:
        notes.append(
            f"no row of the class {', '.join(map(quoted, absent[:MAX_LISTED]))}: AUROC "
            + ("needs two classes" if len(absent) == len(card.labels) - 1 else "and F1 are of the other classes")
        )
    if card.calibration:
        calibrated_NC = probabilities(logits_NC, predictor.calibration)
        scores.append(
            score("dual head, recalibrated", calibrated_NC, labels_N, positive=positive, threshold=card.threshold)
        )
        changes = recalibration_changes(raw_NC, calibrated_NC, labels_N, positive=positive)
    if trained_on:
        train_labels = labels_of(predictor, trained_on)
        majority_NC = majority_baseline(train_labels, len(labels_N), len(card.labels))
        scores.append(score("majority class", majority_NC, labels_N, positive=positive, threshold=None))
        texts_NC = text_baseline(
            [e.text for e in trained_on], train_labels, [e.text for e in examples], len(card.labels)
        )
        if texts_NC is None:
            notes.append("no TF-IDF baseline: the training rows are of one class, or hold no words")
        else:
            scores.append(score("TF-IDF logistic regression", texts_NC, labels_N, positive=positive, threshold=None))
    shares: dict[ExplanationShare, float] = {}
    if predictions and predictions[0].explanation is not None:
        texts = [p.explanation or "" for p in predictions]
        shares[ExplanationShare.NAMES_DECIDED_CLASS] = names_decided_class(
            texts, [p.label for p in predictions], card.labels
        )
    return Report(len(labels_N), scores, shares, changes, notes)
