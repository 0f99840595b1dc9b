"""The classification loss of the row's label, per labelled row.

    single       -Σ_c w_c q_c log softmax(l)_c                  q one-hot, smoothed, or the row's votes
    multilabel   Σ_c w_c BCE(l_c, q_c) over the classes that are known
    ordinal      Σ_k BCE(l_k, P(y > k)), l_k = v·h - θ_k, θ ascending (McCullagh 1980; rank-consistent as CORAL, Cao
                 2020, arXiv 1901.07884)

The fused loss computes it together with the generation loss: :func:`clsgen_kernels.dual_head_loss`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Lt

from clsgen_dist.data.reading.cells import class_name
from clsgen_dist.io.value_ranges import NonNegativeFloat
from clsgen_dist.objectives.term import Term, TermSettings

if TYPE_CHECKING:
    from torch import Tensor

    from clsgen_dist.data.pack import Batch
    from clsgen_dist.model.forward_pass import ForwardPass


@dataclass(kw_only=True)
class ClassificationSettings(TermSettings):
    """The row's label, by the classification head."""

    weight: NonNegativeFloat = 1.0
    """Weight of the mean over labelled rows."""
    range: tuple[float, float] = (0.2, 1.0)
    """Factor of the weight at the start and at the end, where `objectives.schedule` moves."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """Factor of each class's loss: `balanced` (rows / (classes x rows of the class)), or by name. In the exported head of single labels its effect on the probabilities is undone."""
    focal_gamma: NonNegativeFloat = 0.0
    """Multiplies each loss by (1 - p)^gamma, so that easy rows count less (Lin 2017, arXiv 1708.02002). Distorts the probabilities."""
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of each label spread over all classes (Szegedy 2016). Distorts the probabilities."""
    logit_adjustment: NonNegativeFloat = 0.0
    """The head's bias starts at this times the log share of each class in the training rows. At 1 that is the logit-adjusted loss (Menon 2021, arXiv 2007.07314) with the adjustment kept when predicting: probabilities stay those of the training rows."""

    def __post_init__(self) -> None:
        """Classes are named as in the rows, however they are written here."""
        if isinstance(self.class_weights, dict):
            self.class_weights = {class_name(name): weight for name, weight in self.class_weights.items()}

    def term(self) -> Classification:
        """The term with these settings."""
        return Classification()

    def faults(self, name: str) -> Iterator[str]:
        """What is wrong with the fields taken together."""
        yield from super().faults(name)
        if self.focal_gamma and self.label_smoothing:
            yield (
                f"objectives.{name}.focal_gamma is {self.focal_gamma} with label_smoothing {self.label_smoothing}: focal "
                "loss needs one certain class a row; set one of them to 0"
            )
        weights = self.class_weights
        if isinstance(weights, dict) and (not weights or min(weights.values()) <= 0):
            yield f"objectives.{name}.class_weights is {weights}, expected numbers above 0 by class name"


class Classification(Term):
    """Per labelled row."""

    name = "classification"

    def count(self, batch: Batch) -> float:
        """Labelled rows."""
        return batch.labelled

    def sum(self, forward: ForwardPass) -> Tensor:
        """From the fused loss."""
        return forward.losses.class_loss.sum()
