"""Settings of the losses: one section a term, what moves their weights, and how the fused loss is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le

from clsgen_dist.data.tables.dataset import Compared
from clsgen_dist.objectives.adaptive_weights import BalanceSettings
from clsgen_dist.objectives.classification import ClassificationSettings
from clsgen_dist.objectives.classification_after import ClassificationAfterSettings
from clsgen_dist.objectives.consistency import ConsistencySettings
from clsgen_dist.objectives.consistency_after import ConsistencyAfterSettings
from clsgen_dist.objectives.contrast import ContrastSettings
from clsgen_dist.objectives.evidence import EvidenceSettings
from clsgen_dist.objectives.generation import GenerationSettings
from clsgen_dist.objectives.preference import PreferenceSettings
from clsgen_dist.objectives.retention import RetentionSettings
from clsgen_dist.objectives.term import Term, TermSettings

AFTER = "classification_after"
FUSED = ("generation", "classification")
"""Terms that are always there: the fused loss computes both in one pass."""


@dataclass(kw_only=True)
class ObjectivesSettings:
    """The terms of a step's loss: each is a global mean (per token, per row) times its weight."""

    generation: GenerationSettings = field(default_factory=GenerationSettings)
    classification: ClassificationSettings = field(default_factory=ClassificationSettings)
    classification_after: ClassificationAfterSettings = field(default_factory=ClassificationAfterSettings)
    consistency: ConsistencySettings = field(default_factory=ConsistencySettings)
    consistency_after: ConsistencyAfterSettings = field(default_factory=ConsistencyAfterSettings)
    evidence: EvidenceSettings = field(default_factory=EvidenceSettings)
    contrast: ContrastSettings = field(default_factory=ContrastSettings)
    preference: PreferenceSettings = field(default_factory=PreferenceSettings)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    schedule: Literal["constant", "linear", "cosine", "sigmoid"] = "constant"
    """How the weights move over the run, from the start to the end of each term's `range`; constant: not at all."""
    min_share: Annotated[float, Ge(0), Le(0.5)] = 0.05
    """Neither schedule nor balance lowers a weight below this share of the weights' sum, so that no term starves."""
    balance: BalanceSettings = field(default_factory=BalanceSettings)
    impl: Literal["auto", "triton", "torch", "reference"] = "auto"
    """Implementation of `dual_head_loss`; auto: Triton on a GPU, vocabulary tiles in torch on the CPU."""
    stored_logits_gib: Annotated[float, Ge(0)] = 4.0
    """On a GPU, logits of supervised tokens that take no more GiB than this are stored for the backward: three GEMM passes
    instead of four. More than this: those that the LM head's gradient has room for, if it learns. 0: always computed again."""
    lm_head: Literal["auto", "gathered", "sharded"] = "gathered"
    """Under ZeRO-3 the LM head is gathered on every rank, or stays sharded, and the states of supervised tokens travel instead; auto: whichever moves fewer bytes."""

    def sections(self) -> dict[str, TermSettings]:
        """The section of each term, by name."""
        sections = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: section for name, section in sections.items() if isinstance(section, TermSettings)}

    def terms(self, decide: str = "before") -> tuple[Term, ...]:
        """The terms of a step's loss: generation and classification, which the fused loss computes, and what is on.

        ``decide`` is ``model.decide``: the second reading's term is on with ``both``.
        """
        sections = self.sections()
        if decide != "both":
            del sections[AFTER]
        return tuple(s.term() for name, s in sections.items() if name in FUSED or s.weight > 0)

    def terms_that_run_more(self, decide: str = "before") -> tuple[Term, ...]:
        """The terms that run the LM head once more, on explanations or general texts, or all without the adapters."""
        more = ("preference", "retention")
        return tuple(term for term in self.terms(decide) if term.name in more)

    @property
    def group(self) -> int:
        """Consecutive rows of a step that are packed into one micro-batch."""
        return self.contrast.group if self.contrast.weight else 1

    @property
    def compared(self) -> Compared:
        """Which explanations the terms need besides a row's own."""
        if not self.preference.weight:
            return "own"
        return "mismatched" if self.preference.loss == "kto" else "rejected"

    def faults(self) -> Iterator[str]:
        """What is wrong with fields of this section taken together."""
        if not any(self.sections()[name].weight for name in FUSED):
            names = " and ".join(f"objectives.{name}.weight" for name in FUSED)
            yield f"{names} are both 0: nothing would be trained; set one of them above 0"
        for name, section in self.sections().items():
            yield from section.faults(name)
        if self.balance.method == "gradient_norm" and self.impl == "reference":
            yield "objectives.balance.method is gradient_norm with objectives.impl=reference, which measures no gradients"
        if self.lm_head == "sharded" and self.impl == "reference":
            yield "objectives.lm_head is sharded with objectives.impl=reference, which takes a complete one; set impl to auto"
        yield from self.balance.faults()
