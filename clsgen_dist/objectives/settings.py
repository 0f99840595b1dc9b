"""Settings of the losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from clsgen_dist.io.value_ranges import NonNegativeFloat


@dataclass(kw_only=True)
class LossSettings:
    """How the two losses are joined: both are global means (per supervised token, per labelled row)."""

    generation_weight: NonNegativeFloat = 1.0
    """Weight of the generation loss."""
    classification_weight: NonNegativeFloat = 1.0
    """Weight of the classification loss."""
    schedule: Literal["constant", "linear", "cosine", "sigmoid"] = "constant"
    """How the weights move over the run, from the start to the end of the ranges below; constant: not at all."""
    generation_range: tuple[float, float] = (1.0, 1.0)
    """Factor of the generation weight at the start and at the end, where the schedule moves."""
    classification_range: tuple[float, float] = (0.2, 1.0)
    """Factor of the classification weight at the start and at the end, where the schedule moves."""
    min_share: Annotated[float, Ge(0), Le(0.5)] = 0.05
    """Neither weight falls below this share of their sum, so that no head starves."""
    impl: Literal["auto", "triton", "torch", "reference"] = "auto"
    """Implementation of `dual_head_loss`; auto: Triton on a GPU, vocabulary tiles in torch on the CPU."""

    def faults(self) -> Iterator[str]:
        """What is wrong with fields of this section taken together."""
        if self.generation_weight == 0 and self.classification_weight == 0:
            yield "loss.generation_weight and loss.classification_weight are both 0: nothing would be trained"
        for name in ("generation_range", "classification_range"):
            ends = getattr(self, name)
            if min(ends) < 0 or max(ends) == 0:
                yield f"loss.{name} is {list(ends)}, expected two factors of 0 or more, not both 0"
