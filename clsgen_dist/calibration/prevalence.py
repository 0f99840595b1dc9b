"""The prevalence where a model is used, beside that of the rows on which it was calibrated: stated or estimated.

    stated      a=0.02: of single labels, those not named share the rest in proportion; multi-label: each class alone
    estimated   from unlabelled rows, see :func:`clsgen_dist.calibration.prior_shift.estimate`
    weight      of a held-out row, how many rows of the new place it counts as: w = π'(y) / π(y)

Recall looks at the rows of one class, which all weigh the same, so weights leave it; they change precision, F1 and
risk. Cost: a pass over the rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clsgen_dist.calibration.interface import Calibration, within_limits
from clsgen_dist.calibration.prior_shift import correct, estimate
from clsgen_dist.errors import DataError, SettingsError
from clsgen_dist.io.tables import markdown_table
from clsgen_dist.io.text import quoted
from clsgen_dist.model.label_space import Kind

# N rows, C classes, K logits


@dataclass(frozen=True)
class Prevalence:
    """Shares of the classes where the model was calibrated, and where it is used; multi-label shares need no sum."""

    fitted_C: tuple[float, ...]
    deployed_C: tuple[float, ...]
    """Equal to ``fitted_C`` for a multi-label class that is not corrected."""
    low_C: tuple[float, ...] | None = None
    """Lower ends of the 95 % intervals of estimated shares; None: the shares were stated."""
    high_C: tuple[float, ...] | None = None
    """Their upper ends."""
    rows: int | None = None
    """Unlabelled rows that they were estimated from."""

    @property
    def changed_C(self) -> np.ndarray:
        """Which shares differ."""
        return np.asarray(self.fitted_C) != np.asarray(self.deployed_C)

    def corrected(self, probabilities_NC: np.ndarray, kind: Kind) -> np.ndarray:
        """Calibrated probabilities under the deployed prevalence."""
        # Multi-label classes that are left as they are may have a share of 0 or 1, which no formula can divide by.
        at = self.changed_C if kind == "multilabel" else slice(None)
        result_NC = probabilities_NC.copy()
        fitted, deployed = np.asarray(self.fitted_C)[at], np.asarray(self.deployed_C)[at]
        result_NC[:, at] = correct(probabilities_NC[:, at], fitted, deployed, kind)
        return within_limits(result_NC, kind)

    def weights(self, labels: np.ndarray, kind: Kind) -> np.ndarray:
        """``[N]`` weight of each row; multi-label: ``[N, C]`` for each class's question, 1 where unknown."""
        fitted_C, deployed_C = np.asarray(self.fitted_C), np.asarray(self.deployed_C)
        if kind != "multilabel":
            return np.asarray((deployed_C / fitted_C)[labels])
        weights_NC = np.ones(labels.shape)
        for c in np.flatnonzero(self.changed_C):
            yes, no = deployed_C[c] / fitted_C[c], (1 - deployed_C[c]) / (1 - fitted_C[c])
            weights_NC[labels[:, c] >= 0.5, c] = yes
            weights_NC[labels[:, c] < 0.5, c] = no
        return weights_NC

    def row_weights(self, labels: np.ndarray, kind: Kind) -> np.ndarray:
        """``[N]`` weight of each row as a whole.

        Raises:
            SettingsError: several multi-label shares change, so that a row has several weights: how classes occur
                together in the new place is not known.
        """
        weights = self.weights(labels, kind)
        if kind != "multilabel":
            return weights
        if (changed := int(self.changed_C.sum())) > 1:
            raise SettingsError(
                f"--hand_over with the prevalence of {changed} multi-label classes, expected one: it is not known how "
                "they occur together; state the prevalence of one class, or leave out --hand_over"
            )
        return np.asarray(weights.prod(axis=1))

    def to_json(self) -> dict[str, Any]:
        """JSON values for ``clsgen.json``."""
        return {name.removesuffix("_C"): value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Prevalence:
        """Inverse of :meth:`to_json`."""
        shares = {f"{name}_C": tuple(fields[name]) for name in ("fitted", "deployed", "low", "high") if name in fields}
        return cls(**shares, rows=fields.get("rows"))

    def text(self, names: Sequence[str]) -> str:
        """Both prevalences as a table."""
        stated = "stated" if self.rows is None else f"estimated from {self.rows} unlabelled rows, with 95 % intervals"
        lines = [["class", "held-out rows", "where the model is used"]]
        for c, name in enumerate(names):
            interval = f" [{self.low_C[c]:.3f}, {self.high_C[c]:.3f}]" if self.low_C and self.high_C else ""
            lines.append([name, f"{self.fitted_C[c]:.3f}", f"{self.deployed_C[c]:.3f}{interval}"])
        return (
            f"prevalence, {stated}; probabilities are corrected for it\n{markdown_table(lines)}\n"
            "this holds if only the prevalence differs, and rows of one class look the same in both places"
        )


@dataclass(frozen=True)
class PriorCorrected:
    """A calibration, and the correction of its probabilities for the deployed prevalence."""

    calibration: Calibration
    prevalence: Prevalence
    kind: Kind

    @property
    def method(self) -> str:
        """That of the calibration."""
        return self.calibration.method

    def probabilities(self, logits_NK: np.ndarray) -> np.ndarray:
        """Corrected probabilities ``[N, C]``."""
        return self.prevalence.corrected(self.calibration.probabilities(logits_NK), self.kind)

    def to_json(self) -> dict[str, Any]:
        """The calibration's fields, and ``prevalence``."""
        return {**self.calibration.to_json(), "prevalence": self.prevalence.to_json()}


def stated_prevalence(word: str, names: Sequence[str], fitted_C: np.ndarray, kind: Kind) -> Prevalence:
    """The prevalence that ``a=0.2,b=0.1`` states.

    Raises:
        SettingsError: the word cannot be read, names an unknown class, or the shares cannot be.
        DataError: a named class has no held-out row with it, or none without it.
    """
    shares = stated_shares(word, names, kind)
    deployed_C = np.array([shares.get(name, np.nan) for name in names])
    open_C = np.isnan(deployed_C)
    _require_both_answers(np.flatnonzero(~open_C), names, fitted_C)
    if kind == "multilabel":
        deployed_C[open_C] = fitted_C[open_C]
    else:
        deployed_C[open_C] = (1 - sum(shares.values())) * fitted_C[open_C] / fitted_C[open_C].sum()
    return Prevalence(tuple(fitted_C.tolist()), tuple(deployed_C.tolist()))


def stated_shares(word: str, names: Sequence[str], kind: Kind, option: str = "--prevalence") -> dict[str, float]:
    """``a=0.2,b=0.1`` by class; SettingsError, which names the option, as for :func:`stated_prevalence`."""
    # Names may hold commas and equals signs; a share ends at a comma or at the end.
    pairs = re.findall(r"(.+?)=([^,=]*)(?:,|$)", word)
    if not pairs or ",".join(f"{name}={share}" for name, share in pairs) != word:
        raise SettingsError(f"{option} is {word!r}, expected CLASS=SHARE, or several by comma: {names[-1]}=0.02")
    shares: dict[str, float] = {}
    for name, share in pairs:
        if name not in names or name in shares:
            fault = "named twice" if name in shares else f"none of the classes {', '.join(map(quoted, names))}"
            raise SettingsError(f"{option} {word!r}: {quoted(name)} is {fault}; fix the name")
        shares[name] = _share(word, share, option)
    total = sum(shares.values())
    if kind != "multilabel" and (total >= 1 if len(shares) < len(names) else not math.isclose(total, 1, abs_tol=1e-6)):
        expected = "less than 1, which is left for the others" if len(shares) < len(names) else "1"
        raise SettingsError(f"{option} {word!r}: the shares sum to {total:g}, expected {expected}; fix them")
    return shares


def _share(word: str, share: str, option: str) -> float:
    try:
        value = float(share)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise SettingsError(f"{option} {word!r}: {share!r}, expected a share above 0 and below 1; write 2 % as 0.02")
    return value


def estimated_prevalence(
    probabilities_NC: np.ndarray, names: Sequence[str], fitted_C: np.ndarray, kind: Kind
) -> Prevalence:
    """The most likely prevalence of unlabelled rows with these calibrated probabilities.

    Multi-label classes that the held-out rows do not show with and without are left as they are.

    Raises:
        DataError: too few rows.
    """
    at = np.flatnonzero((fitted_C > 0) & (fitted_C < 1))
    if kind != "multilabel":
        _require_both_answers(range(len(names)), names, fitted_C)
    found = estimate(probabilities_NC[:, at], fitted_C[at], kind)
    columns = [fitted_C.copy() for _ in range(3)]
    for column_C, values in zip(columns, (found.share_C, found.low_C, found.high_C), strict=True):
        column_C[at] = values
    deployed, low, high = (tuple(column_C.tolist()) for column_C in columns)
    return Prevalence(tuple(fitted_C.tolist()), deployed, low, high, found.rows)


def _require_both_answers(classes: Sequence[int] | np.ndarray, names: Sequence[str], fitted_C: np.ndarray) -> None:
    if bad := [names[c] for c in classes if not 0 < fitted_C[c] < 1]:
        raise DataError(
            f"the held-out rows are all alike in class {', '.join(map(quoted, bad))}, expected rows with and without "
            "it; a prevalence cannot be corrected without them: add rows"
        )
