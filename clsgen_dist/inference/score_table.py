"""The table of scores that opens an evaluation: the model, raw and recalibrated, beside baselines, with notes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clsgen_dist.data.example import Example
from clsgen_dist.evaluation.baselines import affordable_rows, majority_baseline, text_baseline
from clsgen_dist.evaluation.report import ExplanationShare, Report, Scores, recalibration_changes, score
from clsgen_dist.explanations.stated_class import names_decided_class
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.prediction import Prediction
from clsgen_dist.inference.rows import labels_of, logits_and_labels
from clsgen_dist.io.text import MAX_LISTED, quoted

# N rows, C classes, K logits


def build_report(
    predictor: Predictor,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    trained_on: Sequence[Example] | None,
    clusters_N: np.ndarray | None = None,
) -> Report:
    """Scores of the model, raw and recalibrated, and of the baselines, on labelled rows."""
    card, space = predictor.card, predictor.space
    kind, positive = space.kind, space.positive_index
    logits_NK, labels = logits_and_labels(predictor, examples, predictions)

    def scored(name: str, probabilities_NC: np.ndarray, thresholds: list[float] | None = None) -> Scores:
        return score(
            name,
            probabilities_NC,
            labels,
            kind=kind,
            positive=positive,
            thresholds=thresholds,
            clusters_N=clusters_N,
        )

    raw_NC = space.probabilities(logits_NK)
    scores, changes, notes = [scored("dual head, raw", raw_NC)], [], _absent_classes(labels, card.labels)
    if card.calibration:
        calibrated_NC = predictor.reader.calibration.probabilities(logits_NK)
        scores.append(scored("dual head, recalibrated", calibrated_NC, card.thresholds))
        changes = recalibration_changes(
            raw_NC, calibrated_NC, labels, kind=kind, positive=positive, clusters_N=clusters_N
        )
    elif card.distorted_by:
        notes.append(f"not calibrated, though trained with {' and '.join(card.distorted_by)}: run clsgen calibrate")
    if after := [p.after.logits for p in predictions if p.after]:
        after_NK, thresholds = np.array(after), card.thresholds_after
        scores.append(scored("after the explanation, raw", space.probabilities(after_NK)))
        if card.calibration_after:
            after_NC = predictor.reader.calibration_after.probabilities(after_NK)
            scores.append(scored("after the explanation, recalibrated", after_NC, thresholds))
    if trained_on:
        baselines, remarks = _baselines(predictor, examples, trained_on)
        scores += [scored(name, p_NC) for name, p_NC in baselines.items()]
        notes += remarks
    shares: dict[ExplanationShare, float] = {}
    if explained := [p for p in predictions if p.explanation is not None]:
        shares[ExplanationShare.NAMES_DECIDED_CLASS] = names_decided_class(
            [p.explanation or "" for p in explained], [p.label for p in explained], card.labels
        )
    return Report(len(labels), scores, shares, changes, notes)


def _baselines(
    predictor: Predictor, examples: Sequence[Example], trained_on: Sequence[Example]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Probabilities ``[N, C]`` of models that see the training rows and no backbone, by name, and notes on them."""
    space, notes = predictor.space, _texts_of_training(examples, trained_on)
    classes, train_labels = len(space), labels_of(predictor, trained_on)
    name = "class frequencies" if space.kind == "multilabel" else "majority class"
    found = {name: majority_baseline(train_labels, len(examples), classes)}
    train_texts = [e.text for e in trained_on]
    fit_on = affordable_rows(train_texts)
    if len(fit_on) < len(trained_on):
        notes.append(f"TF-IDF baseline: fitted on {len(fit_on):,} of {len(trained_on):,} training rows, at random")
    texts_NC = text_baseline(
        [train_texts[row] for row in fit_on], train_labels[fit_on], [e.text for e in examples], classes
    )
    if texts_NC is None:
        notes.append("no TF-IDF baseline: the training rows are of one class, or hold no words")
    else:
        found["TF-IDF logistic regression"] = texts_NC
    return found, notes


def _texts_of_training(examples: Sequence[Example], trained_on: Sequence[Example]) -> list[str]:
    """A note on texts that the model was trained on, if there are any; spaces do not count."""
    known = {" ".join(example.text.split()) for example in trained_on}
    repeated = sum(" ".join(example.text.split()) in known for example in examples)
    if not repeated:
        return []
    return [f"{repeated} of the {len(examples)} texts also occur in the training rows: new texts may fare worse"]


def _absent_classes(labels: np.ndarray, names: Sequence[str]) -> list[str]:
    """A note on classes that no row has, if there are any."""
    there = labels if labels.ndim == 1 else np.flatnonzero((np.nan_to_num(labels) > 0.5).any(axis=0))
    absent = [name for index, name in enumerate(names) if index not in there]
    if not absent:
        return []
    alone = labels.ndim == 1 and len(absent) == len(names) - 1
    what = "needs two classes" if alone else "and F1 are of the other classes"
    return [f"no row of the class {', '.join(map(quoted, absent[:MAX_LISTED]))}: AUROC {what}"]
