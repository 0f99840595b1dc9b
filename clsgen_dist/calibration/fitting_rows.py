"""The rows of a fit: which can be used, in what order, and as what targets.

Rows are sorted by their values, so that every sum and every fold is the same whatever order they came in.

Targets are smoothed as in Platt 1999, so that a fit stays finite if the classes are separable, but with 0.1 pseudo-rows
instead of 1, which would pull every probability towards 0.5 by about one row in n. (0.1 was chosen on one seed of the
demo, on its held-out rows.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clsgen_dist.errors import DataError
from clsgen_dist.io.text import MAX_LISTED, counts_phrase, quoted
from clsgen_dist.model.label_space import Kind

# N rows, C classes, K logits

LEAST_ROWS = 10
_SMOOTHING = 0.1
"""Pseudo-rows per class added to the targets; Platt uses 1."""


def checked(logits_NK: np.ndarray, labels: np.ndarray, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Logits in float64 and labels of :func:`sorted_rows`, which has arguments and errors."""
    order_N = sorted_rows(logits_NK, labels, kind)
    return np.asarray(logits_NK, dtype=np.float64)[order_N], np.asarray(labels)[order_N]


def sorted_rows(logits_NK: np.ndarray, labels: np.ndarray, kind: Kind) -> np.ndarray:
    """Indices of the rows, sorted by their values; multi-label: of those with a known answer.

    Args:
        logits_NK: raw logits.
        labels: class indices ``[N]``; multi-label: answers ``[N, C]``, NaN where not known.
        kind: the label space.

    Raises:
        DataError: fewer than 10 rows, a class without rows (multi-label: no class with both answers), a label that is
            not a class index, logits that are not finite, or shapes that do not match.
    """
    logits_NK, labels = np.asarray(logits_NK, dtype=np.float64), np.asarray(labels)
    if not np.isfinite(logits_NK).all():
        raise DataError(
            "some logits are not finite, expected finite numbers; the model diverged, use an earlier checkpoint"
        )
    if kind == "multilabel":
        _check_answers(logits_NK, labels)
    else:
        _check_classes(logits_NK, labels, logits_NK.shape[-1] + (kind == "ordinal"))
    order_N = np.lexsort(np.column_stack([logits_NK, labels]).T)
    return order_N if kind != "multilabel" else order_N[~np.isnan(labels[order_N]).all(axis=1)]


def _check_answers(logits_NC: np.ndarray, answers_NC: np.ndarray) -> None:
    if logits_NC.ndim != 2 or logits_NC.shape != answers_NC.shape:
        raise DataError(
            f"logits of shape {logits_NC.shape} with answers of shape {answers_NC.shape}, expected [rows, classes] of "
            "both; pass the answers of the same rows"
        )
    if not fittable_classes(answers_NC).any():
        raise DataError(
            f"no class has {LEAST_ROWS} rows or more with both answers among {len(answers_NC)} rows; add rows"
        )


def _check_classes(logits_NK: np.ndarray, labels_N: np.ndarray, classes: int) -> None:
    if logits_NK.ndim != 2 or labels_N.ndim != 1 or len(logits_NK) != len(labels_N):
        raise DataError(
            f"logits of shape {logits_NK.shape} with {len(labels_N)} labels, expected [rows, classes] and one "
            "label per row; pass the labels of the same rows"
        )
    if classes < 2:
        raise DataError(f"logits of {classes} class(es), expected 2 or more; a calibration needs two classes")
    # Rows without label have -1, which numpy would index as the last class.
    outside = np.setdiff1d(labels_N, np.arange(classes)).tolist()
    if outside or not np.issubdtype(labels_N.dtype, np.integer):
        raise DataError(
            f"labels {outside or labels_N.dtype} are not class indices, expected integers from 0 to {classes - 1}; "
            "exclude rows without label"
        )
    require_rows(labels_N, [str(index) for index in range(classes)])


def require_rows(labels_N: np.ndarray, names: Sequence[str]) -> None:
    """DataError, with the names of the classes, if there are too few labels to fit a calibration."""
    if len(labels_N) == 0:
        raise DataError(f"0 labelled rows, expected {LEAST_ROWS} or more to fit a calibration; add rows")
    counts_C = np.bincount(labels_N, minlength=len(names)).tolist()
    if missing := [name for name, count in zip(names, counts_C, strict=True) if not count]:
        present = {name: count for name, count in zip(names, counts_C, strict=True) if count}
        raise DataError(
            f"no row of the class {', '.join(map(quoted, missing[:MAX_LISTED]))}, only of {counts_phrase(present)}; "
            "calibration needs rows of every class: add some"
        )
    if len(labels_N) < LEAST_ROWS:
        raise DataError(f"{len(labels_N)} labelled rows, expected {LEAST_ROWS} or more to fit a calibration; add rows")


def fittable_classes(answers_NC: np.ndarray, least: int = LEAST_ROWS) -> np.ndarray:
    """``[C]`` multi-label: which classes have ``least`` known answers, of both kinds; the others are left as they are.

    An answer that is a probability counts as what is more likely.
    """
    known_NC = ~np.isnan(answers_NC)
    yes_C = (np.where(known_NC, answers_NC, 0) >= 0.5).sum(axis=0)
    return np.asarray((known_NC.sum(axis=0) >= least) & (yes_C > 0) & (yes_C < known_NC.sum(axis=0)))


def known_rows(logits_N: np.ndarray, answers_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One class's logits and answers as 0 and 1, where they are known."""
    known_N = ~np.isnan(answers_N)
    return logits_N[known_N], (answers_N[known_N] >= 0.5).astype(int)


def smoothed_targets(labels_N: np.ndarray, classes: int) -> np.ndarray:
    """(n_c + k)/(n_c + 2k) for the row's own class (Platt: k = 1); the rest divided equally among the others."""
    counts_C = np.bincount(labels_N, minlength=classes)
    own_N = ((counts_C + _SMOOTHING) / (counts_C + 2 * _SMOOTHING))[labels_N]
    targets_NC = np.repeat(((1 - own_N) / (classes - 1))[:, None], classes, axis=1)
    targets_NC[np.arange(len(labels_N)), labels_N] = own_N
    return targets_NC
