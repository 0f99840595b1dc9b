"""What a loss term is: a name, a count, a sum, and the settings that every term has.

The count is over what the term's mean is over (tokens, rows) and comes from the batch alone, before the forward pass;
the sum comes from the forward pass. Both are of this rank's micro-batch: the step adds them up over ranks and
micro-batches, so neither world size nor gradient accumulation changes the gradient.

Settings are read before torch is imported: a term's file imports it where it is used.

Every rank computes every term on every micro-batch, with a count of 0 where it has no such rows: no collective may
depend on data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from clsgen_dist.io.value_ranges import NonNegativeFloat

if TYPE_CHECKING:
    from torch import Tensor

    from clsgen_dist.data.pack import Batch
    from clsgen_dist.model.forward_pass import ForwardPass


@dataclass(kw_only=True)
class TermSettings:
    """Settings that every term has; a term adds its own."""

    weight: NonNegativeFloat = 0.0
    """Weight of the term's mean; 0: off, and never computed."""
    range: tuple[float, float] = (1.0, 1.0)
    """Factor of the weight at the start and at the end, where `objectives.schedule` moves."""

    # Not abstract: of an abstract section, jsonargparse asks which subclass is meant, and hides its settings.
    def term(self) -> Term:
        """The term with these settings."""
        raise NotImplementedError

    def faults(self, name: str) -> Iterator[str]:
        """What is wrong with the fields taken together; ``name`` is the term's."""
        if min(self.range) < 0 or max(self.range) == 0:
            yield f"objectives.{name}.range is {list(self.range)}, expected two factors of 0 or more, not both 0"


class Term(ABC):
    """One term of a step's loss."""

    name: str
    """Of its settings (``objectives.NAME``) and its curve (``loss/NAME``)."""
    attention_layers: tuple[int, ...] = ()
    """Layers whose attention it reads at the deciding token; negative: from the last."""
    needs_reference: Literal["explanations", "texts"] | None = None
    """Where it compares the model with the backbone without its adapters: nowhere, on general texts, or everywhere."""
    compares_explanations: bool = False
    """Whether it asks how much more likely than before training explanations have become."""

    @abstractmethod
    def count(self, batch: Batch) -> float:
        """What the term's mean is over, in this micro-batch: tokens, rows …"""

    @abstractmethod
    def sum(self, forward: ForwardPass) -> Tensor:
        """The term's sum over these, a scalar in nats; 0 where the count is 0."""
