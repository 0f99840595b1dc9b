"""An exported model measured on held-out rows, with baselines that see the same rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clsgen_dist.data.example import Columns, Example
from clsgen_dist.evaluation.baselines import majority_baseline, text_baseline
from clsgen_dist.evaluation.report import (
    ExplanationShare,
    Report,
    Scores,
    recalibration_changes,
    score,
)
from clsgen_dist.explanations.stated_class import names_decided_class
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
    card, space = predictor.card, predictor.space
    kind, positive = space.kind, space.positive_index
    logits_NK, labels = logits_and_labels(predictor, examples, predictions)

    def scored(name: str, probabilities_NC: np.ndarray, thresholds: list[float] | None = None) -> Scores:
        return score(name, probabilities_NC, labels, kind=kind, positive=positive, thresholds=thresholds)

    raw_NC = space.probabilities(logits_NK)
    scores, changes, notes = [scored("dual head, raw", raw_NC)], [], _absent_classes(labels, card.labels)
    if card.calibration:
        calibrated_NC = predictor.calibration.probabilities(logits_NK)
        scores.append(scored("dual head, recalibrated", calibrated_NC, card.thresholds))
        changes = recalibration_changes(raw_NC, calibrated_NC, labels, kind=kind, positive=positive)
    elif card.distorted_by:
        notes.append(f"not calibrated, though trained with {' and '.join(card.distorted_by)}: run clsgen calibrate")
    if after := [p.after.logits for p in predictions if p.after]:
        after_NK, thresholds = np.array(after), card.thresholds_after
        scores.append(scored("after the explanation, raw", space.probabilities(after_NK)))
        if card.calibration_after:
            after_NC = predictor.calibration_after.probabilities(after_NK)
            scores.append(scored("after the explanation, recalibrated", after_NC, thresholds))
    if trained_on:
        train_labels = labels_of(predictor, trained_on)
        name = "class frequencies" if kind == "multilabel" else "majority class"
        scores.append(scored(name, majority_baseline(train_labels, len(labels), len(card.labels))))
        texts_NC = text_baseline(
            [e.text for e in trained_on], train_labels, [e.text for e in examples], len(card.labels)
        )
        if texts_NC is None:
            notes.append("no TF-IDF baseline: the training rows are of one class, or hold no words")
        else:
            scores.append(scored("TF-IDF logistic regression", texts_NC))
    shares: dict[ExplanationShare, float] = {}
    if predictions and predictions[0].explanation is not None:
        texts = [p.explanation or "" for p in predictions]
        shares[ExplanationShare.NAMES_DECIDED_CLASS] = names_decided_class(
            texts, [p.label for p in predictions], card.labels
        )
    return Report(len(labels), scores, shares, changes, notes)


def _absent_classes(labels: np.ndarray, names: Sequence[str]) -> list[str]:
    """A note on classes that no row has, if there are any."""
    there = labels if labels.ndim == 1 else np.flatnonzero((np.nan_to_num(labels) > 0.5).any(axis=0))
    absent = [name for index, name in enumerate(names) if index not in there]
    if not absent:
        return []
    alone = labels.ndim == 1 and len(absent) == len(names) - 1
    what = "needs two classes" if alone else "and F1 are of the other classes"
    return [f"no row of the class {', '.join(map(quoted, absent[:MAX_LISTED]))}: AUROC {what}"]
