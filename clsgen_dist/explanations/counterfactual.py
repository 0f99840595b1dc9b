"""Counterfactual edits: if the named evidence were different, would head and explanation follow?

    moved     the largest |p(x) - p(x edited)| of the decided class
    control   the same edits on what the explanation does not name
    follows   where an edit changes the decision: does the new explanation state the new class?

After Atanasova et al. 2023 (arXiv 2305.18029), with small rules instead of a trained editor
(:mod:`clsgen_dist.explanations.text_edits`). Cost: at most five calls of ``probability`` on all rows, and one
explanation decoded for each row whose decision changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from clsgen_dist.evaluation.metrics import Kind, decide
from clsgen_dist.explanations.erasure import Probability, probability_of_decided
from clsgen_dist.explanations.estimates import UNDEFINED, RowScores, check_same_rows, row_scores
from clsgen_dist.explanations.stated_class import stated_classes, stated_sets
from clsgen_dist.explanations.text_edits import raised_and_lowered
from clsgen_dist.explanations.text_units import Offsets

# N rows, C classes, E edited texts

Explain = Callable[[Sequence[str]], Sequence[str]]
"""Explanations of texts."""


@dataclass(frozen=True)
class Counterfactual:
    """For each row; NaN where no rule applies."""

    moved: RowScores
    flipped: RowScores
    """1 where an edit of the named evidence changes the decision."""
    control_moved: RowScores
    """NaN too where everything that can be edited is named."""
    excess: RowScores
    """``moved - control_moved``: near 0 if the evidence matters no more than the rest."""
    follows: RowScores
    """1 where the explanation of the flipped text states the new decision; NaN where nothing flipped, or without
    ``explain``."""
    rows_without_edit: int
    """No rule applies to what the explanation names, or it names nothing."""


def counterfactual(
    texts: Sequence[str],
    evidence: Sequence[Sequence[Offsets]],
    probability: Probability,
    labels: Sequence[str],
    *,
    explain: Explain | None = None,
    kind: Kind = "single",
    positive: int = 1,
    thresholds: Sequence[float] | None = None,
) -> Counterfactual:
    """How probability and explanation follow when the named evidence is edited.

    It can show that the named facts decide: change them, and the decision changes, more than if others are changed. It
    cannot show the opposite: an edit may leave the value on the same side of a threshold, and doubling is no natural
    step for many quantities. Edited texts may contradict themselves, as only the named places change. Small rules miss
    most facts in prose; look at ``rows_without_edit`` first. ``follows`` says that the explanation tracks the head, not
    that its reasons are the head's.

    Args:
        texts: inputs.
        evidence: for each row the spans of the input that its explanation names (``GroundingScores.evidence``).
        probability: the model.
        labels: the classes' names.
        explain: the model's explanations of texts; None leaves ``follows`` undefined.
        kind: the label space, for the decision.
        positive: binary: the class to which the threshold belongs.
        thresholds: of the decision, as for :func:`clsgen_dist.evaluation.metrics.decide`.

    Raises:
        DataError: different numbers of rows.
    """
    check_same_rows(inputs=texts, evidence=evidence)
    if not len(texts):
        nothing = row_scores(())
        return Counterfactual(nothing, nothing, nothing, nothing, nothing, 0)

    def decisions(p_NC: np.ndarray) -> np.ndarray:
        return decide(p_NC, kind, positive, thresholds)

    full_NC = probability(texts)
    decided = decisions(full_NC)
    named = _edited(texts, evidence)
    others = _edited(texts, [_complement(t, s) if s else [] for t, s in zip(texts, evidence, strict=True)])
    moved_N, flipped = _effects(named, full_NC, decided, probability, decisions)
    control_N, _ = _effects(others, full_NC, decided, probability, decisions)
    control_N = np.where(np.isnan(moved_N), UNDEFINED, control_N)
    flipped_N = np.where(np.isnan(moved_N), UNDEFINED, [row in flipped for row in range(len(texts))])
    follows_N = np.full(len(texts), UNDEFINED)
    if explain is not None and flipped:
        explanations = explain([text for text, _ in flipped.values()])
        follows_N[list(flipped)] = _states(explanations, np.array([d for _, d in flipped.values()]), labels)
    return Counterfactual(
        row_scores(moved_N),
        row_scores(flipped_N, is_share=True),
        row_scores(control_N),
        row_scores(moved_N - control_N),
        row_scores(follows_N, is_share=True),
        int(np.isnan(moved_N).sum()),
    )


def _edited(texts: Sequence[str], spans: Sequence[Sequence[Offsets]]) -> list[tuple[int, str]]:
    """Row and text of every edit."""
    return [
        (row, edited)
        for row, (text, own) in enumerate(zip(texts, spans, strict=True))
        for edited in raised_and_lowered(text, own)
    ]


def _effects(
    edits: Sequence[tuple[int, str]],
    full_NC: np.ndarray,
    decided: np.ndarray,
    probability: Probability,
    decisions: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, dict[int, tuple[str, np.ndarray]]]:
    """``[N]`` largest change of the decided class's probability, and by row the first flipped text and its decision."""
    moved_N = np.full(len(full_NC), UNDEFINED)
    flipped: dict[int, tuple[str, np.ndarray]] = {}
    if not edits:
        return moved_N, flipped
    rows_E = np.array([row for row, _ in edits])
    edited_EC = probability([text for _, text in edits])
    change_E = np.abs(
        probability_of_decided(full_NC[rows_E], decided[rows_E]) - probability_of_decided(edited_EC, decided[rows_E])
    )
    np.fmax.at(moved_N, rows_E, change_E)
    new = decisions(edited_EC)
    for (row, text), decision in zip(edits, new, strict=True):
        if (decision != decided[row]).any():
            flipped.setdefault(row, (text, decision))
    return moved_N, flipped


def _states(explanations: Sequence[str], decided: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    if decided.ndim == 2:
        return np.asarray((stated_sets(explanations, labels) == decided).all(axis=1))
    return np.asarray(stated_classes(explanations, labels) == decided)


def _complement(text: str, spans: Sequence[Offsets]) -> list[Offsets]:
    """What lies between the spans."""
    starts, ends = [0, *(end for _, end in spans)], [*(start for start, _ in spans), len(text)]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if start < end]
