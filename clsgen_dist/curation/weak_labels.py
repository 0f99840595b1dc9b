"""Votes of annotators or labelling functions become soft labels: Dawid and Skene's model, fitted by EM.

Row n has a true class j with probability p_j; voter a then says l with probability π_a[j, l], whatever the others say.

    E    q_nj  ∝  p_j  prod over the votes (a, l) of row n of  π_a[j, l]
    M    p_j   ∝  s + sum over n of q_nj        π_a[j, l]  ∝  s + sum over the votes (n, l) of a of q_nj

starting from the shares of the votes; s smooths (a Dirichlet prior of 1 + s), so that nothing a voter never did is
impossible. Each step raises the likelihood times the prior. A voter who is always wrong is as useful as one who is
always right; votes that depend on one another (two functions that look for the same word) make q too certain.
With fewer than three voters a row, nothing says who errs: take the shares of the votes.

Cost: C passes over the votes an iteration; 50 iterations of a million votes on 5 classes take about 10 s.
Source: Dawid & Skene 1979, "Maximum likelihood estimation of observer error-rates using the EM algorithm", Applied
Statistics 28, section 3.

Shapes: N rows, V votes, A voters, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Votes:
    """Who said what about which row; a voter who abstains has no vote."""

    row_V: Whole
    voter_V: Whole
    class_V: Whole
    rows: int
    voters: int
    classes: int

    @classmethod
    def of(cls, row_V: ArrayLike, voter_V: ArrayLike, class_V: ArrayLike, shape: tuple[int, int, int]) -> Votes:
        """From sequences of numbers; ``shape`` is rows, voters, classes."""
        row, voter, said = (np.asarray(numbers, dtype=np.int64) for numbers in (row_V, voter_V, class_V))
        return cls(row, voter, said, *shape)

    @property
    def per_row_N(self) -> Whole:
        """Votes of each row."""
        return np.bincount(self.row_V, minlength=self.rows)


@dataclass(frozen=True)
class DawidSkene:
    """What EM found."""

    posterior_NC: Floats
    """q; for a row without votes it is p."""
    prior_C: Floats
    confusion_ACC: Floats
    """π: voter, true class, class said."""
    objective: list[float]
    """Log likelihood plus log prior (up to a constant) before each iteration; it never falls."""

    @property
    def accuracy_A(self) -> Floats:
        """How often each voter is right, as the model has it."""
        right: Floats = np.einsum("acc,c->a", self.confusion_ACC, self.prior_C)
        return right


def vote_shares(votes: Votes) -> Floats:
    """``[N, C]`` the share of each class among a row's votes; NaN for a row without."""
    cells = np.bincount(votes.row_V * votes.classes + votes.class_V, minlength=votes.rows * votes.classes)
    counts_NC = cells.reshape(votes.rows, votes.classes).astype(float)
    total_N1 = counts_NC.sum(axis=1, keepdims=True)
    return np.divide(counts_NC, total_N1, out=np.full_like(counts_NC, np.nan), where=total_N1 > 0)


def dawid_skene(
    votes: Votes, *, smoothing: float = 0.1, tolerance: float = 1e-7, max_iterations: int = 500
) -> DawidSkene:
    """Fit the model.

    Args:
        votes: at least one.
        smoothing: s.
        tolerance: stop when the objective grows by less than this share.
        max_iterations: stop then at the latest.
    """
    shares_NC = vote_shares(votes)
    has_votes_N = votes.per_row_N > 0
    q_NC = np.where(has_votes_N[:, None], shares_NC, 1 / votes.classes)
    objective: list[float] = []
    while True:
        prior_C, confusion_ACC = _maximise(votes, q_NC[has_votes_N], q_NC, smoothing)
        q_NC, log_likelihood = _expect(votes, prior_C, confusion_ACC, has_votes_N)
        penalty = smoothing * (np.log(prior_C).sum() + np.log(confusion_ACC).sum())
        objective.append(log_likelihood + float(penalty))
        has_converged = len(objective) > 1 and objective[-1] - objective[-2] <= tolerance * abs(objective[-1])
        if has_converged or len(objective) == max_iterations:
            return DawidSkene(q_NC, prior_C, confusion_ACC, objective)


def _maximise(votes: Votes, voted_MC: Floats, q_NC: Floats, smoothing: float) -> tuple[Floats, Floats]:
    """p and π. ``voted_MC`` are the rows of q with votes: the others say nothing about p."""
    classes = votes.classes
    prior_C = voted_MC.sum(axis=0) + smoothing
    said_V = votes.voter_V * classes + votes.class_V
    counts_ACC = np.empty((votes.voters, classes, classes))
    for true in range(classes):
        counts = np.bincount(said_V, weights=q_NC[votes.row_V, true], minlength=votes.voters * classes)
        counts_ACC[:, true] = counts.reshape(votes.voters, classes)
    counts_ACC += smoothing
    return prior_C / prior_C.sum(), counts_ACC / counts_ACC.sum(axis=2, keepdims=True)


def _expect(
    votes: Votes, prior_C: Floats, confusion_ACC: Floats, has_votes_N: NDArray[np.bool_]
) -> tuple[Floats, float]:
    """q, and the log likelihood of all votes."""
    log_NC = np.empty((votes.rows, votes.classes))
    for true in range(votes.classes):
        said_V = np.log(confusion_ACC[votes.voter_V, true, votes.class_V])
        log_NC[:, true] = np.log(prior_C[true]) + np.bincount(votes.row_V, weights=said_V, minlength=votes.rows)
    highest_N1 = log_NC.max(axis=1, keepdims=True)
    q_NC = np.exp(log_NC - highest_N1)
    total_N1 = q_NC.sum(axis=1, keepdims=True)
    log_likelihood_N = (highest_N1 + np.log(total_N1))[:, 0]
    return q_NC / total_N1, float(log_likelihood_N[has_votes_N].sum())
