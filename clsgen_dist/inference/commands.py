"""The verbs that work on an exported model; their arguments are the command line's."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clsgen_dist.calibration.affine import AffineCalibration, fit_affine, require_rows
from clsgen_dist.data.checks.finding import MAX_LISTED, named
from clsgen_dist.data.example import Columns, Example
from clsgen_dist.data.reading.cells import is_blank
from clsgen_dist.data.reading.ingest import Ingested, read_examples, read_texts
from clsgen_dist.data.reading.rejection import places, refuse_if_too_bad
from clsgen_dist.errors import DataError
from clsgen_dist.evaluation.classification import best_f1_threshold
from clsgen_dist.evaluation.report import (
    Report,
    majority_baseline,
    names_decided_class,
    recalibration_changes,
    score,
    text_baseline,
)
from clsgen_dist.inference.predict import Prediction, Predictor
from clsgen_dist.track.progress import Progress

# N rows, C classes


def predict(
    model: str,
    input: str | None = None,
    output: str | None = None,
    text: str | None = None,
    columns: Columns | None = None,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    explain: bool = True,
    max_bad_fraction: float = 1.0,
) -> None:
    """Probability of each class and an explanation, for every row of a file or for a single text.

    Every row is answered, in the file's order: one without a usable text by its id and `error`.

    Args:
        model: Folder that `clsgen export` wrote.
        input: Rows (JSONL, CSV, Parquet, saved folder or hub id); labels and explanations in them are not looked at.
        output: JSONL to write, one line for each row of the input.
        text: A single text instead of a file, taken as it is; the answer is printed as JSON.
        columns: How the input's columns are called.
        batch_size: Rows decoded together.
        max_new_tokens: Longest explanation in tokens; none: as long as the longest that training allowed.
        explain: Decode explanations too; without them only the probabilities are computed, many times faster.
        max_bad_fraction: Stop with status 2, before predicting, when more than this share of the rows has no usable text.
    """  # noqa: E501
    if (text is None) == (input is None) or (input is not None and output is None):
        raise DataError("give either --text TEXT, or both --input ROWS and --output FILE")
    if text is not None:
        if is_blank(text):
            raise DataError("--text is empty; give the text to classify")
        [prediction] = Predictor(Path(model)).predict([text], explain=explain, max_new_tokens=max_new_tokens)
        print(json.dumps(_as_json(prediction), ensure_ascii=False))
        return
    assert input is not None and output is not None
    rows = read_texts(input, columns or Columns())
    good = [row for row in rows if row.rejected is None]
    bad = [row.rejected for row in rows if row.rejected is not None]
    refuse_if_too_bad(input, len(good), len(bad), bad, max_bad_fraction, None, "--max_bad_fraction")
    predictor = Predictor(Path(model))
    predictions = predict_texts(predictor, [row.text for row in good], batch_size, explain, max_new_tokens)
    answers = iter(predictions)
    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(target.name + ".tmp")
    with aside.open("w", encoding="utf-8", errors="backslashreplace") as file:  # an id may hold what UTF-8 cannot
        for row in rows:
            if row.rejected is None:
                answer = _as_json(next(answers))
            else:
                answer = {"error": row.rejected.reason, "code": row.rejected.code}
            file.write(json.dumps({"id": row.id, **answer}, ensure_ascii=False) + "\n")
    aside.replace(target)
    shortened = sum(p.truncated for p in predictions)
    print(f"wrote {len(rows)} rows to {target}: {len(good)} predicted, {shortened} of them shortened in the middle")
    if bad:
        print(f"{len(bad)} of {len(rows)} rows have an error instead: {places(bad)}", file=sys.stderr)


def calibrate(
    model: str, data: str, columns: Columns | None = None, batch_size: int = 32, max_bad_fraction: float = 0.01
) -> None:
    """Fit affine recalibration and (binary) the best F1 threshold on held-out rows, and store them with the model.

    Args:
        model: Folder that `clsgen export` wrote; its clsgen.json is updated.
        data: Labelled rows that were neither trained on nor will be reported on.
        columns: How the columns are called.
        batch_size: Rows put through the model together.
        max_bad_fraction: Stop when more than this share of the rows is bad; fewer are left out, and listed.
    """
    folder = Path(model)
    predictor = Predictor(folder)
    rows = labelled_rows(predictor, data, columns, max_bad_fraction)
    try:
        require_rows(_labels_of(predictor, rows.examples), predictor.card.labels)
    except DataError as error:
        raise DataError(f"{data}: {error}") from None
    predictions = predict_rows(predictor, rows.examples, batch_size, explain=False)
    logits_NC, labels_N = _logits_and_labels(predictor, rows.examples, predictions)
    calibration = fit_affine(logits_NC, labels_N)
    probabilities_NC = probabilities(logits_NC, calibration)
    threshold = None
    if len(predictor.card.labels) == 2:
        threshold = best_f1_threshold(probabilities_NC[:, predictor.positive])
    dataclasses.replace(
        predictor.card,
        calibration=calibration.to_json(),
        threshold=threshold,
        calibrated_on={"source": data, "rows": len(labels_N)},
    ).write(folder)
    print(
        f"calibrated on {len(labels_N)} rows: slope {calibration.scale:.3f}, offsets "
        f"{', '.join(f'{b:.3f}' for b in calibration.bias_C)}"
        + (f", threshold {threshold:.3f}" if threshold is not None else "")
    )


def evaluate(
    model: str,
    data: str,
    train: str | None = None,
    output: str | None = None,
    columns: Columns | None = None,
    batch_size: int = 32,
    explain: bool = True,
    max_bad_fraction: float = 0.01,
) -> None:
    """AUROC, F1 and ECE on held-out rows with bootstrap intervals, beside baselines.

    Args:
        model: Folder that `clsgen export` wrote.
        data: Labelled rows that were neither trained nor calibrated on.
        train: The training rows, for the baselines (majority class, TF-IDF logistic regression); none: no baselines.
        output: JSON file for the report.
        columns: How the columns are called.
        batch_size: Rows put through the model together.
        explain: Decode explanations too, and count how many name the decided class.
        max_bad_fraction: Stop when more than this share of the rows is bad; fewer are left out, and listed.
    """
    predictor = Predictor(Path(model))
    rows = labelled_rows(predictor, data, columns, max_bad_fraction)
    trained_on = labelled_rows(predictor, train, columns, max_bad_fraction) if train else None
    predictions = predict_rows(predictor, rows.examples, batch_size, explain)
    report = build_report(predictor, rows.examples, predictions, trained_on.examples if trained_on else None)
    if rows.rejected:
        report = dataclasses.replace(report, notes=[f"bad rows left out: {len(rows.rejected)}", *report.notes])
    print(report.text())
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(report.to_json(), encoding="utf-8")


def build_report(
    predictor: Predictor,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    trained_on: Sequence[Example] | None,
) -> Report:
    """Scores of the model, raw and recalibrated, and of the baselines, on labelled rows."""
    card, positive = predictor.card, predictor.positive
    logits_NC, labels_N = _logits_and_labels(predictor, examples, predictions)
    identity = AffineCalibration.identity(len(card.labels))
    raw_NC = probabilities(logits_NC, identity)
    scores = [score("dual head, raw", raw_NC, labels_N, positive=positive, threshold=None)]
    changes, notes = [], []
    absent = [name for index, name in enumerate(card.labels) if index not in labels_N]
    if absent:
        notes.append(
            f"no row of the class {', '.join(map(named, absent[:MAX_LISTED]))}: AUROC "
            + ("needs two classes" if len(absent) == len(card.labels) - 1 else "and F1 are of the other classes")
        )
    if card.calibration:
        calibrated_NC = probabilities(logits_NC, predictor.calibration)
        scores.append(
            score("dual head, recalibrated", calibrated_NC, labels_N, positive=positive, threshold=card.threshold)
        )
        changes = recalibration_changes(raw_NC, calibrated_NC, labels_N, positive=positive)
    if trained_on:
        train_labels = _labels_of(predictor, trained_on)
        majority_NC = majority_baseline(train_labels, len(labels_N), len(card.labels))
        scores.append(score("majority class", majority_NC, labels_N, positive=positive, threshold=None))
        texts_NC = text_baseline(
            [e.text for e in trained_on], train_labels, [e.text for e in examples], len(card.labels)
        )
        if texts_NC is None:
            notes.append("no TF-IDF baseline: the training rows are of one class, or hold no words")
        else:
            scores.append(score("TF-IDF logistic regression", texts_NC, labels_N, positive=positive, threshold=None))
    shares = {}
    if predictions and predictions[0].explanation is not None:
        texts = [p.explanation or "" for p in predictions]
        shares["explanation names the decided class"] = names_decided_class(
            texts, [p.label for p in predictions], card.labels
        )
    return Report(len(labels_N), scores, shares, changes, notes)


def probabilities(logits_NC: np.ndarray, calibration: AffineCalibration) -> np.ndarray:
    """Calibrated class probabilities ``[N, C]``."""
    from scipy.special import softmax

    return np.asarray(softmax(calibration.apply(logits_NC), axis=1))


def predict_rows(predictor: Predictor, examples: Sequence[Example], batch_size: int, explain: bool) -> list[Prediction]:
    """Predictions in the rows' order, with a progress bar."""
    return predict_texts(predictor, [example.text for example in examples], batch_size, explain)


def predict_texts(
    predictor: Predictor,
    texts: Sequence[str],
    batch_size: int,
    explain: bool,
    max_new_tokens: int | None = None,
) -> list[Prediction]:
    """Predictions in the texts' order, with a progress bar."""
    found: dict[int, Prediction] = {}
    with Progress(len(texts), enabled=True, unit="row", label="predict", stream=sys.stderr) as progress:
        for index, prediction in predictor.stream(
            texts, batch_size=batch_size, explain=explain, max_new_tokens=max_new_tokens
        ):
            found[index] = prediction
            progress.update()
    return [found[index] for index in range(len(texts))]


def labelled_rows(
    predictor: Predictor, source: str, columns: Columns | None = None, max_bad_fraction: float = 0.01
) -> Ingested:
    """The labelled rows of a source, in the model's label space; their explanations are not looked at."""
    rows = read_examples(
        source,
        columns=dataclasses.replace(columns or Columns(), explanation="", explanations="", difficulty=None),
        labels=predictor.card.labels,
        max_bad_fraction=max_bad_fraction,
        quarantine=None,
        require_target=False,
        setting="--max_bad_fraction",
    )
    if rows.rejected:
        print(f"{source}: bad rows left out: {len(rows.rejected)}; {places(rows.rejected)}", file=sys.stderr)
    labelled = [example for example in rows.examples if example.label is not None]
    if not labelled:
        raise DataError(f"{source} has no labelled row; name the label column with --columns.label")
    if len(labelled) < len(rows.examples):
        print(f"{source}: rows without label left out: {len(rows.examples) - len(labelled)}")
    return dataclasses.replace(rows, examples=labelled)


def _labels_of(predictor: Predictor, examples: Sequence[Example]) -> np.ndarray:
    return np.array([predictor.card.labels.index(str(example.label)) for example in examples])


def _logits_and_labels(
    predictor: Predictor, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> tuple[np.ndarray, np.ndarray]:
    return np.array([prediction.logits for prediction in predictions]), _labels_of(predictor, examples)


def _as_json(prediction: Prediction) -> dict[str, object]:
    fields: dict[str, object] = {
        "label": prediction.label,
        "probabilities": {name: round(p, 6) for name, p in prediction.probabilities.items()},
    }
    if prediction.explanation is not None:
        fields["explanation"] = prediction.explanation
    if prediction.truncated:
        fields["truncated"] = True
    return fields
