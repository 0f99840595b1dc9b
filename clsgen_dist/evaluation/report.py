"""Evaluation report of an exported model on held-out rows: discrimination, calibration, and explanations.

Every metric has a 95 % bootstrap interval over the rows, and is compared with baselines on the same rows: the majority
class and, given training rows, logistic regression on TF-IDF of their texts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from clsgen_dist.evaluation.bootstrap import Interval, bootstrap_intervals
from clsgen_dist.evaluation.metrics import WORDS, Kind, class_metrics
from clsgen_dist.io.tables import markdown_table

# N rows, C classes


SHOWN = {
    "single": ("auroc", "f1", "ece", "nll"),
    "multilabel": ("auroc", "average_precision", "f1", "f1_micro", "ece", "nll"),
    "ordinal": ("auroc", "quadratic_kappa", "mae", "ece", "nll"),
}
"""The report's metrics of each label space."""


@dataclass(frozen=True)
class Scores:
    """One row of the report: the metrics of a model or baseline."""

    name: str
    metrics: dict[str, float]
    """By the names of :mod:`clsgen_dist.evaluation.metrics`."""
    intervals: dict[str, Interval]
    """By the same names."""


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
        fields = asdict(self)
        fields["scores"] = [
            {"name": s["name"], **s["metrics"], **{f"{name}_interval": i for name, i in s["intervals"].items()}}
            for s in fields["scores"]
        ]
        return json.dumps(_without_nan(fields), indent=2) + "\n"

    def table(self) -> str:
        """The report as a Markdown table."""
        names = list(self.scores[0].metrics) if self.scores else []
        rows = [[s.name, *(_cell(s.metrics[name], s.intervals[name]) for name in names)] for s in self.scores]
        return markdown_table([[f"held-out, {self.rows} rows", *(WORDS[name] for name in names)], *rows])

    def text(self) -> str:
        """Table and statistics as text."""
        shares = [f"{kind.words}: {share:.1%}" for kind, share in self.explanations.items()]
        changes = [f"{WORDS[c.measure]} {_cell(c.difference, c.interval, sign='+')}" for c in self.recalibration]
        recalibration = [f"recalibrated - raw: {', '.join(changes)}"] if changes else []
        return "\n".join([self.table(), *recalibration, *shares, *(f"note: {note}" for note in self.notes)])


def score(
    name: str,
    probabilities_NC: np.ndarray,
    labels: np.ndarray,
    *,
    kind: Kind = "single",
    positive: int,
    thresholds: Sequence[float] | None = None,
) -> Scores:
    """The metrics of :data:`SHOWN`, each with its interval; arguments as for :func:`class_metrics`."""

    def metrics(index: np.ndarray) -> dict[str, float]:
        return class_metrics(probabilities_NC[index], labels[index], kind, positive, thresholds, SHOWN[kind])

    return Scores(name, metrics(np.arange(len(labels))), bootstrap_intervals(metrics, len(labels)))


def recalibration_changes(
    raw_NC: np.ndarray, recalibrated_NC: np.ndarray, labels: np.ndarray, *, kind: Kind = "single", positive: int
) -> list[Change]:
    """Recalibrated minus raw, by ECE, NLL and Brier score, each with the interval of the paired difference."""
    names = ("ece", "nll", "brier")

    def differences(index: np.ndarray) -> dict[str, float]:
        raw, recalibrated = (
            class_metrics(p_NC[index], labels[index], kind, positive, names=names) for p_NC in (raw_NC, recalibrated_NC)
        )
        return {name: recalibrated[name] - raw[name] for name in names}

    found, intervals = differences(np.arange(len(labels))), bootstrap_intervals(differences, len(labels))
    return [Change(name, found[name], intervals[name]) for name in names]


def majority_baseline(train_labels: np.ndarray, rows: int, classes: int) -> np.ndarray:
    """The class frequencies of the training rows, repeated for every row: ``[rows, C]``.

    ``train_labels``: classes ``[N]``, or answers ``[N, C]`` with NaN where not known.
    """
    if train_labels.ndim == 2:
        known_C = (~np.isnan(train_labels)).sum(axis=0)
        return np.tile(np.nansum(train_labels, axis=0) / np.maximum(known_C, 1), (rows, 1))
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

    Multi-label: one regression for each class. None if it cannot be fitted: one class only, or texts without words.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 3), sublinear_tf=True), LogisticRegression(max_iter=2000, C=10)
    )
    if len(np.unique(train_labels[~np.isnan(train_labels)])) < 2 or not any(
        re.search(r"\w\w", text) for text in train_texts
    ):
        return None
    probabilities_NC = np.zeros((len(texts), classes))
    if train_labels.ndim == 1:
        fitted = model.fit(train_texts, train_labels)
        probabilities_NC[:, fitted.classes_] = fitted.predict_proba(texts)
        return probabilities_NC
    for index, labels_N in enumerate(train_labels.T):
        known = np.flatnonzero(~np.isnan(labels_N))
        yes_N = labels_N[known] > 0.5
        if len(np.unique(yes_N)) == 2:
            fitted = model.fit([train_texts[int(row)] for row in known], yes_N)
            probabilities_NC[:, index] = fitted.predict_proba(texts)[:, 1]
        else:
            probabilities_NC[:, index] = yes_N.mean() if len(yes_N) else 0.5
    return probabilities_NC


def names_decided_class(
    explanations: Sequence[str], decided: Sequence[str | list[str]], labels: Sequence[str]
) -> float:
    """Fraction of explanations in which the predicted class is the first class mentioned.

    Multi-label: in which the classes mentioned are the predicted ones.
    """
    count = 0
    for explanation, label in zip(explanations, decided, strict=True):
        places = {name: explanation.lower().find(name.lower()) for name in labels}
        mentions = [(place, -len(name), name) for name, place in places.items() if place >= 0]
        if isinstance(label, list):
            count += {name for _, _, name in mentions} == set(label)
        else:
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
