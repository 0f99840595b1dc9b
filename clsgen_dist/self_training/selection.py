"""Which of the rows that a model is sure of are kept, so that the classes keep stated shares.

Rows of an easy class are confident first. Kept as they come, they shift the base rate from round to round, until the
model knows that class alone. So of each class as many are kept as its share allows, the most confident first:

    K = min_c n_c / share_c         n_c confident rows of class c, or --max_per_class if those are fewer
    kept_c = floor(share_c · K)

Class-balanced self-training (Zou et al. 2018, arXiv 1810.07911). Cost: a sort.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clsgen_dist.calibration.prevalence import stated_shares
from clsgen_dist.errors import DataError
from clsgen_dist.io.text import quoted

# N confident rows, C classes

_ROUNDING = 1e-9


def class_shares(word: str, names: Sequence[str], guard_C: np.ndarray) -> np.ndarray | None:
    """``[C]`` wanted shares of the classes; None: rows are kept as they come.

    Args:
        word: ``guard``, ``none``, or shares like ``a=0.2,b=0.1``; classes not named share the rest as in the guard.
        names: of the classes.
        guard_C: shares among the guard's labels.

    Raises:
        SettingsError: the word cannot be read, names an unknown class, or the shares cannot be.
    """
    if word == "none":
        return None
    if word == "guard":
        return guard_C
    stated = stated_shares(word, names, "single", option="--class_shares")
    shares_C = np.array([stated.get(name, np.nan) for name in names])
    open_C = np.isnan(shares_C)
    if open_C.any():
        rest = guard_C[open_C] if guard_C[open_C].sum() else np.ones(open_C.sum())
        shares_C[open_C] = (1 - sum(stated.values())) * rest / rest.sum()
    return shares_C


def selected(
    class_N: np.ndarray,
    confidence_N: np.ndarray,
    names: Sequence[str],
    shares_C: np.ndarray | None,
    max_per_class: int | None = None,
) -> np.ndarray:
    """``[N]`` which of the confident rows are kept.

    Args:
        class_N: the decided class of each row.
        confidence_N: its probability; of equal ones the first row counts as more confident.
        names: of the classes.
        shares_C: wanted shares of the classes; None: as they come.
        max_per_class: most rows of a class; None: any number.

    Raises:
        DataError: a class with a share has no row, so that no kept rows have the shares.
    """
    there_C = np.bincount(class_N, minlength=len(names))
    allowed_C = there_C if max_per_class is None else np.minimum(there_C, max_per_class)
    if shares_C is not None:
        wanted = np.flatnonzero(shares_C)
        if missing := [names[c] for c in wanted.tolist() if not allowed_C[c]]:
            raise DataError(
                f"no row is confidently {quoted(missing[0])}, so none can be kept with the wanted shares of the "
                f"classes ({shares_phrase(shares_C, names)}); lower --confidence, or keep the rows as they come with "
                "--class_shares none"
            )
        total = (allowed_C[wanted] / shares_C[wanted]).min()
        allowed_C = np.floor(shares_C * total + _ROUNDING).astype(int)
    is_kept_N = np.zeros(len(class_N), dtype=bool)
    for c in range(len(names)):
        rows = np.flatnonzero(class_N == c)
        is_kept_N[rows[np.argsort(-confidence_N[rows], kind="stable")[: allowed_C[c]]]] = True
    return is_kept_N


def shares_phrase(shares_C: np.ndarray, names: Sequence[str]) -> str:
    """The shares in words."""
    return ", ".join(f"{name} {share:.1%}" for name, share in zip(names, shares_C.tolist(), strict=True))
