"""Consistency of the two readings: the head's probabilities before the explanation and after it.

    mean over rows with an explanation of   KL(p_after || p_before)

Used with ``model.decide=both``. After its own explanation the head knows more, so the reading before is what learns by
default: what the explanation told is drawn into the probability that is given without one. Cost: two ``rows x D x K``
products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from clsgen_dist.objectives.divergence import divergence, log_answers
from clsgen_dist.objectives.term import Term, TermSettings

if TYPE_CHECKING:
    from torch import Tensor

    from clsgen_dist.data.pack import Batch
    from clsgen_dist.model.forward_pass import ForwardPass


@dataclass(kw_only=True)
class ConsistencyAfterSettings(TermSettings):
    """Draws the probabilities before and after the explanation together; only with `model.decide: both`."""

    learns: Literal["before", "after", "both"] = "before"
    """Which of them learns from it; the other is taken as given."""

    def term(self) -> ConsistencyAfter:
        """The term with these settings."""
        return ConsistencyAfter(self.learns)


class ConsistencyAfter(Term):
    """Per row with explanation."""

    name = "consistency_after"

    def __init__(self, learns: str) -> None:
        self._learns = learns

    def count(self, batch: Batch) -> float:
        """Rows with an explanation."""
        return int(batch.is_explained.sum())

    def sum(self, forward: ForwardPass) -> Tensor:
        """At the end of each prompt and of its explanation."""
        kind, end_S, start_S = forward.class_loss.kind, forward.batch["end_index_S"], forward.batch["class_index_S"]
        log_after_SQA = log_answers(forward.class_logits(end_S), kind)
        log_before_SQA = log_answers(forward.class_logits(start_S), kind)
        if self._learns == "before":
            log_after_SQA = log_after_SQA.detach()
        elif self._learns == "after":
            log_before_SQA = log_before_SQA.detach()
        return (divergence(log_after_SQA, log_before_SQA) * (end_S != start_S)).sum()
