"""An exported model measured on held-out rows, beside baselines and, if wanted, beside another model.

1. The rows are read, and what the model computes for them is stored batch by batch (``stored_predictions``).
2. Decisions, probabilities and explanations are measured (``measures``); the model is asked again about rows whose
   evidence is masked or edited, about general text (``capability``), and about tasks (``harness``); another one may
   judge the explanations (``llm_judge``).
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
from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.errors import SettingsError
from clsgen_dist.evaluation.metrics import decide
from clsgen_dist.inference.capability import Capability, backbone_of, general_text, measure_capability
from clsgen_dist.inference.compare import compared_metrics
from clsgen_dist.inference.evaluation import Comparison, Evaluation
from clsgen_dist.inference.harness import load_tasks, measure_tasks
from clsgen_dist.inference.llm_judge import Judge, JudgedExplanations
from clsgen_dist.inference.measures import (
    clusters,
    measure_decisions,
    measure_explanations,
    measure_faithfulness,
    spread_sample,
)
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.prediction import Prediction
from clsgen_dist.inference.raw_predictions import require_finite
from clsgen_dist.inference.rows import labelled_rows, labels_of
from clsgen_dist.inference.score_table import build_report
from clsgen_dist.inference.settings import JudgeSettings
from clsgen_dist.inference.stored_predictions import Ranks, StoredPredictions, predicting_ranks, stored_predictions
from clsgen_dist.inference.text_embedder import TextEmbedder
from clsgen_dist.io.files import require_writable

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
    decoding: DecodingSettings | None = None,
    faithfulness_rows: int = 0,
    capability_tokens: int = 0,
    general_text_file: str | Path | None = None,
    model_card: bool = True,
    lm_eval_tasks: Sequence[str | Path] = (),
    embedding_model: str | None = None,
    judge: JudgeSettings | None = None,
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
        decoding: how explanations are written; None: as the model's folder says, but never drawn anew, so that what
            the model writes by itself is measured.
        faithfulness_rows: rows whose evidence is masked and edited, some eighteen passes each; 0: none.
        capability_tokens: tokens of general text on which the model is compared with its backbone; 0: none.
        general_text_file: UTF-8 text for that; None: Python's language reference.
        model_card: with ``output``, fill the evaluation part of the model's ``README.md``.
        lm_eval_tasks: tasks of lm-evaluation-harness, as YAML files or folders, for the model and its backbone.
        embedding_model: folder or hub id of a model that embeds explanations and their references.
        judge: a language model that is asked about explanations; their rows are sent to its server.
        max_bad_fraction: more bad rows than this share raise; fewer are left out, and counted in the report's notes.

    Raises:
        ModelError: ``model`` is no exported folder, or its logits are not finite.
        DataError: the rows cannot be read, or none has a label.
        SettingsError: the output cannot be written, the models have other classes, or tasks or judge cannot be used.
        ServerError: the judge does not answer.
    """
    if not explain and (judge or embedding_model):
        raise SettingsError("--judge and --embedding_model read explanations, and --explain is false; leave that out")
    asked = Judge(judge) if judge else None
    if lm_eval_tasks:
        load_tasks(lm_eval_tasks)  # what is wrong with them is raised before the predictions
    with predicting_ranks() as ranks, _predictions_folder(output, ranks) as folder:
        predictor = Predictor(model)
        rows = labelled_rows(predictor, data, columns, max_bad_fraction, explanations=True)
        if embedding_model and not any(example.explanations for example in rows.examples):
            raise SettingsError(f"--embedding_model needs reference explanations, and {data} has none; leave it out")
        trained_on = labelled_rows(predictor, train, columns, max_bad_fraction).examples if train else None
        embed = TextEmbedder(embedding_model, predictor.device) if embedding_model else None
        run = _Run(
            folder,
            ranks,
            columns or Columns(),
            batch_size,
            explain,
            explain_sample,
            faithfulness_rows,
            embed,
            decoding,
        )
        found = run.measure(Path(model), predictor, rows.examples, trained_on)
        if rows.rejected:
            notes = [f"bad rows left out: {len(rows.rejected)}", *found.report.notes]
            found = dataclasses.replace(found, report=dataclasses.replace(found.report, notes=notes))
        if capability_tokens:
            kept = _capability(predictor, capability_tokens, general_text_file)
            found = dataclasses.replace(found, capability=kept)
        if asked and ranks.rank == 0:
            judged = _judged(asked, found, folder / "judge.jsonl", run.clusters(found.examples))
            found = dataclasses.replace(found, judge=judged)
        if lm_eval_tasks and ranks.rank == 0:
            scores = measure_tasks(lm_eval_tasks, predictor.lm, backbone_of(predictor), model, batch_size=batch_size)
            found = dataclasses.replace(found, lm_eval=scores)
        if compare is not None:
            found = dataclasses.replace(found, comparison=_compare(run, found, predictor, Path(compare)))
        found = dataclasses.replace(found, provenance=_provenance(predictor, data, rows.examples, embedding_model))
        if output is not None and ranks.rank == 0:
            from clsgen_dist.inference.write_report import write_report

            write_report(found, Path(output), model_card=model_card)
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
    embed: TextEmbedder | None
    decoding: DecodingSettings | None

    def measure(
        self, model: Path, predictor: Predictor, examples: list[Example], trained_on: Sequence[Example] | None
    ) -> Evaluation:
        """A model's scores, decisions, explanations and faithfulness on the rows; collective."""
        texts = [example.text for example in examples]
        space = predictor.space
        everywhere = self.explain and self.explain_sample is None
        stored = self._stored(predictor, model, texts, "rows", explain=everywhere)
        require_finite(stored.rows, [example.id for example in examples])
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
            report=build_report(predictor, examples, predictions, trained_on, self.clusters(examples)),
            space=space,
            examples=examples,
            predictions=predictions,
            labels=labels,
            probabilities_NC=p_NC,
            decided=decided,
            decisions=measure_decisions(
                p_NC,
                _raw_probabilities(predictor, predictions),
                labels,
                space,
                thresholds,
                examples,
                self.columns,
                predictor.reader.decisions,
            ),
            explained=explained,
            seconds=stored.seconds,
            computed_batches=stored.computed,
        )
        return self._with_explanations(found, model, predictor) if explained else found

    def clusters(self, examples: Sequence[Example]) -> np.ndarray | None:
        """``[N]`` which rows belong together, if a column says so."""
        return clusters(examples) if self.columns.cluster else None

    def _with_explanations(self, found: Evaluation, model: Path, predictor: Predictor) -> Evaluation:
        examples = [found.examples[row] for row in found.explained]
        explanations = [found.predictions[row].explanation or "" for row in found.explained]
        p_NC, decided = found.probabilities_NC[found.explained], found.decided[found.explained]
        clusters_N = self.clusters(examples)
        measured = measure_explanations(
            examples, explanations, p_NC, decided, found.space, self.columns, self.embed, clusters_N
        )
        found = dataclasses.replace(found, explanations=measured)
        if not self.faithfulness_rows:
            return found
        names = found.space.names

        def probability(texts: Sequence[str]) -> np.ndarray:
            raws = self._stored(predictor, model, texts, "masked", explain=False).rows
            require_finite(raws)
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
            clusters_N,
        )
        return dataclasses.replace(found, faithfulness=faithfulness)

    def _stored(
        self, predictor: Predictor, model: Path, texts: Sequence[str], name: str, *, explain: bool
    ) -> StoredPredictions:
        plain = dataclasses.replace(predictor.card.decoding_settings, redraws=0)
        return stored_predictions(
            predictor,
            model,
            texts,
            self.folder,
            name,
            ranks=self.ranks,
            batch_size=self.batch_size,
            explain=explain,
            decoding=self.decoding or plain,
        )


def _raw_probabilities(predictor: Predictor, predictions: Sequence[Prediction]) -> np.ndarray:
    return predictor.space.probabilities(np.array([p.logits for p in predictions]))


def _capability(predictor: Predictor, tokens: int, text: str | Path | None) -> Capability:
    """The model against the backbone it was trained from."""
    return measure_capability(
        predictor.lm, backbone_of(predictor), predictor.tokenizer, general_text(text), tokens=tokens
    )


def _judged(judge: Judge, found: Evaluation, kept: Path, clusters_N: np.ndarray | None) -> JudgedExplanations:
    """The judge's opinion of a sample of the explanations."""
    sample = spread_sample(found.decided[found.explained], judge.settings.rows)
    rows = [found.explained[place] for place in sample]
    answers = [found.predictions[row] for row in rows]
    asked = [(found.examples[row].text, p.decision, p.explanation or "") for row, p in zip(rows, answers, strict=True)]
    return judge.opinions(asked, kept, None if clusters_N is None else clusters_N[rows])


def _compare(run: _Run, found: Evaluation, predictor: Predictor, folder: Path) -> Comparison:
    other = Predictor(folder)
    if other.space != predictor.space:
        raise SettingsError(
            f"{folder} has the classes {list(other.space.names)} ({other.space.kind}), expected those of "
            f"{found.model}, {list(predictor.space.names)} ({predictor.space.kind}); compare models of one label space"
        )
    second = dataclasses.replace(run, faithfulness_rows=0, embed=None).measure(folder, other, found.examples, None)
    metrics, differences = compared_metrics(
        found.probabilities_NC,
        second.probabilities_NC,
        found.labels,
        found.space,
        (predictor.card.thresholds, other.card.thresholds),
        clusters_N=run.clusters(found.examples),
    )
    return Comparison(other=str(folder), metrics=metrics, differences=differences)


def _provenance(
    predictor: Predictor, data: str, examples: Sequence[Example], embedding_model: str | None
) -> dict[str, Any]:
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
        "calibration_method": card.calibration_choice and card.calibration_choice["method"],
        "head_sha256": card.head_sha256,
        "device": str(predictor.device),
        "dtype": str(predictor.lm.dtype).removeprefix("torch."),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "embedding_model": embedding_model,
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }
