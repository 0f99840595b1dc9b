"""Baselines on the same rows: class frequencies, and logistic regression on texts or features."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

# N rows, C classes

_MOST_CHARACTERS = 5_000_000
"""Of the texts that a regression is fitted on: some 800 MB of n-grams, and 20 s."""
_BLOCK = 2000
"""Rows predicted together."""


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


def affordable_rows(texts: Sequence[str], seed: int = 0) -> list[int]:
    """Rows for :func:`text_baseline` to be fitted on: all up to five million characters, beyond them a random part."""
    shuffled = np.random.default_rng(seed).permutation(len(texts))
    characters = np.cumsum([len(texts[int(row)]) for row in shuffled])
    return sorted(shuffled[: max(1, np.searchsorted(characters, _MOST_CHARACTERS, side="right"))].tolist())


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
        probabilities_NC[:, fitted.classes_] = _in_blocks(fitted, texts)
        return probabilities_NC
    for index, labels_N in enumerate(train_labels.T):
        known = np.flatnonzero(~np.isnan(labels_N))
        yes_N = labels_N[known] >= 0.5
        if len(np.unique(yes_N)) == 2:
            fitted = model.fit([train_texts[int(row)] for row in known], yes_N)
            probabilities_NC[:, index] = _in_blocks(fitted, texts)[:, 1]
        else:
            probabilities_NC[:, index] = yes_N.mean() if len(yes_N) else 0.5
    return probabilities_NC


def _in_blocks(fitted: Any, texts: Sequence[str]) -> np.ndarray:
    """The probabilities of a block of texts at a time, as the n-grams of all may not fit in memory."""
    starts = range(0, len(texts), _BLOCK)
    return np.concatenate([fitted.predict_proba(texts[start : start + _BLOCK]) for start in starts])
