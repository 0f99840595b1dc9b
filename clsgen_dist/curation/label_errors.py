"""Labels that a model of the other rows does not believe: confident learning.

    t_j     mean probability of class j, by models that did not see the row, over the rows labelled j
    error   a row labelled i with p_j >= t_j for another class j, and p_j - p_i at least the margin

The models are logistic regressions on hashed words and word pairs. Rows are divided into 5 folds by a hash of their
text, so that equal texts are in one; a row is judged by the model of the other folds. They learn from a sample of rows,
which is drawn by the same hash and kept in memory as counts; thresholds are those of the sample. Where the models agree
too little with the labels (Cohen's κ), they question none: their errors would be reported, not those of the labels.
Rows with several labels are not questioned: the thresholds are of one label a row, and a model for each class, with
rows enough to judge it, would take as many times the memory and time.

Source: Northcutt, Jiang, Chuang 2021, "Confident Learning", J. Artif. Intell. Res. 70. Cost: 0.3 ms a row, and a minute
to fit 20,000 rows of 100 words; 15 KB a row of the sample.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clsgen_dist.data.checks.near_duplicates import normalised, text_hash
from clsgen_dist.explanations.stated_class import cohen_kappa
from clsgen_dist.explanations.text_units import ngrams, words

# N rows of the sample, C classes

_FOLDS = 5
_FEATURES = 2**16
_WORDS = 1000
"""First words of a text that count."""
_STRENGTH = 10.0
"""Inverse of the regularisation."""
_MAX_CLASSES = 100
"""With more, labels are not questioned: the models would take gigabytes."""
_MIN_ROWS = 30
"""Rows of a class in the sample, without which it is left out."""
_HASHES = 2**64
_BATCH = 512
"""Texts whose terms are counted at a time."""


class LabelSample:
    """Rows to learn from: those whose text has a hash below a bound; kept as counts, in their order."""

    def __init__(self, bound: float) -> None:
        self.bound = bound
        """Share of the rows to keep."""
        self.labels: list[int] = []
        self.folds: list[int] = []
        self._features: list[Any] = []
        self._pending: list[str] = []

    def add(self, text: str, label: int) -> None:
        """Keep a row, if its text is of the sample."""
        digest = text_hash(normalised(text))
        if digest < self.bound * _HASHES:
            self.labels.append(label)
            self.folds.append(_fold(digest))
            self._pending.append(text)
            if len(self._pending) == _BATCH:
                self.count_terms()

    def merge(self, other: LabelSample) -> None:
        """Keep the rows of another one too, behind those here."""
        self.count_terms()
        other.count_terms()
        self.labels += other.labels
        self.folds += other.folds
        self._features += other._features

    def count_terms(self) -> None:
        """Replace texts by the counts of their terms."""
        if self._pending:
            self._features.append(_features(self._pending))
            self._pending = []

    def features(self) -> Any:
        """``[N, F]`` counts of the rows' terms; with a row at least."""
        from scipy.sparse import vstack

        self.count_terms()
        return vstack(self._features).tocsr()


class LabelModel:
    """Judges labels by models that did not see the row."""

    def __init__(self, models: Sequence[Any], thresholds_C: NDArray[np.float64], margin: float) -> None:
        self._models = models
        self._thresholds_C = thresholds_C
        """Infinite for classes of too few rows."""
        self._margin = margin

    @classmethod
    def fit(cls, sample: LabelSample, classes: int, *, margin: float, least_kappa: float) -> LabelModel | None:
        """The model of the classes with enough rows; None where it cannot learn the labels from the texts.

        Args:
            sample: rows to learn from.
            classes: their number.
            margin: how much more probable another class must be.
            least_kappa: agreement with the labels below which none is questioned.
        """
        labels_N, folds_N = np.array(sample.labels, dtype=np.int64), np.array(sample.folds, dtype=np.int64)
        counts_C = np.bincount(labels_N, minlength=classes)
        is_known_C = counts_C >= _MIN_ROWS
        rows = np.flatnonzero(is_known_C[labels_N])
        if not 2 <= is_known_C.sum() <= _MAX_CLASSES or len(set(folds_N[rows].tolist())) < _FOLDS:
            return None
        features, labels_N, folds_N = sample.features()[rows], labels_N[rows], folds_N[rows]
        models, probability_NC = [], np.zeros((len(rows), classes))
        for fold in range(_FOLDS):
            others = np.flatnonzero(folds_N != fold)
            if len(set(labels_N[others].tolist())) < 2:
                return None
            models.append(_fitted(features[others], labels_N[others]))
            probability_NC[folds_N == fold] = _probabilities(models[-1], features[folds_N == fold], classes)
        if cohen_kappa(labels_N, probability_NC.argmax(axis=1), classes) < least_kappa:
            return None
        own_N = probability_NC[np.arange(len(rows)), labels_N]
        thresholds_C = np.array([own_N[labels_N == c].mean() if is_known_C[c] else np.inf for c in range(classes)])
        return cls(models, thresholds_C, margin)

    def likelier_labels(self, texts: Sequence[str], labels: Sequence[int]) -> list[tuple[int, float] | None]:
        """For each row the class that it should have, and its probability; None where the label may be right."""
        if not texts:
            return []
        features, label_N = _features(texts), np.array(labels)
        fold_N = np.array([_fold(text_hash(normalised(text))) for text in texts])
        probability_NC = np.zeros((len(texts), len(self._thresholds_C)))
        for fold in range(_FOLDS):
            if len(rows := np.flatnonzero(fold_N == fold)):
                probability_NC[rows] = _probabilities(self._models[fold], features[rows], len(self._thresholds_C))
        rows_N = np.arange(len(texts))
        least_NC = np.maximum(self._thresholds_C, probability_NC[rows_N, label_N][:, None] + self._margin)
        is_likelier_NC = probability_NC >= least_NC
        is_likelier_NC[rows_N, label_N] = False
        is_likelier_NC[np.isinf(self._thresholds_C[label_N])] = False
        best_N = np.where(is_likelier_NC, probability_NC, -1.0).argmax(axis=1)
        return [
            (int(best), float(probability_NC[row, best])) if is_likelier_NC[row, best] else None
            for row, best in enumerate(best_N)
        ]


def _fitted(features: Any, labels_N: NDArray[np.int64]) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=_STRENGTH, max_iter=200).fit(features, labels_N)


def _probabilities(model: Any, features: Any, classes: int) -> NDArray[np.float64]:
    """``[rows, C]``; 0 for classes that the model did not see."""
    probability_NC = np.zeros((features.shape[0], classes))
    probability_NC[:, model.classes_] = model.predict_proba(features)
    return probability_NC


def _features(texts: Sequence[str]) -> Any:
    return _vectorizer().transform(texts)


@functools.cache
def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(analyzer=_terms, n_features=_FEATURES, alternate_sign=False)


def _terms(text: str) -> list[str]:
    """Words and pairs of words."""
    found = words(text)[:_WORDS]
    return [*found, *map(" ".join, ngrams(found, 2))]


def _fold(digest: int) -> int:
    return digest % _FOLDS
