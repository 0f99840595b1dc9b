"""Input reconstruction: does the explanation tell which input it belongs to?

    rank_i = 1 + inputs more similar to explanation i than its own + half of those as similar
    MRR    = mean of 1/rank,        top-1 = share of rank 1

Similarity is the cosine of TF-IDF of words. The control pairs each explanation with another row's input, by one fixed
shift of a shuffled order, so no row keeps its own. Cost: N² similarities in blocks of 256 rows, memory 256·N numbers:
10,000 rows of 50 words take about 5 s, and of more rows 10,000 are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clsgen_dist.explanations.estimates import UNDEFINED, RowScores, check_same_rows, row_scores
from clsgen_dist.explanations.text_units import words

# N rows, U rows used, B rows of a block

_BLOCK = 256


@dataclass(frozen=True)
class Reconstruction:
    """For each row how its own input is ranked by its explanation."""

    reciprocal_rank: RowScores
    """Its mean is the MRR."""
    top_1: RowScores
    control_reciprocal_rank: RowScores
    """With the input of another row taken for its own; NaN for fewer than two rows."""
    control_top_1: RowScores


def reconstruction(
    texts: Sequence[str], explanations: Sequence[str], *, sample: int = 10_000, seed: int = 0
) -> Reconstruction:
    """How well each explanation retrieves its own input among all inputs.

    It can show that explanations are about their row: boilerplate retrieves nothing, and ends at the control. It cannot
    show that what they say is relevant, or true: a copy of the input is perfect, and irrelevant details identify a row
    as well as the decisive ones. Inputs that are alike limit it, and explanations in other words than the input's are
    missed. It falls with the number of rows: compare equal numbers.

    Args:
        texts: inputs.
        explanations: one a row.
        sample: rows that are used at most; the others are NaN, and their inputs are not among those ranked.
        seed: of sample and of the control's pairs.

    Raises:
        DataError: different numbers of rows.
    """
    check_same_rows(inputs=texts, explanations=explanations)
    order = np.random.default_rng(seed).permutation(len(texts))[:sample]
    used, place_U = np.unique(order, return_inverse=True)
    other_U = np.empty(len(used), dtype=int)
    other_U[place_U] = np.roll(place_U, 1)
    own_U, control_U = _ranks([texts[int(row)] for row in used], [explanations[int(row)] for row in used], other_U)
    if len(used) < 2:
        control_U = np.full(len(used), UNDEFINED)

    def scores(values_U: np.ndarray) -> RowScores:
        values_N = np.full(len(texts), UNDEFINED)
        values_N[used] = values_U
        return row_scores(values_N, is_share=True)

    return Reconstruction(
        scores(1 / own_U),
        scores(own_U == 1),
        scores(1 / control_U),
        scores(np.where(np.isnan(control_U), UNDEFINED, control_U == 1)),
    )


def _ranks(texts: Sequence[str], explanations: Sequence[str], other_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[N]`` ranks of the row's own input, and of another row's."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    rows = np.arange(len(texts))
    if not any(words(text) for text in texts):
        return np.full(len(texts), (len(texts) + 1) / 2), np.full(len(texts), (len(texts) + 1) / 2)
    vectorizer = TfidfVectorizer(tokenizer=words, token_pattern=None, lowercase=False, sublinear_tf=True)
    inputs = vectorizer.fit_transform(texts).T.tocsr()
    queries = vectorizer.transform(explanations)
    own_N, control_N = np.empty(len(texts)), np.empty(len(texts))
    for block in np.split(rows, range(_BLOCK, len(texts), _BLOCK)):
        # Rounded, as equal texts may differ in the last bit.
        similar_BN = (queries[block] @ inputs).toarray().round(9)
        own_N[block] = _rank(similar_BN, block)
        control_N[block] = _rank(similar_BN, other_N[block])
    return own_N, control_N


def _rank(similar_BN: np.ndarray, target_B: np.ndarray) -> np.ndarray:
    target_B1 = similar_BN[np.arange(len(target_B)), target_B][:, None]
    equal_B = (similar_BN == target_B1).sum(axis=1) - 1
    return np.asarray(1 + (similar_BN > target_B1).sum(axis=1) + equal_B / 2)
