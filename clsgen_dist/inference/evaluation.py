"""The result of an evaluation, and its form as JSON.

Figures of single rows (``values_N`` and the like) are left out of the JSON: predictions and rows are beside it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from clsgen_dist.data.example import Example
from clsgen_dist.evaluation.bootstrap import Difference
from clsgen_dist.evaluation.report import Report
from clsgen_dist.evaluation.selective import RiskCoverage
from clsgen_dist.explanations.estimates import RowScores
from clsgen_dist.inference.capability import Capability
from clsgen_dist.inference.harness import HarnessScores
from clsgen_dist.inference.llm_judge import JudgedExplanations
from clsgen_dist.inference.measures import DecisionMeasures, ExplanationMeasures, Faithfulness
from clsgen_dist.inference.prediction import Prediction
from clsgen_dist.model.label_space import LabelSpace

# N rows, C classes

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Another model on the same rows: this one minus the other."""

    other: str
    """Its folder."""
    metrics: dict[str, float]
    """Of the other."""
    differences: dict[str, Difference]
    """By metric; AUROC of two classes by DeLong's test, accuracy by McNemar's, the others by paired bootstrap."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All that was measured of a model."""

    model: str
    """Its folder."""
    report: Report
    """The table of scores beside the baselines."""
    space: LabelSpace
    examples: list[Example]
    predictions: list[Prediction]
    labels: np.ndarray
    """``[N]`` classes, or answers ``[N, C]``."""
    probabilities_NC: np.ndarray
    decided: np.ndarray
    """``[N]`` classes, or sets ``[N, C]``."""
    decisions: DecisionMeasures
    explained: list[int]
    """Rows whose explanations were measured."""
    explanations: ExplanationMeasures | None = None
    faithfulness: Faithfulness | None = None
    judge: JudgedExplanations | None = None
    """On rank 0 only."""
    capability: Capability | None = None
    lm_eval: HarnessScores | None = None
    """On rank 0 only."""
    comparison: Comparison | None = None
    seconds: float = 0.0
    """Of predicting in this process."""
    computed_batches: int = 0
    """By this process; the others were there from an earlier one, or are other ranks'."""
    provenance: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The table of scores and the notes."""
        return self.report.text()

    def to_json(self) -> str:
        """All figures; undefined ones are null."""
        names = (
            "decisions",
            "explanations",
            "faithfulness",
            "judge",
            "capability",
            "lm_eval",
            "comparison",
            "provenance",
        )
        measured = {name: jsonable(getattr(self, name)) for name in names}
        cost = {"seconds": self.seconds, "computed_batches": self.computed_batches}
        fields = {"format_version": FORMAT, "model": self.model, **self.report.to_fields(), **measured, "cost": cost}
        return json.dumps(fields, indent=2) + "\n"


def jsonable(value: Any) -> Any:
    """Dataclasses, arrays and enums as JSON; what has a value for each row is left out."""
    if isinstance(value, RiskCoverage):
        return {
            "aurc": jsonable(value.aurc),
            "excess_aurc": jsonable(value.excess_aurc),
            "risk_at_coverage": at_coverages(value),
        }
    if isinstance(value, RowScores):
        return {"mean": jsonable(value.mean), "interval": jsonable(value.interval), "defined": value.defined}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {name: jsonable(item) for name, item in fields.items() if not name.endswith("_N")}
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, Mapping):
        return {str(name): jsonable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def at_coverages(curve: RiskCoverage) -> dict[str, float | None]:
    """Risk when 100, 95, … 5 % of the rows are answered: at the largest coverage that does not exceed it."""
    found: dict[str, float | None] = {}
    for percent in range(100, 0, -5):
        within = np.flatnonzero(curve.coverage_T <= percent / 100 + 1e-12)
        found[str(percent / 100)] = float(curve.risk_T[within[-1]]) if len(within) else None
    return found
