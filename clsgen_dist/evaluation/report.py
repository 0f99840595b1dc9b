"""Evaluation report of an exported model on held-out rows: discrimination, calibration, and explanations.

Every metric has a 95 % interval (``metric_estimates``), and is compared with baselines on the same rows: the majority
class and, given training rows, logistic regression on TF-IDF of their texts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from clsgen_dist.evaluation.bootstrap import bootstrap_intervals
from clsgen_dist.evaluation.interval import UNDEFINED, Interval
from clsgen_dist.evaluation.metric_estimates import metric_estimates
from clsgen_dist.evaluation.metrics import WORDS, Kind, class_metrics
from clsgen_dist.io.tables import markdown_table

# N rows, C classes


SHOWN = {
    "single": ("auroc", "f1", "ece", "nll"),
    "multilabel": (
        "auroc", "auroc_micro", "average_precision", "average_precision_micro", "f1", "f1_micro", "ece", "nll",
    ),
    "ordinal": ("auroc", "quadratic_kappa", "mae", "ece", "nll"),
}  # fmt: skip
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
    """Change of one calibration metric by recalibration, on the same rows; negative is better. ECE has no interval."""

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
        return json.dumps(self.to_fields(), indent=2) + "\n"

    def to_fields(self) -> dict[str, Any]:
        """The same as a dictionary."""
        fields = asdict(self)
        fields["scores"] = [
            {"name": s["name"], **s["metrics"], **{f"{name}_interval": i for name, i in s["intervals"].items()}}
            for s in fields["scores"]
        ]
        return {name: _without_nan(value) for name, value in fields.items()}

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
    clusters_N: np.ndarray | None = None,
) -> Scores:
    """The metrics of :data:`SHOWN`, each with its interval; arguments as for :func:`metric_estimates`."""
    found = metric_estimates(probabilities_NC, labels, kind, positive, thresholds, SHOWN[kind], clusters_N=clusters_N)
    values = {metric: estimate.value for metric, estimate in found.items()}
    return Scores(name, values, {metric: estimate.interval for metric, estimate in found.items()})


def recalibration_changes(
    raw_NC: np.ndarray,
    recalibrated_NC: np.ndarray,
    labels: np.ndarray,
    *,
    kind: Kind = "single",
    positive: int,
    clusters_N: np.ndarray | None = None,
) -> list[Change]:
    """Recalibrated minus raw, by ECE, NLL and Brier score; the last two with the interval of the paired difference."""

    def differences(index: np.ndarray, names: Sequence[str]) -> dict[str, float]:
        raw, recalibrated = (
            class_metrics(p_NC[index], labels[index], kind, positive, names=names) for p_NC in (raw_NC, recalibrated_NC)
        )
        return {name: recalibrated[name] - raw[name] for name in names}

    found = differences(np.arange(len(labels)), ("ece", "nll", "brier"))
    intervals = {"ece": UNDEFINED} | bootstrap_intervals(
        lambda index: differences(index, ("nll", "brier")), len(labels), clusters_N=clusters_N
    )
    return [Change(name, value, intervals[name]) for name, value in found.items()]


def _cell(value: float, interval: Interval, sign: str = "") -> str:
    if np.isnan(value):
        return "n/a"
    if np.isnan(interval.low):
        return f"{value:{sign}.3f}"
    return f"{value:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
