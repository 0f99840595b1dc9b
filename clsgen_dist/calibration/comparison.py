"""Calibration methods side by side on the same rows, and which was chosen: as codes, as JSON, and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from clsgen_dist.io.tables import markdown_table


class Reason(StrEnum):
    """Why a method was chosen; the codes are stored in ``clsgen.json``."""

    BEST = "best"
    SIMPLER = "simpler-within-one-error"
    GIVEN = "given"


@dataclass(frozen=True)
class Measured:
    """One method's scores on rows that it was not fitted to."""

    method: str
    nll: float
    """Mean negative log-likelihood of a row, nats."""
    nll_error: float
    """Its standard error."""
    ece: float
    behind: float
    """NLL minus that of the best method."""
    behind_error: float
    """Its standard error, paired by row."""


@dataclass(frozen=True)
class Comparison:
    """The methods that were tried on some rows."""

    method: str
    """The chosen one."""
    reason: Reason
    rows: int
    measured: list[Measured]
    """From the simplest method, ``none``, to the most flexible."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Methods for which there are too few rows, and the rows that each needs."""

    def to_json(self) -> dict[str, Any]:
        """JSON values for ``clsgen.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Comparison:
        """Inverse of :meth:`to_json`."""
        measured = [Measured(**scores) for scores in fields["measured"]]
        return cls(**{**fields, "reason": Reason(fields["reason"]), "measured": measured})

    def text(self) -> str:
        """The choice and its reason in one sentence, and the table."""
        what = "raw probabilities are kept" if self.method == "none" else f"calibration by {self.method}"
        lines = [f"{what}: {self._why()}", self._table()]
        lines.append("each row was predicted by fits that had not seen it; ± is one standard error")
        if self.left_out:
            needs = ", ".join(f"{method} needs {rows}" for method, rows in self.left_out.items())
            lines.append(f"not tried on {self.rows} rows: {needs}")
        return "\n".join(lines)

    def _why(self) -> str:
        best = next(scores.method for scores in self.measured if scores.behind == 0)
        if self.reason is Reason.GIVEN:
            chosen = next(scores for scores in self.measured if scores.method == self.method)
            worse = chosen.nll > self.measured[0].nll
            return "as asked" + (", though raw probabilities have a lower NLL; consider --method auto" if worse else "")
        if self.reason is Reason.BEST:
            return "no method has a lower NLL"
        if self.method == "none":
            return f"even the best method, {best}, lowers the NLL by less than one standard error"
        return f"the simplest method whose NLL is within one standard error of the lowest, that of {best}"

    def _table(self) -> str:
        rows = [
            [
                s.method + (" (chosen)" if s.method == self.method else ""),
                f"{s.nll:.4f} ± {s.nll_error:.4f}",
                f"{s.behind:.4f} ± {s.behind_error:.4f}" if s.behind else "best",
                f"{s.ece:.3f}",
            ]
            for s in self.measured
        ]
        return markdown_table([["method", "NLL", "NLL above the best", "ECE"], *rows])
