"""McNemar's test: do two models differ in accuracy on the same rows (McNemar 1947)?

Only rows that one model gets right and the other wrong bear on it. If the models are equally good, each such row is a
fair coin, so the test is an exact binomial one. The difference has Agresti & Min's interval (2005): Wald's after half a
row is added to each of the four cells, which keeps its level on few rows. Rows are independent.
"""

from __future__ import annotations

import math

import numpy as np

from clsgen_dist.evaluation.bootstrap import Difference
from clsgen_dist.evaluation.interval import UNDEFINED, Interval, normal_quantile

# N rows


def mcnemar(first_right_N: np.ndarray, second_right_N: np.ndarray, level: float = 0.95) -> Difference:
    """First minus second accuracy, from which rows each model gets right; p-value 1 if they never disagree."""
    from scipy.stats import binomtest

    n = len(first_right_N)
    if n == 0:
        return Difference(float("nan"), UNDEFINED, float("nan"))
    only_first = int(np.count_nonzero(first_right_N & ~second_right_N))
    only_second = int(np.count_nonzero(second_right_N & ~first_right_N))
    disagreed = only_first + only_second
    p_value = float(binomtest(only_first, disagreed).pvalue) if disagreed else 1.0
    centre = (only_first - only_second) / (n + 2)
    error = math.sqrt((disagreed + 1) / (n + 2) - centre**2) / math.sqrt(n + 2)
    half = normal_quantile(level) * error
    interval = Interval(max(-1.0, centre - half), min(1.0, centre + half))
    return Difference((only_first - only_second) / n, interval, p_value)
