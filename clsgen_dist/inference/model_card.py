"""Fills the model card of an evaluated model: the opening sentences, and the tables that a user of the model needs.

No row's text goes into it, and of folders only the last name: the card is published with the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clsgen_dist.evaluation.metrics import WORDS
from clsgen_dist.hf_export.readme import fill_evaluation
from clsgen_dist.inference.evaluation import Evaluation
from clsgen_dist.report.document import Block, Document, Figure, Section
from clsgen_dist.report.markdown import render_markdown

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_SECTIONS = ("data", "decisions", "calibration", "rules", "groups", "explanations", "faithfulness", "capability")
_HUB_NAMES = {
    "auroc": "roc_auc",
    "average_precision": "average_precision",
    "f1": "f1",
    "accuracy": "accuracy",
    "mcc": "matthews_correlation",
    "ece": "ece",
    "brier": "brier_score",
}
"""Names of metrics in the metadata block, as the hub's ``evaluate`` library calls them where it has them."""


def write_model_card(found: Evaluation, report: Document) -> bool:
    """Fill the evaluation of the model's ``README.md``; False if it has none that can be filled.

    Raises:
        OSError: the model's folder cannot be written.
    """
    data = Path(str(found.provenance.get("data", ""))).name
    facts = [("rows", f"{found.report.rows:,}"), ("data", data), ("date", str(found.provenance.get("date", "")))]
    sections = [Section(s.name, s.title, _published(s.blocks)) for s in report.sections if s.name in _SECTIONS]
    text = render_markdown(Document("Evaluation", report.summary, sections, facts), level=2)
    folder = Path(found.model)
    return fill_evaluation(folder, text, _results(found, data), folder.resolve().name)


def _published(blocks: Sequence[Block]) -> list[Block]:
    return [block for block in blocks if not isinstance(block, Figure)]


def _results(found: Evaluation, data: str) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-classification",
            dataset_type=data,
            dataset_name=data,
            metric_type=_HUB_NAMES[name],
            metric_name=WORDS.get(name, name),
            metric_value=round(float(estimate.value), 4),
        )
        for name, estimate in found.decisions.metrics.items()
        if name in _HUB_NAMES and not math.isnan(estimate.value)
    ]
