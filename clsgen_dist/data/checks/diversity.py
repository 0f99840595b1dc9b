"""How different the explanations of a class are: a row of the report's table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from clsgen_dist.io.text import quoted

REMEDY = (
    "where explanations of a class are alike (few distinct pairs of words, high self-BLEU): `clsgen data thin` removes "
    "near duplicates, `clsgen data explain --paraphrase 2` writes them in other words"
)


@dataclass(frozen=True, kw_only=True)
class ClassDiversity:
    """Measures of a class's explanations in one split; NaN where undefined."""

    split: str
    label: str | None
    """None: rows without a label."""
    explanations: int
    """All of them."""
    sampled: int
    """Those that were measured."""
    distinct_1: float
    """Different words divided by all words."""
    distinct_2: float
    """Different pairs of words divided by all pairs."""
    self_bleu: float
    """Mean BLEU of an explanation against the others, 0 to 100."""
    template_share: float
    """Share equal to another one once numbers, class names and words of their texts are masked."""

    def cells(self) -> dict[str, str]:
        """Columns and values for people."""
        return {
            "split": self.split,
            "class": "(no label)" if self.label is None else quoted(self.label),
            "explanations": str(self.explanations),
            "measured": str(self.sampled),
            "distinct-1": _written(self.distinct_1, ".2f"),
            "distinct-2": _written(self.distinct_2, ".2f"),
            "self-BLEU": _written(self.self_bleu, ".1f"),
            "from templates": _written(self.template_share, ".0%"),
        }

    def to_json(self) -> dict[str, Any]:
        """All fields; null where undefined."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in vars(self).items()
        }


def _written(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
