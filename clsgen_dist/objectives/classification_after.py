"""The classification loss of a second reading, after the explanation: the same head, at the explanation's last token.

    mean over rows with a label and an explanation of   -log p(label | prompt, explanation)

Used with ``model.decide=both``. In training the explanation is the row's own; when predicting it is the model's. Cost: one
``rows x D x K`` product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from clsgen_dist.io.value_ranges import NonNegativeFloat
from clsgen_dist.objectives.term import Term, TermSettings

if TYPE_CHECKING:
    from torch import Tensor

    from clsgen_dist.data.pack import Batch
    from clsgen_dist.model.forward_pass import ForwardPass


@dataclass(kw_only=True)
class ClassificationAfterSettings(TermSettings):
    """The row's label, read by the classification head after the explanation; only with `model.decide: both`."""

    weight: NonNegativeFloat = 1.0
    """Weight of the mean over rows with label and explanation."""

    def term(self) -> ClassificationAfter:
        """The term with these settings."""
        return ClassificationAfter()


class ClassificationAfter(Term):
    """Per row with label and explanation."""

    name = "classification_after"

    def count(self, batch: Batch) -> float:
        """Rows with label and explanation."""
        return int((batch.is_explained & batch.is_labelled).sum())

    def sum(self, forward: ForwardPass) -> Tensor:
        """At the end of each explanation."""
        end_S, start_S = forward.batch["end_index_S"], forward.batch["class_index_S"]
        losses_S = forward.class_losses(forward.class_logits(end_S), forward.batch["label_S"])
        return (losses_S * (end_S != start_S)).sum()
