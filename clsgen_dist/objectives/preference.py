"""Preference: explanations that reviewers accepted become more likely than those they rejected.

    ratio(y) = log π(y|x) - log π₀(y|x)      π₀ the reference: without adapters, or at the start of the run

    dpo   mean over pairs of             -log σ( β · [ratio(chosen) - ratio(rejected)] )
    kto   mean over explanations of      1 - σ( β · [ratio(y) - z] )   for one that was accepted
                                         1 - σ( β · [z - ratio(y)] )   for one that was rejected

Log-probabilities are sums over tokens, end token included. DPO (Rafailov 2023, arXiv 2305.18290) learns from rows with
both; they are packed into one micro-batch. KTO (Ethayarajh 2024, arXiv 2402.01306) learns from single verdicts too. Its
reference point ``z`` is how far the model has moved from the reference: the mean ratio of other rows' explanations, 0
at least. It is taken over the whole step before, so that it depends on neither ranks nor accumulation, and kept in the
checkpoint; at the first step it is 0.

Cost: the rejected explanations with their prompts (KTO: also another row's for each row), and the LM head on all
explanations once more; without adapters also a second forward pass with another, else one pass over all explanations
before the first step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from clsgen_dist.io.value_ranges import NonNegativeFloat, PositiveFloat
from clsgen_dist.objectives.term import Term, TermSettings

if TYPE_CHECKING:
    from torch import Tensor

    from clsgen_dist.data.pack import Batch
    from clsgen_dist.model.forward_pass import ForwardPass


@dataclass(kw_only=True)
class PreferenceSettings(TermSettings):
    """Learns from explanations that reviewers rejected (`data.columns.rejected`, `verdict`)."""

    loss: Literal["dpo", "kto"] = "dpo"
    """`dpo`: pairs of a chosen and a rejected explanation; `kto`: each accepted or rejected explanation by itself."""
    reference: Literal["adapters_off", "start"] = "adapters_off"
    """What the model is compared with: the backbone without its adapters (needs LoRA), by a second forward pass; or the model at the start of the run, by a pass over all explanations before the first step."""
    beta: PositiveFloat = 0.1
    """How far the model may move from the reference; higher: less far."""
    desirable_weight: NonNegativeFloat = 1.0
    """KTO: weight of accepted explanations."""
    undesirable_weight: NonNegativeFloat = 1.0
    """KTO: weight of rejected explanations."""

    def term(self) -> Preference:
        """The term with these settings."""
        return Preference(self)


class Preference(Term):
    """Per pair, or per explanation."""

    name = "preference"
    compares_explanations = True

    def __init__(self, settings: PreferenceSettings) -> None:
        self._settings = settings
        self.needs_reference = "explanations" if settings.reference == "adapters_off" else None

    def count(self, batch: Batch) -> float:
        """DPO: rows with an accepted and a rejected explanation; KTO: explanations of either kind."""
        return int((batch.is_pair if self._settings.loss == "dpo" else batch.is_judged).sum())

    def sum(self, forward: ForwardPass) -> Tensor:
        """Of all explanations."""
        settings, found = self._settings, forward.preferences
        if settings.loss == "dpo":
            return (dpo_loss(found.margin_S, settings.beta) * found.is_pair_S).sum()
        loss_S = kto_loss(found.ratio_S, ~found.is_rejected_S, forward.reference_point, settings.beta)
        weight_S = found.is_rejected_S * settings.undesirable_weight + ~found.is_rejected_S * settings.desirable_weight
        return (loss_S * weight_S * found.is_judged_S).sum()


def dpo_loss(margin_S: Tensor, beta: float) -> Tensor:
    """``[S]`` losses of pairs; ``margin_S``: log-ratio to the reference of the chosen minus that of the rejected."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * margin_S)


def kto_loss(ratio_S: Tensor, is_accepted_S: Tensor, reference_point: Tensor | float, beta: float) -> Tensor:
    """``[S]`` losses of explanations; ``ratio_S``: log-ratios to the reference."""
    signed_S = (ratio_S - reference_point) * (2.0 * is_accepted_S - 1.0)
    return 1 - (beta * signed_S).sigmoid()
