"""Consistency of the two heads: what the head believes, and the class that the explanation is about to name.

    mean over rows of   KL(p || q)     p   the head's probabilities of the classes
                                       q   the LM's at the prompt's last token, over the first tokens of the classes' names

For explanations that begin with their class's name. There q is how likely the LM is to begin with each; what it gives
to all other words is not compared. ``learns`` says which of the two is drawn to the other; of the LM it is the states,
not the names' rows of its head, whose gradient would need a tensor of the head's size. Cost: one ``rows x D x C``
product, and no pass of its own. Distillation between heads: Hinton 2015, arXiv 1503.02531.
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
class ConsistencySettings(TermSettings):
    """Draws the LM's choice of the class's name and the head's probabilities together; not for multi-label."""

    learns: Literal["lm", "head", "both"] = "lm"
    """Which of them learns from it; the other is taken as given."""

    def term(self) -> Consistency:
        """The term with these settings."""
        return Consistency(self.learns)


class Consistency(Term):
    """Per row."""

    name = "consistency"

    def __init__(self, learns: str) -> None:
        self._learns = learns

    def count(self, batch: Batch) -> float:
        """Rows with a label or an explanation."""
        return int(batch.has_target.sum())

    def sum(self, forward: ForwardPass) -> Tensor:
        """At the last token of each prompt, and where the head decides."""
        log_p_SQA = log_answers(forward.class_logits(), forward.class_loss.kind)
        log_q_SQA = forward.name_logits().log_softmax(dim=1)[:, None]
        if self._learns == "lm":
            log_p_SQA = log_p_SQA.detach()
        elif self._learns == "head":
            log_q_SQA = log_q_SQA.detach()
        label_S, batch = forward.batch["label_S"], forward.batch
        has_target = (label_S.view(len(label_S), -1) >= 0).any(dim=1) | (batch["end_index_S"] != batch["class_index_S"])
        return (divergence(log_p_SQA, log_q_SQA) * has_target).sum()
