"""Agreement of reviewers beyond chance, on the rows that two of them read.

    κ    Cohen (1960), for each pair of reviewers
    α    Krippendorff (2011, "Computing Krippendorff's Alpha-Reliability"), nominal: all reviewers at once, whoever read
         which rows

         α = 1 - D_o / D_e      D_o = Σ_u 1/(m_u - 1) Σ_{c≠k} n_uc n_uk     D_e = Σ_{c≠k} n_c n_k / (n - 1)

    with n_uc reviewers who gave row u the value c, m_u its readings, n all readings of rows with at least two.

Cost: one pass over the readings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from clsgen_dist.explanations.stated_class import cohen_kappa
from clsgen_dist.review.decision import Decision, Verdict
from clsgen_dist.review.overview import blind_readings
from clsgen_dist.review.store import Store


@dataclass(frozen=True)
class PairAgreement:
    """Two reviewers on one question."""

    first: str
    second: str
    rows: int
    same: int
    kappa: float | None
    """None where chance alone would agree on every row."""


@dataclass(frozen=True)
class Agreement:
    """All reviewers on one question."""

    question: str
    """`label` or `rejected`."""
    rows: int
    same: int
    alpha: float | None
    pairs: tuple[PairAgreement, ...]


def nominal_alpha(units: Sequence[Sequence[Hashable]]) -> float | None:
    """Krippendorff's α of nominal values; None without two values to tell apart.

    Args:
        units: for each row the values that it was given; rows with fewer than two do not count.
    """
    counted = [Counter(values) for values in units if len(values) > 1]
    totals = Counter(value for counts in counted for value in counts.elements())
    n = totals.total()
    observed = sum(
        (counts.total() ** 2 - sum(c * c for c in counts.values())) / (counts.total() - 1) for counts in counted
    )
    expected = (n * n - sum(c * c for c in totals.values())) / (n - 1) if n > 1 else 0.0
    return 1 - observed / expected if expected else None


def agreement_on(question: str, readings: Sequence[dict[str, Hashable]]) -> Agreement:
    """Agreement on one question; ``readings`` has each row's value by reviewer."""
    names = sorted({name for values in readings for name in values})
    return Agreement(
        question=question,
        rows=len(readings),
        same=sum(len(set(values.values())) == 1 for values in readings),
        alpha=nominal_alpha([list(values.values()) for values in readings]),
        pairs=tuple(filter(None, (_pair(first, second, readings) for first, second in combinations(names, 2)))),
    )


def _pair(first: str, second: str, readings: Sequence[dict[str, Hashable]]) -> PairAgreement | None:
    both = [(values[first], values[second]) for values in readings if first in values and second in values]
    if not both:
        return None
    codes = {value: code for code, value in enumerate(dict.fromkeys(value for pair in both for value in pair))}
    ratings_N2 = np.array([[codes[value] for value in pair] for pair in both])
    kappa = cohen_kappa(ratings_N2[:, 0], ratings_N2[:, 1], len(codes))
    same = sum(one == other for one, other in both)
    return PairAgreement(first, second, len(both), same, None if np.isnan(kappa) else kappa)


def agreements(store: Store) -> list[Agreement]:
    """Agreement on the label, and on whether the explanation is rejected, over the blind readings of complete rows.

    Of multi-label rows the answers for all classes are one value.
    """
    rows = blind_readings(store)
    asked = {"label": _label, "rejected": _is_rejected}
    return [
        agreement_on(question, [{name: value(made) for name, made in row.items()} for row in rows])
        for question, value in asked.items()
    ]


def _label(made: Decision) -> Hashable:
    return made.classes


def _is_rejected(made: Decision) -> Hashable:
    return made.verdict == Verdict.REJECT
