"""Rows whose true log-odds are known, seen through distorted logits."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, softmax

SPACES = {
    "binary": ("single", 2),
    "three classes": ("single", 3),
    "multilabel": ("multilabel", 3),
    "ordinal": ("ordinal", 4),
}


def single_rows(rows, classes, seed=0):
    """True logits and labels."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, (rows, classes))
    return true, (rng.random(rows)[:, None] > softmax(true, axis=1).cumsum(axis=1)).sum(axis=1)


def binary_rows(rows, distort, seed=0):
    """Log-odds distorted by a function, and labels."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, rows)
    return np.stack([np.zeros(rows), distort(true)], axis=1), (rng.random(rows) < expit(true)).astype(int)


def multilabel_rows(rows, classes, seed=0, unknown=0.2):
    """True logits, and answers of which a share is unknown."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, (rows, classes))
    answers = (rng.random(true.shape) < expit(true)).astype(float)
    answers[rng.random(true.shape) < unknown] = np.nan
    return true, answers


def ordinal_rows(rows, classes, seed=0):
    """True cumulative logits and labels."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 2, rows)[:, None] + np.linspace(1.5, -1.5, classes - 1)
    return true, (rng.random(rows)[:, None] < expit(true)).sum(axis=1)


def distorted_rows(space, rows, seed=0, factor=2.5, shift=1.0):
    """Logits too steep by ``factor`` and shifted, labels, and the kind of the label space."""
    kind, classes = SPACES[space]
    if kind == "single":
        true, labels = single_rows(rows, classes, seed)
        return factor * true + shift * np.arange(classes), labels, kind
    true, labels = (multilabel_rows if kind == "multilabel" else ordinal_rows)(rows, classes, seed)
    return factor * true + shift, labels, kind
