"""Contrast: the state of the decision is nearer to what speaks for the label than to what does not.

    mean over rows with evidence of   -log  exp(s(a, p)/T) / (exp(s(a, p)/T) + Σ_n exp(s(a, n)/T))

InfoNCE on the states after the final norm: ``a`` the deciding token's, ``p`` the mean of the row's evidence, ``n`` the
mean of its counter-evidence, that of the explanation that reviewers rejected (where the preference term brings one),
and the evidence of other rows of its group whose label is not the same; ``s`` the cosine similarity, ``T`` the temperature. A row with nothing to compare contributes 0.

Rows are grouped by their order, and a group is never split over micro-batches, so the term does not depend on ranks or
on accumulation. Cost: a few products of ``rows x D``. van den Oord 2018, arXiv 1807.03748.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from clsgen_dist.io.value_ranges import PositiveFloat
from clsgen_dist.objectives.term import Term, TermSettings

if TYPE_CHECKING:
    from torch import Tensor

    from clsgen_dist.data.pack import Batch
    from clsgen_dist.model.forward_pass import ForwardPass


@dataclass(kw_only=True)
class ContrastSettings(TermSettings):
    """Draws the deciding token's state to the row's evidence, away from counter-evidence and other rows' evidence."""

    temperature: PositiveFloat = 0.1
    """Divides the cosine similarities; lower: only the most similar negatives count."""
    group: Annotated[int, Ge(1)] = 4
    """Rows that are packed together and are each other's negatives; 1: counter-evidence alone."""

    def term(self) -> Contrast:
        """The term with these settings."""
        return Contrast(self.temperature, self.group)


class Contrast(Term):
    """Per row with evidence."""

    name = "contrast"

    def __init__(self, temperature: float, group: int) -> None:
        self._temperature, self.group = temperature, group

    def count(self, batch: Batch) -> float:
        """Rows of whose evidence something is left."""
        return int(batch.has_evidence.sum())

    def sum(self, forward: ForwardPass) -> Tensor:
        """At the last hidden states."""
        import torch
        from torch.nn.functional import normalize

        batch = forward.batch
        anchor_SD = normalize(forward.hidden_ND[forward.decided_index_S].float(), dim=1)
        evidence_SD, has_evidence_S = forward.mean_states("evidence")
        counter_SD, has_counter_S = forward.mean_states("counter")
        rejected_SD, has_rejected_S = forward.rejected_states()
        similarity_SS = anchor_SD @ normalize(evidence_SD, dim=1).T
        own_S2 = torch.stack([(anchor_SD * normalize(x, dim=1)).sum(dim=1) for x in (counter_SD, rejected_SD)], dim=1)
        has_own_S2 = torch.stack([has_counter_S, has_rejected_S], dim=1)
        group_S, label_S = batch["group_S"], batch["label_S"]
        negative_SS = (group_S[:, None] == group_S) & has_evidence_S & ~_same_label(label_S)
        logits_SM = torch.cat(
            [
                similarity_SS.diagonal()[:, None],
                own_S2.masked_fill(~has_own_S2, -torch.inf),
                similarity_SS.masked_fill(~negative_SS, -torch.inf),
            ],
            dim=1,
        )
        loss_S = torch.logsumexp(logits_SM / self._temperature, dim=1) - logits_SM[:, 0] / self._temperature
        return (loss_S * has_evidence_S).sum()


def _same_label(label_S: Tensor) -> Tensor:
    """bool ``[S, S]``: each row itself, and pairs of rows that are known to have one and the same class."""
    import torch

    itself = torch.eye(len(label_S), dtype=torch.bool, device=label_S.device)
    if label_S.dim() > 1:
        label_S = torch.where((label_S == 1).any(dim=1) & (label_S.sum(dim=1) == 1), label_S.argmax(dim=1), -1)
    return itself | ((label_S[:, None] == label_S) & (label_S >= 0))
