"""Evaluation report of an exported model on held-out rows: discrimination, calibration, and explanations.

Every metric has a 95 % bootstrap interval over the rows, and is compared with baselines on the same rows: the majority
class and, given training rows, logistic regression on TF-IDF of their texts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from clsgen_dist.evaluation.bootstrap import Interval, bootstrap_interval
from clsgen_dist.evaluation.calibration_error import brier, ece, nll
from clsgen_dist.evaluation.classification import auroc, f1_at, macro_f1, predicted_class
from clsgen_dist.io.tables import markdown_table

# N rows, C classes


@dataclass(frozen=True)
class Scores:
    """One row of the report: the metrics of a model or baseline."""

    name: str
    auroc: float
    auroc_interval: Interval
    f1: float
    f1_interval: Interval
    ece: float
    ece_interval: Interval
    nll: float
    nll_interval: Interval


@dataclass(frozen=True)
class Change:
    """Change of one calibration metric by recalibration, on the same rows; negative is better."""

    measure: str
    difference: float
    interval: Interval


class ExplanationShare(StrEnum):
    """A share of the explanations; the codes are keys of the report's JSON."""

    NAMES_DECIDED_CLASS = "names-decided-class"
    EVIDENCE_IS_TRUE = "evidence-is-true"

    @property
    def words(self) -> str:
        """The code in words."""
        return _SHARE_WORDS[self]


_SHARE_WORDS = {
    ExplanationShare.NAMES_DECIDED_CLASS: "explanation names the decided class",
    ExplanationShare.EVIDENCE_IS_TRUE: "explanation's evidence is true to the note",
}


@dataclass(frozen=True)
class Report:
    """Metrics of the model and its baselines, and statistics of the explanations."""

    rows: int
    scores: list[Scores] = field(default_factory=list)
    explanations: dict[ExplanationShare, float] = field(default_factory=dict)
    """Shares of the explanations, in [0, 1]."""
    recalibration: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Metrics that could not be computed, and why."""

    def to_json(self) -> str:
        """The report as JSON; undefined metrics are null."""
        return json.dumps(_without_nan(asdict(self)), indent=2) + "\n"

    def table(self) -> str:
        """The report as a Markdown table."""
        columns = [f"held-out, {self.rows} rows", "AUROC", "F1", "ECE", "NLL"]
        rows = [
            [
                s.name,
                _cell(s.auroc, s.auroc_interval),
                _cell(s.f1, s.f1_interval),
                _cell(s.ece, s.ece_interval),
                _cell(s.nll, s.nll_interval),
            ]
            for s in self.scores
        ]
        return markdown_table([columns, *rows])

    def text(self) -> str:
        """Table and statistics as text."""
        shares = [f"{kind.words}: {share:.1%}" for kind, share in self.explanations.items()]
        changes = [f"{c.measure} {_cell(c.difference, c.interval, sign='+')}" for c in self.recalibration]
        recalibration = [f"recalibrated - raw: {', '.join(changes)}"] if changes else []
        return "\n".join([self.table(), *recalibration, *shares, *(f"note: {note}" for note in self.notes)])


def score(
    name: str, probabilities_NC: np.ndarray, labels_N: np.ndarray, *, positive: int, threshold: float | None
) -> Scores:
    """AUROC, F1 (binary: of the positive class at ``threshold``; else macro), ECE and NLL, each with its interval."""

    def f1(index: np.ndarray) -> float:
        if probabilities_NC.shape[1] == 2:
            return f1_at(
                probabilities_NC[index, positive], labels_N[index] == positive, 0.5 if threshold is None else threshold
            )
        return macro_f1(predicted_class(probabilities_NC[index], positive, None), labels_N[index])

    statistics: dict[str, Callable[[np.ndarray], float]] = {
        "auroc": lambda index: auroc(probabilities_NC[index], labels_N[index], positive),
        "f1": f1,
        "ece": lambda index: ece(probabilities_NC[index], labels_N[index], positive=positive),
        "nll": lambda index: nll(probabilities_NC[index], labels_N[index]),
    }
    rows_N = np.arange(len(labels_N))
    values = {key: statistic(rows_N) for key, statistic in statistics.items()}
    intervals = {
        f"{key}_interval": bootstrap_interval(statistic, len(labels_N)) for key, statistic in statistics.items()
    }
    return Scores(name, **values, **intervals)  # type: ignore[arg-type]


def recalibration_changes(
    raw_NC: np.ndarray, recalibrated_NC: np.ndarray, labels_N: np.ndarray, *, positive: int
) -> list[Change]:
    """Recalibrated minus raw, by ECE, NLL and Brier score, each with the interval of the paired difference."""
    measures: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "ECE": lambda probabilities_NC, labels_N: ece(probabilities_NC, labels_N, positive=positive),
        "NLL": nll,
        "Brier": brier,
    }
    rows_N = np.arange(len(labels_N))
    changes = []
    for name, measure in measures.items():

        def difference(index: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], float] = measure) -> float:
            return measure(recalibrated_NC[index], labels_N[index]) - measure(raw_NC[index], labels_N[index])

        changes.append(Change(name, difference(rows_N), bootstrap_interval(difference, len(labels_N))))
    return changes


def majority_baseline(train_labels: np.ndarray, rows: int, classes: int) -> np.ndarray:
    """The class frequencies of the training rows, repeated for every row: ``[rows, C]``."""
    frequency_C = np.bincount(train_labels, minlength=classes) / len(train_labels)
    return np.tile(frequency_C, (rows, 1))


def linear_baseline(train_features: np.ndarray, train_labels: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Logistic regression on standardised features, its penalty cross-validated: probabilities ``[rows, C]``."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = LogisticRegressionCV(
        Cs=np.logspace(-4, 1, 6),
        cv=5,
        max_iter=2000,
        scoring="neg_log_loss",
        l1_ratios=(0,),
        use_legacy_attributes=False,
    )
    model = make_pipeline(StandardScaler(), classifier)
    return np.asarray(model.fit(train_features, train_labels).predict_proba(features))


def text_baseline(
    train_texts: Sequence[str], train_labels: np.ndarray, texts: Sequence[str], classes: int
) -> np.ndarray | None:
    """Logistic regression on TF-IDF of word pairs: probabilities ``[rows, C]``, 0 for a class without training rows.

    None if it cannot be fitted: one class only, or texts without words.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 3), sublinear_tf=True), LogisticRegression(max_iter=2000, C=10)
    )
    if len(np.unique(train_labels)) < 2 or not any(re.search(r"\w\w", text) for text in train_texts):
        return None
    fitted = model.fit(train_texts, train_labels)
    probabilities_NC = np.zeros((len(texts), classes))
    probabilities_NC[:, fitted.classes_] = fitted.predict_proba(texts)
    return probabilities_NC


def names_decided_class(explanations: Sequence[str], decided: Sequence[str], labels: Sequence[str]) -> float:
    """Fraction of explanations in which the predicted class is the first class mentioned."""
    count = 0
    for explanation, label in zip(explanations, decided, strict=True):
        places = {name: explanation.lower().find(name.lower()) for name in labels}
        mentions = [(place, -len(name), name) for name, place in places.items() if place >= 0]
        count += bool(mentions) and min(mentions)[2] == label
    return count / max(1, len(explanations))


def _cell(value: float, interval: Interval, sign: str = "") -> str:
    if np.isnan(value):
        return "n/a"
    return f"{value:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
