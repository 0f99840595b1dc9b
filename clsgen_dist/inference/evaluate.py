"""An exported model measured on held-out rows, beside baselines and, if wanted, beside another model.

1. The rows are read, and what the model computes for them is stored batch by batch (``stored_predictions``).
2. Decisions, probabilities and explanations are measured (``measures``); the model is asked again about rows whose
   evidence is masked or edited, and about general text (``capability``).
3. A report is written (``write_report``): a page, Markdown, and all figures as JSON.

Over ranks, each computes its share of the predictions, all measure the same, and rank 0 writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from clsgen_dist.data.example import Columns, Example
from clsgen_dist.errors import SettingsError
from clsgen_dist.evaluation.baselines import affordable_rows, majority_baseline, text_baseline
from clsgen_dist.evaluation.metrics import decide
from clsgen_dist.evaluation.report import ExplanationShare, Report, Scores, recalibration_changes, score
from clsgen_dist.explanations.stated_class import names_decided_class
from clsgen_dist.inference.capability import Capability, general_text, measure_capability
from clsgen_dist.inference.compare import compared_metrics
from clsgen_dist.inference.evaluation import Comparison, Evaluation
from clsgen_dist.inference.measures import (
    clusters,
    measure_decisions,
    measure_explanations,
    measure_faithfulness,
    spread_sample,
)
from clsgen_dist.inference.predict import Prediction, Predictor
from clsgen_dist.inference.rows import labelled_rows, labels_of, logits_and_labels
from clsgen_dist.inference.stored_predictions import Ranks, StoredPredictions, predicting_ranks, stored_predictions
from clsgen_dist.io.files import require_writable
from clsgen_dist.io.text import MAX_LISTED, quoted

# N rows, C classes


def evaluate(
    model: str | Path,
    data: str,
    train: str | None = None,
    columns: Columns | None = None,
    *,
    output: str | Path | None = None,
    compare: str | Path | None = None,
    batch_size: int = 32,
    explain: bool = True,
    explain_sample: int | None = None,
    faithfulness_rows: int = 0,
    capability_tokens: int = 0,
    general_text_file: str | Path | None = None,
    max_bad_fraction: float = 0.01,
) -> Evaluation:
    """Measure a model on held-out rows, with intervals and baselines, and write a report.

    Args:
        model: folder that :func:`clsgen_dist.export` wrote.
        data: labelled rows that were neither trained nor calibrated on; their explanations are references.
        train: the training rows, for the baselines; None: no baselines.
        columns: how the columns are called; ``groups`` are reported apart, ``cluster`` holds rows together.
        output: folder for ``index.html``, ``report.md``, ``report.json`` and the predictions; None: no report, and an
            evaluation that is killed begins anew.
        compare: another model of the same classes, measured on the same rows.
        batch_size: rows put through the model together.
        explain: decode explanations too, and measure them.
        explain_sample: decode explanations for so many rows only, evenly over the decided classes.
        faithfulness_rows: rows whose evidence is masked and edited, some eighteen passes each; 0: none.
        capability_tokens: tokens of general text on which the model is compared with its backbone; 0: none.
        general_text_file: UTF-8 text for that; None: Python's language reference.
        max_bad_fraction: more bad rows than this share raise; fewer are left out, and counted in the report's notes.

    Raises:
        ModelError: ``model`` is no exported folder.
        DataError: the rows cannot be read, or none has a label.
        SettingsError: the output cannot be written, or the models have other classes.
    """
    with predicting_ranks() as ranks, _predictions_folder(output, ranks) as folder:
        predictor = Predictor(model)
        rows = labelled_rows(predictor, data, columns, max_bad_fraction, explanations=True)
        trained_on = labelled_rows(predictor, train, columns, max_bad_fraction).examples if train else None
        run = _Run(folder, ranks, columns or Columns(), batch_size, explain, explain_sample, faithfulness_rows)
        found = run.measure(Path(model), predictor, rows.examples, trained_on)
        if rows.rejected:
            notes = [f"bad rows left out: {len(rows.rejected)}", *found.report.notes]
            found = dataclasses.replace(found, report=dataclasses.replace(found.report, notes=notes))
        if capability_tokens:
            kept = _capability(predictor, capability_tokens, general_text_file)
            found = dataclasses.replace(found, capability=kept)
        if compare is not None:
            found = dataclasses.replace(found, comparison=_compare(run, found, predictor, Path(compare)))
        found = dataclasses.replace(found, provenance=_provenance(predictor, data, rows.examples))
        if output is not None and ranks.rank == 0:
            from clsgen_dist.inference.write_report import write_report

            write_report(found, Path(output))
        ranks.barrier()
    return found


@contextmanager
def _predictions_folder(output: str | Path | None, ranks: Ranks) -> Iterator[Path]:
    """Where predictions are kept: in the report's folder, else for this process only."""
    if output is not None:
        if Path(output).suffix in (".json", ".html", ".md"):
            raise SettingsError(
                f"--output is {output}, expected a folder, which gets index.html, report.md, report.json"
            )
        require_writable(Path(output) / "report.json")
        yield Path(output) / "predictions"
    elif ranks.size > 1:
        raise SettingsError("--output is missing, expected a folder that all ranks share: they put predictions there")
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


@dataclass(frozen=True)
class _Run:
    """How models are measured."""

    folder: Path
    ranks: Ranks
    columns: Columns
    batch_size: int
    explain: bool
    explain_sample: int | None
    faithfulness_rows: int

    def measure(
        self, model: Path, predictor: Predictor, examples: list[Example], trained_on: Sequence[Example] | None
    ) -> Evaluation:
        """A model's scores, decisions, explanations and faithfulness on the rows; collective."""
        texts = [example.text for example in examples]
        space = predictor.space
        everywhere = self.explain and self.explain_sample is None
        stored = self._stored(predictor, model, texts, "rows", explain=everywhere)
        predictions = [predictor.read(raw) for raw in stored.rows]
        labels = labels_of(predictor, examples)
        p_NC = np.array([[p.probabilities[name] for name in space.names] for p in predictions])
        thresholds = predictor.card.thresholds
        decided = decide(p_NC, space.kind, space.positive_index, thresholds)
        explained = list(range(len(texts))) if everywhere else []
        if self.explain and self.explain_sample is not None:
            explained = spread_sample(decided, self.explain_sample)
            asked = self._stored(predictor, model, [texts[row] for row in explained], "explained", explain=True)
            for row, raw in zip(explained, asked.rows, strict=True):
                predictions[row] = dataclasses.replace(predictions[row], explanation=raw.explanation)
        found = Evaluation(
            model=str(model),
            report=build_report(predictor, examples, predictions, trained_on),
            space=space,
            examples=examples,
            predictions=predictions,
            labels=labels,
            probabilities_NC=p_NC,
            decided=decided,
            decisions=measure_decisions(
                p_NC, _raw_probabilities(predictor, predictions), labels, space, thresholds, examples, self.columns
            ),
            explained=explained,
            seconds=stored.seconds,
            computed_batches=stored.computed,
        )
        return self._with_explanations(found, model, predictor) if explained else found

    def _with_explanations(self, found: Evaluation, model: Path, predictor: Predictor) -> Evaluation:
        examples = [found.examples[row] for row in found.explained]
        explanations = [found.predictions[row].explanation or "" for row in found.explained]
        p_NC, decided = found.probabilities_NC[found.explained], found.decided[found.explained]
        measured = measure_explanations(examples, explanations, p_NC, decided, found.space)
        found = dataclasses.replace(found, explanations=measured)
        if not self.faithfulness_rows:
            return found
        names = found.space.names

        def probability(texts: Sequence[str]) -> np.ndarray:
            raws = self._stored(predictor, model, texts, "masked", explain=False).rows
            return np.array([[predictor.read(raw).probabilities[name] for name in names] for raw in raws])

        def explain(texts: Sequence[str]) -> list[str]:
            raws = self._stored(predictor, model, texts, "edited", explain=True).rows
            return [raw.explanation or "" for raw in raws]

        faithfulness = measure_faithfulness(
            [example.text for example in examples],
            measured,
            decided,
            found.space,
            predictor.card.thresholds,
            spread_sample(decided, self.faithfulness_rows),
            probability,
            explain,
        )
        return dataclasses.replace(found, faithfulness=faithfulness)

    def _stored(
        self, predictor: Predictor, model: Path, texts: Sequence[str], name: str, *, explain: bool
    ) -> StoredPredictions:
        return stored_predictions(
            predictor, model, texts, self.folder, name, ranks=self.ranks, batch_size=self.batch_size, explain=explain
        )


def _raw_probabilities(predictor: Predictor, predictions: Sequence[Prediction]) -> np.ndarray:
    return predictor.space.probabilities(np.array([p.logits for p in predictions]))


def _capability(predictor: Predictor, tokens: int, text: str | Path | None) -> Capability:
    """The model against the backbone it was trained from."""
    from transformers import AutoModelForCausalLM

    from clsgen_dist.model.backbone import backbone_path

    name = predictor.card.trained.get("backbone")
    if name is None:
        raise SettingsError("clsgen.json names no backbone, so the model cannot be compared with it; export again")
    path = backbone_path(str(name))
    backbone: Any = AutoModelForCausalLM.from_pretrained(path, dtype=predictor.lm.dtype)
    return measure_capability(
        predictor.lm, backbone.to(predictor.device).eval(), predictor.tokenizer, general_text(text), tokens=tokens
    )


def _compare(run: _Run, found: Evaluation, predictor: Predictor, folder: Path) -> Comparison:
    other = Predictor(folder)
    if other.space != predictor.space:
        raise SettingsError(
            f"{folder} has the classes {list(other.space.names)} ({other.space.kind}), expected those of "
            f"{found.model}, {list(predictor.space.names)} ({predictor.space.kind}); compare models of one label space"
        )
    second = dataclasses.replace(run, faithfulness_rows=0).measure(folder, other, found.examples, None)
    metrics, differences = compared_metrics(
        found.probabilities_NC,
        second.probabilities_NC,
        found.labels,
        found.space,
        (predictor.card.thresholds, other.card.thresholds),
        clusters_N=clusters(found.examples) if run.columns.cluster else None,
    )
    return Comparison(other=str(folder), metrics=metrics, differences=differences)


def _provenance(predictor: Predictor, data: str, examples: Sequence[Example]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.id}\0{example.text}\0{example.label}\0{example.answers}\n".encode("utf-8", "replace"))
    packages = ("clsgen-dist", "torch", "transformers", "numpy", "scikit-learn")
    card = predictor.card
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": data,
        "data_sha256": digest.hexdigest(),
        "trained": card.trained,
        "calibrated_on": card.calibrated_on,
        "head_sha256": card.head_sha256,
        "device": str(predictor.device),
        "dtype": str(predictor.lm.dtype).removeprefix("torch."),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


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
        train_texts = [e.text for e in trained_on]
        fit_on = affordable_rows(train_texts)
        texts_NC = text_baseline(
            [train_texts[row] for row in fit_on], train_labels[fit_on], [e.text for e in examples], len(card.labels)
        )
        if len(fit_on) < len(trained_on):
            notes.append(f"TF-IDF baseline: fitted on {len(fit_on):,} of {len(trained_on):,} training rows, at random")
        if texts_NC is None:
            notes.append("no TF-IDF baseline: the training rows are of one class, or hold no words")
        else:
            scores.append(scored("TF-IDF logistic regression", texts_NC))
    shares: dict[ExplanationShare, float] = {}
    if explained := [p for p in predictions if p.explanation is not None]:
        shares[ExplanationShare.NAMES_DECIDED_CLASS] = names_decided_class(
            [p.explanation or "" for p in explained], [p.label for p in explained], card.labels
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
