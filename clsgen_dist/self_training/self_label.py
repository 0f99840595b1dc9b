"""One round of self-training: a model labels unlabelled rows that it is sure of, if held-out rows say that it may.

    guard rows ─predict─▶ is it right where it is sure? ─yes─▶ FILE ─predict─▶ confident ─shares of classes─▶ kept
    kept ─write explanations─▶ those that state the decided class and pass the checks ─▶ label, explanation, provenance

Explanations are decoded for kept rows alone. Predictions are kept batch by batch in ``OUTPUT.parts`` until the rows are
written: a command that was killed goes on, and ranks share the batches (``inference.stored_predictions``). Every round
labels FILE anew, so that a label can be taken back.

Cost: four passes over FILE, a forward pass a row, an explanation a kept row. Memory: a window of rows, 20 bytes a row.

Sources: Yarowsky 1995; Zou et al. 2018 (shares); Arazo et al. 2020, arXiv 1908.02983 (confirmation bias).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clsgen_dist.curation.combine_votes import label_cell
from clsgen_dist.data.example import Columns, Example
from clsgen_dist.errors import GuardError, ModelError, SettingsError
from clsgen_dist.evaluation.metrics import decide
from clsgen_dist.hf_export.artifact import ModelCard
from clsgen_dist.inference.measures import clusters
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.raw_predictions import RawPrediction
from clsgen_dist.inference.rows import labelled_rows, labels_of
from clsgen_dist.inference.stored_predictions import Ranks, predicting_ranks, stored_predictions
from clsgen_dist.io.files import atomic_file, require_writable, writing
from clsgen_dist.model.label_space import Kind
from clsgen_dist.self_training.guard import GuardPrecision, RoundComparison, compare_rounds, guard_precision
from clsgen_dist.self_training.selection import class_shares, selected
from clsgen_dist.self_training.unlabelled_rows import (
    Row,
    RowCounts,
    UnlabelledRows,
    require_apart_from_calibration,
)
from clsgen_dist.teacher.candidates import Drop, FurtherChecks, read_candidate
from clsgen_dist.teacher.journal import Answer
from clsgen_dist.track.progress import Progress

# N rows, C classes

_NO_ANSWER = -1
_Kept = tuple[Example, dict[str, Any], RawPrediction]
"""A row, all its columns, and what decided it."""


@dataclass(frozen=True, kw_only=True)
class SelfLabelSettings:
    """What is kept, and how it is written."""

    number: int
    """Of the round, for the provenance."""
    confidence: float = 0.95
    """Least calibrated probability of the decided class."""
    precision: float = 0.9
    """What the lower end of the guard's interval must reach."""
    class_shares: str = "guard"
    max_per_class: int | None = None
    soft: bool = False
    explain: bool = True
    batch_size: int = 16
    columns: Columns = field(default_factory=Columns)
    max_bad_fraction: float = 0.01


@dataclass
class SelfLabelReport:
    """What the guard said, and what became of the rows."""

    guard: GuardPrecision
    comparison: RoundComparison | None
    counts: RowCounts
    label_space: Kind
    no_answer: int = 0
    """Rows whose logits are not finite, or that are decided after an explanation which cannot be written."""
    unsure: int = 0
    above_share: int = 0
    """Confident rows beyond their class's share."""
    kept: Counter[str] = field(default_factory=Counter)
    """By class."""
    explained: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Explanations of kept rows that are not written, by code."""


def self_label(
    model: str,
    data: str,
    output: Path,
    guard: str,
    settings: SelfLabelSettings,
    checks: FurtherChecks,
    *,
    previous: str | None = None,
) -> SelfLabelReport:
    """Label the rows of a file that the model is sure of.

    Args:
        model: folder that :func:`clsgen_dist.export` wrote, calibrated.
        data: rows; those with a label or an explanation are left out.
        output: JSON lines: the kept rows in order, with their columns; replaced when all rows are predicted.
        guard: labelled rows that were neither trained nor calibrated on.
        settings: what is kept.
        checks: what else may be wrong with an explanation.
        previous: the last round's model, which this one must not be significantly worse than.

    Raises:
        GuardError: the guard says no; nothing is written.
        ModelError: a model is no exported folder, or not calibrated.
        SettingsError: the model is multi-label, its classes are not those of ``previous``, the guard has rows of its
            calibration, or the output cannot be written.
        DataError: rows cannot be read, a guard row is in ``data``, or no rows with the wanted shares can be kept.
    """
    _require_labeller(model)
    if previous is not None and _require_labeller(previous).space != ModelCard.read(Path(model)).space:
        raise SettingsError(f"--previous is {previous}, whose classes are not those of {model}; name its predecessor")
    if output.suffix.lower() != ".jsonl":
        raise SettingsError(
            f"--output is {output}, expected a name that ends in .jsonl: rows are written as JSON lines"
        )
    rows = UnlabelledRows(data, settings.columns, ModelCard.read(Path(model)).label_space)
    if output.exists() and any(Path(file).exists() and output.samefile(file) for file in (rows.part.path, guard)):
        raise SettingsError(f"--output is {output}, rows that are read; name another file")
    require_writable(output)
    with predicting_ranks() as ranks:
        predictor = Predictor(model)
        held_out = labelled_rows(predictor, guard, settings.columns, settings.max_bad_fraction).examples
        require_apart_from_calibration(model, predictor.card.calibrated_on or {}, held_out, settings.columns)
        counts = rows.survey(held_out)
        judge = _Judge(held_out, labels_of(predictor, held_out), settings)
        precision, shares_C = judge.precision(predictor)
        if fault := precision.fault(settings.confidence, settings.precision):
            raise GuardError(f"{guard}: {fault}. Nothing is written")
        comparison = judge.comparison(predictor, previous) if previous is not None else None
        if comparison and (fault := comparison.fault(model)):
            raise GuardError(f"{fault}. Nothing is written")
        labeller = _Labeller(predictor, Path(model), rows, output, settings, checks, ranks)
        report = SelfLabelReport(precision, comparison, counts, predictor.space.kind)
        labeller.run(shares_C, report)
    return report


def _require_labeller(model: str) -> ModelCard:
    """The card of a model whose decisions can be judged; ModelError or SettingsError if they cannot."""
    card = ModelCard.read(Path(model))
    if card.label_space == "multilabel":
        raise SettingsError(
            f"{model} is multi-label, where a row may be sure of one class and not of another: self-labelling is for "
            "one class a row; have people review its predictions, or train a model for each class"
        )
    if card.calibrated_on is None:
        raise ModelError(
            f"{model} is not calibrated, so its probabilities do not say how often it is right; run clsgen calibrate "
            "on held-out rows that are neither --guard nor training rows"
        )
    return card


@dataclass(frozen=True)
class _Judge:
    """The guard's rows."""

    rows: list[Example]
    labels_N: np.ndarray
    settings: SelfLabelSettings

    def precision(self, predictor: Predictor) -> tuple[GuardPrecision, np.ndarray | None]:
        """How often confident decisions are right; and the shares that the classes of kept rows shall have."""
        names, p_NC = predictor.space.names, self._probabilities(predictor)
        decided_N = decide(p_NC, predictor.space.kind, predictor.space.positive_index, predictor.card.thresholds)
        is_confident_N = p_NC[np.arange(len(p_NC)), decided_N] >= self.settings.confidence
        guard_C = np.bincount(self.labels_N, minlength=len(names)) / len(self.labels_N)
        shares_C = class_shares(self.settings.class_shares, names, guard_C)
        return guard_precision(decided_N, self.labels_N, is_confident_N, names, shares_C, self._clusters()), shares_C

    def comparison(self, predictor: Predictor, previous: str) -> RoundComparison:
        """This round's model beside the last one's."""
        other = Predictor(previous)
        return compare_rounds(
            self._probabilities(predictor),
            self._probabilities(other),
            self.labels_N,
            predictor.space,
            (predictor.card.thresholds, other.card.thresholds),
            previous,
            self._clusters(),
        )

    def _clusters(self) -> np.ndarray | None:
        return clusters(self.rows) if self.settings.columns.cluster else None

    def _probabilities(self, predictor: Predictor) -> np.ndarray:
        texts, ids = [row.text for row in self.rows], [row.id for row in self.rows]
        found = predictor.predict(texts, batch_size=self.settings.batch_size, explain=False, ids=ids)
        return np.array([[row.probabilities[name] for name in predictor.space.names] for row in found])


@dataclass(frozen=True)
class _Labeller:
    """The rows of a file through a model that may label them."""

    predictor: Predictor
    model: Path
    rows: UnlabelledRows
    output: Path
    settings: SelfLabelSettings
    checks: FurtherChecks
    ranks: Ranks

    @property
    def _parts(self) -> Path:
        return self.output.with_name(f"{self.output.name}.parts")

    def run(self, shares_C: np.ndarray | None, report: SelfLabelReport) -> None:
        """Predict, select, explain and write; collective."""
        class_N, confidence_N = self._decide(report.counts.unlabelled)
        is_sure_N = confidence_N >= self.settings.confidence  # not of rows without an answer, which have NaN
        is_kept_N = is_sure_N.copy()
        is_kept_N[is_sure_N] = selected(
            class_N[is_sure_N],
            confidence_N[is_sure_N],
            self.predictor.space.names,
            shares_C,
            self.settings.max_per_class,
        )
        report.no_answer = int((class_N == _NO_ANSWER).sum())
        report.unsure = len(class_N) - report.no_answer - int(is_sure_N.sum())
        report.above_share = int(is_sure_N.sum() - is_kept_N.sum())
        if self.settings.explain:
            self._explain(is_kept_N)
        if self.ranks.rank == 0:
            with writing(self.output), atomic_file(self.output, durable=True, errors="backslashreplace") as file:
                for record in self._labelled(is_kept_N, report):
                    file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
            shutil.rmtree(self._parts)
        self.ranks.barrier()

    def _decide(self, total: int) -> tuple[np.ndarray, np.ndarray]:
        """``[N]`` the class of each row, and its probability; NaN without an answer."""
        classes, confidence = array("i"), array("d")
        index = {name: c for c, name in enumerate(self.predictor.space.names)}
        with self._progress(total, "predict") as shown:
            for number, window in enumerate(self.rows.windows()):
                for raw in self._decisions(number, window, self.ranks):
                    answered = raw.is_finite and raw.error is None
                    prediction = self.predictor.read(raw) if answered else None
                    label = "" if prediction is None else str(prediction.label)
                    classes.append(index.get(label, _NO_ANSWER))
                    confidence.append(prediction.probabilities[label] if prediction else np.nan)
                shown.update(len(window))
        return np.array(classes), np.array(confidence)

    def _explain(self, is_kept_N: np.ndarray) -> None:
        """Have the explanations of the kept rows computed and stored."""
        with self._progress(int(is_kept_N.sum()), "explain") as shown:
            for number, kept in enumerate(self._kept(is_kept_N)):
                self._explanations(number, kept, self.ranks)
                shown.update(len(kept))

    def _labelled(self, is_kept_N: np.ndarray, report: SelfLabelReport) -> Iterator[dict[str, Any]]:
        """The kept rows, as they are written."""
        columns, names = self.rows.columns, list(self.predictor.space.names)
        for number, kept in enumerate(self._kept(is_kept_N)):
            explanations = self._explanations(number, kept, Ranks()) if self.settings.explain else [None] * len(kept)
            for (row, record, raw), written in zip(kept, explanations, strict=True):
                prediction = self.predictor.read(raw)
                label = str(prediction.label)
                explanation = self._kept_explanation(row, label, written, report) if written else None
                report.kept[label] += 1
                report.explained += explanation is not None
                p_C = np.array([prediction.probabilities[name] for name in names])
                yield {
                    **record,
                    columns.id: row.id,
                    columns.label: label_cell(p_C, names) if self.settings.soft else label,
                    **({} if explanation is None else {columns.explanation: explanation}),
                    "provenance": f"self:{self.settings.number}",
                }

    def _kept_explanation(self, row: Example, label: str, raw: RawPrediction, report: SelfLabelReport) -> str | None:
        """The explanation, if it states the decided class and passes the checks; counts why not."""
        if raw.error is not None or raw.explanation is None:
            report.dropped["not-written"] += 1
            return None
        names = self.predictor.reader.names
        own = [names.labels.index(label)]
        answer = Answer(raw.explanation, "length" if raw.cut else "stop", 0, 0)
        decided = dataclasses.replace(row, label=label)
        candidate = read_candidate(answer, decided, own, names, with_label=True, checks=self.checks)
        codes = candidate.dropped or (() if names.stated(candidate.text)[:1] == own else (Drop.NO_CLASS,))
        report.dropped.update(map(str, codes))
        return None if codes else candidate.text

    def _kept(self, is_kept_N: np.ndarray) -> Iterator[list[_Kept]]:
        """The kept rows of each window, with what decided them."""
        place = 0
        for number, window in enumerate(self.rows.windows()):
            is_kept = is_kept_N[place : place + len(window)]
            place += len(window)
            raws = self._decisions(number, window, Ranks())
            yield [(*row, raw) for row, raw, kept in zip(window, raws, is_kept, strict=True) if kept]

    def _decisions(self, number: int, window: list[Row], ranks: Ranks) -> list[RawPrediction]:
        """What decides the rows of a window; with the explanation, where that comes first."""
        texts = [row.text for row, _ in window]
        return self._stored(texts, f"rows-{number:06d}", ranks, explain=self._explains_first)

    def _explanations(self, number: int, kept: list[_Kept], ranks: Ranks) -> list[RawPrediction]:
        if self._explains_first:
            return [raw for _, _, raw in kept]
        return self._stored([row.text for row, _, _ in kept], f"kept-{number:06d}", ranks, explain=True)

    @property
    def _explains_first(self) -> bool:
        return self.settings.explain and self.predictor.card.decide == "after"

    def _stored(self, texts: list[str], name: str, ranks: Ranks, *, explain: bool) -> list[RawPrediction]:
        """What the model computes for texts; what is stored is not computed again."""
        options: dict[str, Any] = {"ranks": ranks, "batch_size": self.settings.batch_size, "explain": explain}
        return stored_predictions(
            self.predictor, self.model, texts, self._parts, name, on_rows=lambda rows, *, computed: None, **options
        ).rows

    def _progress(self, total: int, label: str) -> Progress:
        return Progress(total, enabled=self.ranks.rank == 0, unit="row", label=label, rate=True)
