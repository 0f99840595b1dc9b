"""What a model computes for a text, before any calibration; and the rows whose logits are no numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from clsgen_dist.errors import ModelError, SettingsError
from clsgen_dist.io.text import MAX_LISTED, shortened


@dataclass(frozen=True)
class RawPrediction:
    """What the model computed for a text, before any calibration, so that it can be stored and read anew."""

    first: tuple[float, ...]
    """Class logits at the end of the prompt."""
    after: tuple[float, ...] | None
    """Class logits at the end of the explanation, of a model that decides there."""
    explanation: str | None
    truncated: bool
    """Whether the text was truncated in the middle to fit."""
    cut: bool = False
    """Whether the explanation had to stop at its most tokens."""
    redraws: int = 0
    """Explanations that stated another class than was decided, and were replaced."""
    others: tuple[str, ...] = ()
    """Other explanations, the best first."""
    error: str | None = None
    """Why the text has no answer; the settings of its explanation cannot be kept, or an engine refuses it."""

    @property
    def is_finite(self) -> bool:
        """Whether the logits are numbers: NaN and infinity come from weights that diverged, or from an overflow."""
        return all(map(math.isfinite, (*self.first, *(self.after or ()))))


NOT_FINITE = "class logits that are not finite (NaN or infinity)"


def require_explained(raws: Sequence[RawPrediction], ids: Sequence[str] | None = None) -> None:
    """SettingsError for the first text whose explanation could not be written."""
    for place, raw in enumerate(raws):
        if raw.error is not None:
            raise SettingsError(f"text {shortened(ids[place]) if ids else place}: {raw.error}")


def require_finite(raws: Sequence[RawPrediction], ids: Sequence[str] | None = None) -> None:
    """ModelError that names the rows whose logits are not numbers; ``ids``: their names, None: their places."""
    bad = [shortened(ids[place]) if ids else str(place) for place, raw in enumerate(raws) if not raw.is_finite]
    if bad:
        listed = ", ".join(bad[:MAX_LISTED]) + (", …" if len(bad) > MAX_LISTED else "")
        raise ModelError(
            f"{len(bad)} of {len(raws)} rows have {NOT_FINITE}: {listed}; the model diverged, or overflows on these "
            "texts: export an earlier checkpoint, or leave the rows out"
        )
