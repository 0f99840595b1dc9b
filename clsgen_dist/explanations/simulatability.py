"""Simulatability: can a simple reader tell the decision from the explanation alone?

    hit_i = [argmax of logistic regression on TF-IDF of text i, fitted on other rows, is the decision of row i]

(Doshi-Velez & Kim 2017; Hase et al. 2020, arXiv 2010.04119.) The reader gets the explanation, the explanation without
the classes' names, and the input; the last is the baseline, as an explanation that says less than the input adds
nothing for a reader. The distance between the first two is leakage: the verdict is repeated, not explained.

Cost: 5 fits for each of the three texts; at most ``sample`` rows are used: 2,000 rows of 50 words take about 4 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clsgen_dist.evaluation.baselines import text_baseline
from clsgen_dist.explanations.estimates import UNDEFINED, RowScores, check_same_rows, row_scores
from clsgen_dist.explanations.stated_class import ClassNames

# N rows, C classes

_FOLDS = 5


@dataclass(frozen=True)
class Simulatability:
    """For each row whether the decision was recovered; multi-label: the share of its answers."""

    explanation: RowScores
    masked: RowScores
    """From explanations without the classes' names."""
    input: RowScores
    majority: RowScores
    """From nothing: the most frequent decision of the other rows."""
    over_input: RowScores
    """``explanation - input``, paired."""
    masked_over_input: RowScores
    leakage: RowScores
    """``explanation - masked``, paired."""


def simulatability(
    texts: Sequence[str],
    explanations: Sequence[str],
    decided: np.ndarray,
    labels: Sequence[str],
    *,
    sample: int = 2000,
    seed: int = 0,
) -> Simulatability:
    """How well the decision is recovered from explanation, masked explanation and input, cross-validated over rows.

    It can show that explanations carry the decision beyond its name, and that those of different decisions differ. It
    cannot show that the decision was made for these reasons: invented evidence is recovered as well as true evidence,
    as long as it goes with the class. A class named consistently wrong is recovered as well. The reader counts words,
    so reasons that need arithmetic ("17 is above 14") are missed. A high value may be the head's habits in wording.

    Args:
        texts: inputs.
        explanations: one a row.
        decided: classes ``[N]``; multi-label: sets ``[N, C]``.
        labels: the classes' names.
        sample: rows that are used at most; the others are NaN.
        seed: of sample and folds.

    Returns:
        NaN in all rows where there is nothing to recover: one row, or one decision for all rows.

    Raises:
        DataError: different numbers of rows.
    """
    check_same_rows(inputs=texts, explanations=explanations, decisions=decided)
    names = ClassNames(labels)
    rng = np.random.default_rng(seed)
    used = np.sort(rng.permutation(len(texts))[:sample])
    decided_U = decided[used].astype(float if decided.ndim == 2 else int)
    fold_U = _folds(decided_U, rng)

    def hits(column: Sequence[str] | None) -> np.ndarray:
        values_N = np.full(len(texts), UNDEFINED)
        own = None if column is None else [column[int(row)] for row in used]
        values_N[used] = _hits(own, decided_U, fold_U, len(labels))
        return values_N

    from_explanation, from_input = hits(explanations), hits(texts)
    from_masked = hits([names.masked(text) for text in explanations])
    return Simulatability(
        row_scores(from_explanation, is_share=True),
        row_scores(from_masked, is_share=True),
        row_scores(from_input, is_share=True),
        row_scores(hits(None), is_share=True),
        row_scores(from_explanation - from_input),
        row_scores(from_masked - from_input),
        row_scores(from_explanation - from_masked),
    )


def _folds(decided: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``[N]`` a fold for each row; rows of one decision are spread over all folds."""
    rows = rng.permutation(len(decided))
    keys = decided[rows] if decided.ndim == 1 else decided[rows] @ (2.0 ** np.arange(decided.shape[1]))
    fold = np.empty(len(decided), dtype=int)
    fold[rows[np.argsort(keys, kind="stable")]] = np.arange(len(decided)) % _FOLDS
    return fold


def _hits(texts: Sequence[str] | None, decided: np.ndarray, fold_N: np.ndarray, classes: int) -> np.ndarray:
    """``[N]`` hits of a reader fitted on the other folds; without texts, or without words, of the majority."""
    hits_N = np.full(len(decided), UNDEFINED)
    if len(np.unique(decided, axis=0)) < 2:
        return hits_N
    for fold in np.unique(fold_N):
        held_out, others = np.flatnonzero(fold_N == fold), np.flatnonzero(fold_N != fold)
        if len(others) == 0:
            continue
        read = None
        if texts is not None:
            train, test = ([texts[int(row)] for row in rows] for rows in (others, held_out))
            read = text_baseline(train, decided[others], test, classes)
        hits_N[held_out] = _right(read, decided, others, held_out)
    return hits_N


def _right(read_NC: np.ndarray | None, decided: np.ndarray, others: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    if decided.ndim == 2:
        guess = decided[others].mean(axis=0) >= 0.5 if read_NC is None else read_NC >= 0.5
        return np.asarray((guess == (decided[held_out] >= 0.5)).mean(axis=1))
    most = np.bincount(decided[others]).argmax()
    return np.asarray((most if read_NC is None else read_NC.argmax(axis=1)) == decided[held_out])
