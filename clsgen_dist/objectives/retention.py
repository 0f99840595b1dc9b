"""Retention: on general texts the model stays what it was.

    kl        mean over their tokens of   Σ_v π₀(v) · (log π₀(v) - log π(v))     π₀: the backbone without its adapters
    replay    mean over their tokens of   -log π(next token)

Texts of ``data.replay`` are packed beside the rows, ``share`` of a step's. KL to the untrained model keeps its whole
distribution, not just the texts' own tokens (Li & Hoiem 2016, Learning without Forgetting, arXiv 1606.09282); plain
replay needs no reference, and so no LoRA (Rolnick 2019, arXiv 1811.11682).

Cost: the replayed tokens; with ``kl`` a second forward pass of them, and two rows of the vocabulary a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Gt, Le

from clsgen_dist.objectives.term import Term, TermSettings

if TYPE_CHECKING:
    from torch import Tensor

    from clsgen_dist.data.pack import Batch
    from clsgen_dist.model.forward_pass import ForwardPass


@dataclass(kw_only=True)
class RetentionSettings(TermSettings):
    """Keeps the model's language on general texts (`data.replay`)."""

    method: Literal["kl", "replay"] = "kl"
    """`kl`: stay near the backbone without its adapters, needs LoRA; `replay`: go on learning the texts."""
    share: Annotated[float, Gt(0), Le(1)] = 0.125
    """Texts of a step over its rows, at least one."""

    def term(self) -> Retention:
        """The term with these settings."""
        return Retention(self.method)


class Retention(Term):
    """Per token of general text."""

    name = "retention"

    def __init__(self, method: str) -> None:
        self.needs_reference = "texts" if method == "kl" else None

    def count(self, batch: Batch) -> float:
        """Tokens of general text that are predicted."""
        return batch.replayed

    def sum(self, forward: ForwardPass) -> Tensor:
        """At the last hidden states."""
        return forward.replay_divergences().sum() if self.needs_reference else forward.replay_losses().sum()
