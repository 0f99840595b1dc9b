"""The generation loss: cross-entropy of the explanation's tokens, per supervised token.

    ℓ = lse(l) - (1-ε) l_t - ε mean(l) + z lse(l)²       l the logits over the vocabulary, t the token, ε, z below

The fused loss computes it together with the classification loss: :func:`clsgen_kernels.dual_head_loss`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Lt

from clsgen_dist.io.value_ranges import NonNegativeFloat
from clsgen_dist.objectives.term import Term, TermSettings

if TYPE_CHECKING:
    from torch import Tensor

    from clsgen_dist.data.pack import Batch
    from clsgen_dist.model.forward_pass import ForwardPass


@dataclass(kw_only=True)
class GenerationSettings(TermSettings):
    """The explanation's tokens, by the LM head."""

    weight: NonNegativeFloat = 1.0
    """Weight of the mean over supervised tokens."""
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of each target spread over the whole vocabulary (Szegedy 2016, arXiv 1512.00567)."""
    z_loss: NonNegativeFloat = 0.0
    """Weight of lse², which keeps logits from drifting (PaLM, arXiv 2204.02311)."""

    def term(self) -> Generation:
        """The term with these settings."""
        return Generation()


class Generation(Term):
    """Per supervised token."""

    name = "generation"

    def count(self, batch: Batch) -> float:
        """Supervised tokens."""
        return batch.supervised

    def sum(self, forward: ForwardPass) -> Tensor:
        """From the fused loss."""
        return forward.losses.generation_loss.sum()
