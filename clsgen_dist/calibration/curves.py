"""Curves from the log-odds of one yes-no question to its calibrated probability.

    beta             logit q = a·ln p - b·ln(1 - p) + c, a, b >= 0    (Kull, Silva Filho & Flach 2017)
    isotonic         any curve that never falls                       (Zadrozny & Elkan 2002)
    histogram        bins of equal mass, in each the share of yes     (Zadrozny & Elkan 2001)
    scaling_binning  bins of equal mass, in each the mean of a Platt curve's probabilities
                                                                      (Kumar, Liang & Ma 2019, arXiv 1909.10155)

x = logit p is what goes in, so that no probability of 0 or 1 does. a = b is Platt scaling; a = b = 1, c = 0 changes
nothing. Shares are never 0 or 1: a bin's is (yes + 2·base rate) / (rows + 2), which in an empty bin is the base rate
(m-estimate, Cestnik 1990; Laplace's rule has 1/2 for the base rate, too much for a rare class), and an isotonic curve
is clipped to 1/(rows + 2) at its ends (Laplace). Histogram and scaling_binning give rows of one bin the same
probability, so ranking suffers. Cost: a sort, or a few dozen passes over N numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from clsgen_dist.calibration.affine import platt
from clsgen_dist.calibration.fitting_rows import smoothed_targets
from clsgen_dist.calibration.interface import smallest_seen

# N rows, B bins, T thresholds

_BINS = 10
_ROWS_PER_BIN = 20
_BIN_PSEUDO_ROWS = 2


class Curve(Protocol):
    """Log-odds to probabilities."""

    def __call__(self, x_N: np.ndarray) -> np.ndarray:
        """``[N]`` probabilities."""

    def to_json(self) -> dict[str, Any]:
        """JSON values, read by :func:`curve_from_json`."""


@dataclass(frozen=True)
class BetaCurve:
    """``logit q = a·ln p - b·ln(1 - p) + c``."""

    a: float
    b: float
    c: float

    def __call__(self, x_N: np.ndarray) -> np.ndarray:
        """``[N]`` probabilities."""
        from scipy.special import expit, log_expit

        return np.asarray(expit(self.a * log_expit(x_N) - self.b * log_expit(-x_N) + self.c))

    def to_json(self) -> dict[str, Any]:
        """The three numbers."""
        return {"beta": [self.a, self.b, self.c]}


@dataclass(frozen=True)
class IsotonicCurve:
    """Straight lines between thresholds, constant outside."""

    x_T: tuple[float, ...]
    p_T: tuple[float, ...]

    def __call__(self, x_N: np.ndarray) -> np.ndarray:
        """``[N]`` probabilities."""
        return np.interp(x_N, self.x_T, self.p_T)

    def to_json(self) -> dict[str, Any]:
        """Log-odds and probabilities at the thresholds."""
        return {"x": list(self.x_T), "p": list(self.p_T)}


@dataclass(frozen=True)
class BinnedCurve:
    """One probability for each bin; the edges are the inner ones, so ``len(p_B) == len(edges) + 1``."""

    edges: tuple[float, ...]
    p_B: tuple[float, ...]

    def __call__(self, x_N: np.ndarray) -> np.ndarray:
        """``[N]`` probabilities."""
        return np.asarray(self.p_B)[np.searchsorted(self.edges, x_N, side="right")]

    def to_json(self) -> dict[str, Any]:
        """Inner edges and probabilities."""
        return {"edges": list(self.edges), "p": list(self.p_B)}


UNCHANGED = BetaCurve(1.0, 1.0, 0.0)
"""The raw probability."""


def curve_from_json(fields: dict[str, Any]) -> Curve:
    """Inverse of the curves' ``to_json``."""
    if "beta" in fields:
        return BetaCurve(*map(float, fields["beta"]))
    p = tuple(map(float, fields["p"]))
    if "edges" in fields:
        return BinnedCurve(tuple(map(float, fields["edges"])), p)
    return IsotonicCurve(tuple(map(float, fields["x"])), p)


def platt_curve(x_N: np.ndarray, answers_N: np.ndarray) -> BetaCurve:
    """Platt scaling, for answers 0 and 1 as in all fits below."""
    scale, bias = platt(x_N, answers_N)
    return BetaCurve(scale, scale, bias)


def beta(x_N: np.ndarray, answers_N: np.ndarray) -> BetaCurve:
    """The beta curve of least smoothed negative log-likelihood; convex, so deterministic."""
    from scipy.optimize import minimize
    from scipy.special import expit, log_expit

    yes_N = smoothed_targets(answers_N, 2)[:, 1]
    inputs_N3 = np.stack([log_expit(x_N), -log_expit(-x_N), np.ones(len(x_N))], axis=1)
    # Logits may lie far from 0, where the two logarithms are nearly constant: L-BFGS needs them centred, at unit scale.
    centre_3, spread_3 = inputs_N3.mean(axis=0), inputs_N3.std(axis=0)
    centre_3[2], spread_3[spread_3 < 1e-12] = 0.0, 1.0
    standard_N3 = (inputs_N3 - centre_3) / spread_3

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logit_N = standard_N3 @ parameters
        value = -(yes_N * log_expit(logit_N) + (1 - yes_N) * log_expit(-logit_N)).mean()
        return float(value), (expit(logit_N) - yes_N) @ standard_N3 / len(x_N)

    start = np.append(spread_3[:2], centre_3[0] + centre_3[1])
    options = {"maxiter": 1000, "ftol": 1e-13, "gtol": 1e-9}
    bounds = [(0, None), (0, None), (None, None)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    a, b = found.x[:2] / spread_3[:2]
    return BetaCurve(float(a), float(b), float(found.x[2] - a * centre_3[0] - b * centre_3[1]))


def isotonic(x_N: np.ndarray, answers_N: np.ndarray) -> IsotonicCurve:
    """The curve that never falls and has the least squared error: scikit-learn's thresholds, kept off 0 and 1."""
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(out_of_bounds="clip").fit(x_N, answers_N)
    least = smallest_seen(len(x_N))
    p_T = np.clip(fitted.y_thresholds_, least, 1 - least)
    return IsotonicCurve(tuple(fitted.X_thresholds_.tolist()), tuple(p_T.tolist()))


def histogram(x_N: np.ndarray, answers_N: np.ndarray) -> BinnedCurve:
    """The smoothed share of yes in each bin."""
    edges, bin_N = _equal_mass(x_N)
    bins = len(edges) + 1
    rows_B, yes_B = np.bincount(bin_N, minlength=bins), np.bincount(bin_N, weights=answers_N, minlength=bins)
    # Of all rows, smoothed itself: a part of the rows may have answers of one kind only.
    base_rate = (answers_N.sum() + 1) / (len(answers_N) + 2)
    p_B = (yes_B + _BIN_PSEUDO_ROWS * base_rate) / (rows_B + _BIN_PSEUDO_ROWS)
    return BinnedCurve(tuple(edges.tolist()), tuple(p_B.tolist()))


def scaling_binning(x_N: np.ndarray, answers_N: np.ndarray) -> BinnedCurve:
    """The mean Platt probability in each bin; far less noisy than a share of yes, and as easy to verify."""
    edges, bin_N = _equal_mass(x_N)
    scaled_N = platt_curve(x_N, answers_N)(x_N)
    # No bin is empty: its edges are values of rows.
    p_B = np.bincount(bin_N, weights=scaled_N) / np.bincount(bin_N)
    return BinnedCurve(tuple(edges.tolist()), tuple(p_B.tolist()))


def _equal_mass(x_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inner edges, and the bin of each row; as many rows in each as ties allow, 20 or more."""
    bins = int(np.clip(len(x_N) // _ROWS_PER_BIN, 1, _BINS))
    sorted_N = np.sort(x_N)
    starts = np.arange(1, bins) * len(x_N) // bins
    edges = np.unique(sorted_N[starts])
    # A bin begins at its edge: none may begin at the smallest value, or the first would be empty.
    edges = edges[edges > sorted_N[0]]
    return edges, np.searchsorted(edges, x_N, side="right")
