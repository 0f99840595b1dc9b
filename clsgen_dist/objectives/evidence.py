"""Evidence: where the model decides, it looks at what speaks for the label.

    mean over rows with evidence, and over the layers that reach it, of   -log  mean over heads of  Σ_{t in evidence} attention(decision, t)

The cross-entropy of the attention that the deciding token gives to the quotes or spans of the row's ``evidence``,
against having all of it there. Heads may share the work: their average counts. Cost: one query's attention in each
layer (:mod:`clsgen_dist.model.attention_probe`). Attention supervised by human rationales: Bao 2018, arXiv 1808.09367;
Mathew 2021 (HateXplain), arXiv 2012.10289.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clsgen_dist.objectives.term import Term, TermSettings

if TYPE_CHECKING:
    from torch import Tensor

    from clsgen_dist.data.pack import Batch
    from clsgen_dist.model.forward_pass import ForwardPass


@dataclass(kw_only=True)
class EvidenceSettings(TermSettings):
    """Draws the deciding token's attention to the row's evidence (`data.columns.evidence`)."""

    layers: list[int] = field(default_factory=lambda: [-4, -3, -2, -1])
    """Layers whose attention is drawn, from 0; negative: from the last."""

    def term(self) -> Evidence:
        """The term with these settings."""
        return Evidence(tuple(self.layers))

    def faults(self, name: str) -> Iterator[str]:
        """What is wrong with the fields taken together; ``name`` is the term's."""
        yield from super().faults(name)
        if not self.layers:
            yield f"objectives.{name}.layers is empty, expected one or more layers, like [-1]"


class Evidence(Term):
    """Per row with evidence."""

    name = "evidence"

    def __init__(self, layers: tuple[int, ...]) -> None:
        self.attention_layers = layers

    def count(self, batch: Batch) -> float:
        """Rows of whose evidence something is left."""
        return int(batch.has_evidence.sum())

    def sum(self, forward: ForwardPass) -> Tensor:
        """Where the model decides."""
        return -forward.log_evidence_mass()[0].sum()
