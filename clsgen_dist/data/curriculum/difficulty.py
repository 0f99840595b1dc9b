"""How hard each row is: scorers, their cache, and how they are combined.

A scorer gives each row a number, higher being harder, or NaN if it is unknown. Scores are combined by rank: each is
ranked within the row's class, to [0, 1], and the weighted mean is taken, so units do not matter and no class is harder
than another. Scorers that need only the rows are here; those that run the backbone are in
:mod:`clsgen_dist.training.backbone_scores`.

    length      tokens of text and explanation together
    rarity      mean -log2 of the unigram probability of the text's tokens, bits (Platanios et al. 2019, arXiv
                1903.09848, sec. 3, by the mean instead of the sum, which would be length again)
    margin      minus (probability of the row's class - highest other), by TF-IDF and logistic regression fitted on
                other folds
    given       the row's own number, in the column `data.columns.difficulty`

Scores are cached in the folder of the row table, under a hash of what they depend on besides the rows.

Cost: length and rarity a pass over numbers (a second for a million rows); margin five fits on at most 20,000 rows
each, in parallel, and as many passes over the texts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from clsgen_dist.data.tables.dataset import RowDataset
from clsgen_dist.data.tables.table import RowTable
from clsgen_dist.data.tables.workers import worker_pool
from clsgen_dist.io.cache import cache_dir
from clsgen_dist.io.files import atomic_file

# N rows, C classes

_FOLDS = 5
_FIT_ROWS = 20_000
_PARALLEL_FROM = 5000
"""Fewer rows are scored in this process: workers take seconds to start."""
_BLOCK = 4096
_WORDS = r"(?u)[\u2e80-\U0003ffff]|[^\W\u2e80-\U0003ffff]+|[^\w\s]"
"""A word, a character of a script without spaces, or a punctuation mark: every text has some."""

Scorer = Callable[[RowDataset], np.ndarray]
"""``[N]`` difficulty of each row, NaN where unknown."""


def length(rows: RowDataset) -> np.ndarray:
    """Tokens of the text, plus the mean over its explanations."""
    table = rows.table
    starts_N1 = np.asarray(table.explanation_start_N1)
    count_N = np.diff(starts_N1)
    sums_E1 = np.concatenate([[0], np.cumsum(table.explanation_length_E, dtype=np.int64)])
    explained_N = (sums_E1[starts_N1[1:]] - sums_E1[starts_N1[:-1]]) / np.maximum(count_N, 1)
    return np.asarray(table.text_length_N + explained_N)


def rarity(rows: RowDataset) -> np.ndarray:
    """Mean bits per token of the text under the dataset's unigram frequencies; NaN for a text without tokens."""
    counts = np.zeros(0, dtype=np.int64)
    for _, _, values in rows.table.token_batches():
        block_counts = np.bincount(values, minlength=len(counts))
        block_counts[: len(counts)] += counts
        counts = block_counts
    bits = -np.log2(np.maximum(counts, 1) / max(1, counts.sum()))
    score_N = np.full(len(rows), np.nan)
    for numbers, starts, values in rows.table.token_batches():
        sums = np.concatenate([[0.0], np.cumsum(bits[values])])
        lengths = np.diff(starts)
        offsets = np.asarray(starts) - starts[0]
        with np.errstate(invalid="ignore"):
            score_N[numbers] = np.where(
                lengths > 0, (sums[offsets[1:]] - sums[offsets[:-1]]) / np.maximum(lengths, 1), np.nan
            )
    return score_N


def margin(rows: RowDataset) -> np.ndarray:
    """How confident cross-validated TF-IDF and logistic regression are of another class; NaN without label."""
    score_N = np.full(len(rows), np.nan)
    tasks = [(rows.table.folder, fold) for fold in range(_FOLDS)]
    if len(rows) < _PARALLEL_FROM:
        fold_margins = [_fold_margins(*task) for task in tasks]
    else:
        with worker_pool(min(_FOLDS, len(os.sched_getaffinity(0)))) as pool:
            fold_margins = list(pool.map(_fold_margins, *zip(*tasks, strict=True)))
    for numbers, margins in fold_margins:
        score_N[numbers] = -margins
    return score_N


def _fold_margins(folder: Path, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Labelled rows of a fold, and their margins under a classifier fitted on the other folds."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    table = RowTable(folder)
    labels_N = np.asarray(table.label_N)
    fold_N = np.random.default_rng(0).integers(_FOLDS, size=len(table))
    fit = np.flatnonzero((fold_N != fold) & (labels_N >= 0))
    fit = np.sort(np.random.default_rng(fold).permutation(fit)[:_FIT_ROWS])
    if len(np.unique(labels_N[fit])) < 2:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True, token_pattern=_WORDS), LogisticRegression(max_iter=1000))
    model.fit([table.example(int(row)).text for row in fit], labels_N[fit])
    rows, margins = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    for numbers, texts in _text_blocks(table):
        in_fold = np.flatnonzero((fold_N[numbers] == fold) & (labels_N[numbers] >= 0))
        if len(in_fold):
            probabilities_NC = model.predict_proba([texts[n] for n in in_fold])
            rows.append(numbers[in_fold])
            margins.append(_margins(probabilities_NC, model.classes_, labels_N[numbers[in_fold]]))
    return np.concatenate(rows), np.concatenate(margins)


def given(rows: RowDataset) -> np.ndarray:
    """The value of the difficulty column; NaN where it is empty."""
    return np.asarray(rows.table.difficulty_N)


ROW_SCORERS: dict[str, Scorer] = {"length": length, "rarity": rarity, "margin": margin, "given": given}
"""Scorers that need only the rows."""


def _margins(probabilities_NC: np.ndarray, classes_C: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    own = probabilities_NC * (classes_C[None] == labels_N[:, None])
    return own.sum(axis=1) - (probabilities_NC - own).max(axis=1)


def _text_blocks(table: RowTable) -> Iterator[tuple[np.ndarray, list[str]]]:
    texts: list[str] = []
    start = 0
    for text in table.texts():
        texts.append(text)
        if len(texts) == _BLOCK:
            yield np.arange(start, start + _BLOCK), texts
            start, texts = start + _BLOCK, []
    if texts:
        yield np.arange(start, start + len(texts)), texts


def combine(scores: Mapping[str, np.ndarray], weights: Mapping[str, float], label_N: np.ndarray) -> np.ndarray:
    """``[N]`` weighted mean of the ranks within each class, in [0, 1]; 0.5 where every score is NaN."""
    total_N, weight_N = np.zeros(len(label_N)), np.zeros(len(label_N))
    for name, weight in weights.items():
        rank_N = _ranks(scores[name], label_N)
        known_N = ~np.isnan(rank_N)
        total_N[known_N] += weight * rank_N[known_N]
        weight_N[known_N] += weight
    return np.where(weight_N > 0, total_N / np.maximum(weight_N, 1e-300), 0.5)


def _ranks(score_N: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """Mean rank within the class, to [0, 1]; NaN stays NaN."""
    from scipy.stats import rankdata

    rank_N = np.full(len(score_N), np.nan)
    for label in np.unique(label_N):
        known_of_label = np.flatnonzero((label_N == label) & ~np.isnan(score_N))
        if len(known_of_label):
            rank_N[known_of_label] = (rankdata(score_N[known_of_label]) - 0.5) / len(known_of_label)
    return rank_N


# --- the cache -----------------------------------------------------------------------------------------------------


def score_file(rows: RowDataset, name: str, depends_on: object = None) -> Path:
    """The file of a scorer's numbers; ``depends_on`` is what they depend on besides the table."""
    key = hashlib.sha256(json.dumps([name, depends_on]).encode()).hexdigest()[:12]
    table = rows.table.folder
    # Another user's table may be readable but not writable.
    home = table if os.access(table, os.W_OK) else cache_dir() / "scores" / table.name
    return home / "scores" / f"{name}-{key}.npy"


def cached(rows: RowDataset, name: str) -> np.ndarray:
    """The scores of one of :data:`ROW_SCORERS`, computed by the first process that needs them."""
    from filelock import FileLock

    file = score_file(rows, name)
    if (kept := load(file)) is None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if (kept := load(file)) is None:
                save(file, kept := ROW_SCORERS[name](rows))
    return np.asarray(kept)


def load(file: Path) -> np.ndarray | None:
    """An array that :func:`save` wrote, memory-mapped; None if it does not exist, or is damaged."""
    try:
        return np.load(file, mmap_mode="r")  # type: ignore[no-any-return]
    except (OSError, ValueError, EOFError):
        return None


def save(file: Path, values: np.ndarray) -> None:
    """Write an array atomically."""
    with atomic_file(file, "wb") as out:
        np.save(out, values)
