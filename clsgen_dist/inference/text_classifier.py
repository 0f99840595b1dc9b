"""An exported model as a scikit-learn classifier of texts, for tools that take one: MAPIE, fairlearn, shap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from clsgen_dist.errors import DataError
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.prediction import Prediction

# N texts, C classes

_MOST_KEPT = 100_000
"""Answers, a kilobyte each."""


class TextClassifier(ClassifierMixin, BaseEstimator):
    """Calibrated probabilities of an exported model, in scikit-learn's shapes.

    It is trained by ``clsgen train``, so tools must take it as fitted (``prefit=True``, ``FrozenEstimator``). ``X`` is
    a list, an array, a pandas column, or a table with one column, of texts. Answers are kept by text, up to 100,000: a
    tool that asks again pays once.

    Args:
        folder: that ``clsgen export`` wrote.
        rule: what ``predict`` returns: by the model's fitted ``"threshold"``, or the most probable class
            (``"argmax"``); multi-label: from the fitted thresholds up, or from 0.5.
        batch_size: texts computed together.
        device: torch device; None uses CUDA if available, else the CPU.

    Attributes:
        classes_: ``[C]`` names. Binary: the positive class last, so that column 1 is its probability; ordinal: from low
            to high.

    Raises:
        ModelError: the folder is not an export.
        ValueError: ``rule`` is another word.
    """

    def __init__(
        self, folder: str | Path, *, rule: str = "threshold", batch_size: int = 16, device: str | None = None
    ) -> None:
        self.folder = folder
        self.rule = rule
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: Any, y: Any = None) -> TextClassifier:
        """Refused: ``clsgen train`` does this."""
        raise NotImplementedError(
            "an exported model is trained already (by clsgen train), expected a tool that takes it as fitted: pass "
            "prefit=True, or wrap it in sklearn.frozen.FrozenEstimator"
        )

    def __sklearn_is_fitted__(self) -> bool:
        return True

    @property
    def predictor(self) -> Predictor:
        """The loaded model."""
        if self.rule not in ("threshold", "argmax"):
            raise ValueError(f"rule is {self.rule!r}, expected 'threshold' or 'argmax'")
        loaded = str(self.folder), self.device
        if self.__dict__.get("_loaded") != loaded:  # set_params changes the parameters alone
            self._predictor, self._loaded = Predictor(self.folder, self.device), loaded
            self._known: dict[str, Prediction] = {}
        return self._predictor

    @property
    def classes_(self) -> np.ndarray:
        """``[C]`` names of the classes, in the order of the columns."""
        return np.array([self.predictor.card.labels[index] for index in self._order()])

    def predict_proba(self, X: Any) -> np.ndarray:
        """``[N, C]`` calibrated probabilities; rows sum to 1, but for multi-label ones."""
        return np.array([[p.probabilities[name] for name in self.classes_] for p in self._predictions(X)]).reshape(
            -1, len(self.classes_)
        )

    def predict(self, X: Any) -> np.ndarray:
        """``[N]`` names; multi-label: ``[N, C]`` of 0 and 1."""
        if self.predictor.space.kind == "multilabel":
            if self.rule == "argmax":
                return (self.predict_proba(X) >= 0.5).astype(int)
            return np.array([[int(name in p.label) for name in self.classes_] for p in self._predictions(X)])
        if self.rule == "argmax":
            return self.classes_[self.predict_proba(X).argmax(axis=1)]
        return np.array([str(p.label) for p in self._predictions(X)])

    def _order(self) -> list[int]:
        space = self.predictor.space
        places = list(range(len(space)))
        binary = space.kind == "single" and len(space) == 2
        return sorted(places, key=lambda index: index == space.positive_index) if binary else places

    def _predictions(self, X: Any) -> list[Prediction]:
        predictor, texts = self.predictor, _texts(X)
        answers = {text: self._known[text] for text in texts if text in self._known}
        if new := list(dict.fromkeys(text for text in texts if text not in answers)):
            found = predictor.predict(new, batch_size=self.batch_size, explain=False)
            answers |= dict(zip(new, found, strict=True))
        if len(self._known) + len(new) > _MOST_KEPT:
            self._known = {}
        if len(answers) <= _MOST_KEPT:
            self._known |= answers
        return [answers[text] for text in texts]

    def __getstate__(self) -> dict[str, Any]:
        """What is copied or pickled: parameters, not the model, which is loaded again from its folder."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_predictor", "_loaded", "_known")}


def _texts(X: Any) -> list[str]:
    """The texts of a list, an array, a column or a table of one column; DataError for anything else."""
    if isinstance(X, str):
        raise DataError("X is a single text, expected a list of texts: put it into brackets")
    values = np.asarray(X, dtype=object)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise DataError(f"X has the shape {values.shape}, expected one text a row; pass the column of texts alone")
    for row, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"X has {value!r} in row {row}, expected a text")
    return [str(value) for value in values]
