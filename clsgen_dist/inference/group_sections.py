"""The sections of a report on groups of rows, and on where their explanations came from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clsgen_dist.evaluation.subgroups import Criterion, Group, Subgroups
from clsgen_dist.explanations.estimates import RowScores
from clsgen_dist.inference.evaluation import Evaluation
from clsgen_dist.inference.group_measures import PROVENANCE, ExplanationGroups
from clsgen_dist.inference.report_numbers import mean, share, with_interval
from clsgen_dist.io.text import row_count_phrase
from clsgen_dist.report.document import Block, Figure, Paragraph, Table
from clsgen_dist.report.figures import intervals_figure


def group_blocks(found: Evaluation) -> list[Block]:
    """Each group of the user's columns; empty without such columns."""
    columns = [column for column in found.decisions.groups if column != PROVENANCE]
    if not columns:
        return []
    words = (
        "A model that is good on average can be wrong for one group. Of twenty groups that are alike, one is expected "
        "to look unlike by chance."
    )
    return [Paragraph(words), *(block for column in columns for block in _blocks_of(found, column))]


def provenance_blocks(found: Evaluation) -> list[Block]:
    """The rows by where their reference explanations came from; empty if all are from one."""
    if PROVENANCE not in found.decisions.groups:
        return []
    without = sum(not example.explanations for example in found.examples)
    words = (
        "Rows by where their reference explanations came from. A row that has explanations of several is in the "
        "group of each, where the model's is compared with the explanations of that group alone."
    )
    words += f" {row_count_phrase(without, 'has', 'have')} none, and {'is' if without == 1 else 'are'} in no group."
    return [Paragraph(words), *_blocks_of(found, PROVENANCE)]


def _blocks_of(found: Evaluation, column: str) -> list[Block]:
    blocks = _decision_blocks(column, found.decisions.groups[column])
    if found.explanations and column in found.explanations.groups:
        blocks += _explanation_blocks(column, found.explanations.groups[column])
    return blocks


def _decision_blocks(column: str, groups: Subgroups) -> list[Block]:
    blocks: list[Block] = []
    if groups.measured:
        names = [group.name for group in groups.measured]
        value, low, high = (
            np.array([get(g) for g in groups.measured])
            for get in (lambda g: g.auroc.value, lambda g: g.auroc.interval.low, lambda g: g.auroc.interval.high)
        )
        sentence = " ".join(filter(None, (_worst(groups, *pair) for pair in _CRITERIA)))
        drawing = intervals_figure(names, value, low, high, x="AUROC", reference=float(np.nanmean(value)))
        blocks.append(Figure(f"AUROC by {column}.", drawing, sentence or "No group stands out."))
        rows = [
            [g.name, str(g.rows), str(g.positives)]
            + [with_interval(e.value, e.interval) for e in (g.auroc, g.recall, g.calibration_in_the_large, g.ece)]
            for g in groups.measured
        ]
        header = [column, "rows", "positive", "AUROC", "recall", "mean p - frequency", "ECE"]
        blocks.append(Table(f"By {column}", header, rows))
    if groups.too_small:
        listed = ", ".join(f"{g.name} ({g.rows} rows, {g.positives} positive)" for g in groups.too_small)
        blocks.append(Paragraph(f"Too small to judge: {listed}.", tone="warning"))
    return blocks


_CRITERIA: tuple[tuple[Criterion, str], ...] = (
    ("auroc", "Lowest AUROC"),
    ("recall", "lowest recall"),
    ("calibration_in_the_large", "furthest from its frequency"),
    ("ece", "worst calibrated"),
)


def _worst(groups: Subgroups, criterion: Criterion, words: str) -> str:
    worst: Group | None = groups.worst(criterion)
    if worst is None or len(groups.measured) < 2:
        return ""
    measured = getattr(worst, criterion)
    return f"{words[0].upper()}{words[1:]}: {worst.name}, {with_interval(measured.value, measured.interval)}."


_MEASURES: dict[str, tuple[str, Callable[[RowScores], str]]] = {
    "contradictions": ("contradicts the decision", share),
    "statements": ("statements found in the row", share),
    "numbers": ("numbers found in the row", share),
    "rouge_l": ("ROUGE-L with references", mean),
    "chrf": ("chrF with references", mean),
    "words": ("words", mean),
}


def _explanation_blocks(column: str, groups: ExplanationGroups) -> list[Block]:
    blocks: list[Block] = []
    if groups.measured:
        names = [name for name in _MEASURES if name in groups.measured[0].scores]
        rows = [
            [group.name, str(group.rows), *(_MEASURES[name][1](group.scores[name]) for name in names)]
            for group in groups.measured
        ]
        header = [column, "rows", *(_MEASURES[name][0] for name in names)]
        blocks.append(Table(f"Explanations by {column}", header, rows))
    if groups.too_small:
        listed = ", ".join(f"{name} ({rows} rows)" for name, rows in groups.too_small.items())
        blocks.append(Paragraph(f"Too few explanations to judge: {listed}.", tone="warning"))
    return blocks
