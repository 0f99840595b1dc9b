"""What the labels of rows are: the classes, and how class logits become probabilities and labels become targets.

    single       one class a row      C logits      p = softmax(l)
    multilabel   any set of classes   C logits      p_c = sigmoid(l_c)
    ordinal      one ordered class    C-1 logits    P(y > k) = sigmoid(l_k),  p_k = P(y > k-1) - P(y > k)

Binary is single with two classes. Ordinal logits share one direction and have ordered cut points, so P(y > k) falls
with k for every row (McCullagh 1980; rank consistency: Cao 2020, arXiv 1901.07884).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from clsgen_dist.errors import SettingsError

# N rows, C classes, K logits

Kind = Literal["single", "multilabel", "ordinal"]


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a classification head, in the order of its logits (ordinal: from low to high)."""

    names: tuple[str, ...]
    """Class names."""
    positive: str
    """Binary: the class whose probability is reported, and the positive class of F1."""
    kind: Kind = "single"

    def __post_init__(self) -> None:
        least = 1 if self.kind == "multilabel" else 2
        if len(self.names) < least:
            raise SettingsError(
                f"the label space is {list(self.names)}, expected {'one' if least == 1 else 'two'} or more classes; "
                "check the label column, or name the classes in data.labels"
            )
        if self.positive not in self.names:
            raise SettingsError(
                f"positive label {self.positive!r} is not one of {list(self.names)}; fix data.positive_label"
            )

    @classmethod
    def of(cls, names: list[str], positive: str | None = None, kind: Kind = "single") -> LabelSpace:
        """The label space of ``names``; the positive class defaults to the last."""
        return cls(tuple(names), positive or (names[-1] if names else ""), kind)

    @property
    def positive_index(self) -> int:
        """Index of the positive class."""
        return self.names.index(self.positive)

    @property
    def is_binary(self) -> bool:
        """Whether one probability says it all."""
        return self.kind != "multilabel" and len(self.names) == 2

    @property
    def outputs(self) -> int:
        """Logits of the head, K."""
        return len(self.names) - (self.kind == "ordinal")

    def __len__(self) -> int:
        return len(self.names)

    def probabilities(self, logits_NK: np.ndarray) -> np.ndarray:
        """``[N, C]`` probabilities of logits ``[N, K]``; each row sums to 1, but for multi-label."""
        return class_probabilities(logits_NK, self.kind)


def class_probabilities(logits_NK: np.ndarray, kind: Kind) -> np.ndarray:
    """See :meth:`LabelSpace.probabilities`."""
    from scipy.special import expit, softmax

    logits_NK = np.asarray(logits_NK, dtype=np.float64)
    if kind == "single":
        return np.asarray(softmax(logits_NK, axis=1))
    if kind == "multilabel":
        return np.asarray(expit(logits_NK))
    above_NK = expit(logits_NK)
    edges = np.ones((len(above_NK), 1)), np.zeros((len(above_NK), 1))
    # Cut points are ordered, but floating point may be off by its last digit.
    return np.maximum(-np.diff(np.hstack([edges[0], above_NK, edges[1]]), axis=1), 0.0)
