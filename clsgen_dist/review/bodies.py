"""What the page sends, checked by type and size before anything is done with it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from clsgen_dist.review.decision import Answer

Span = tuple[int, int]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Key = Annotated[str, Field(min_length=8, max_length=64)]


class Body(BaseModel):
    """An object without fields that nobody knows."""

    model_config = ConfigDict(extra="forbid")


class DecideBody(Body):
    """A decision on a row."""

    row: int
    key: Key
    """The same for a request that is sent again."""
    rejected: bool = False
    label: str | None = None
    answers: dict[str, Probability | None] | None = Field(None, max_length=5000)
    explanations: list[str | None] = Field(default_factory=list, max_length=50)
    evidence: list[Span] | None = Field(None, max_length=500)
    counter_evidence: list[Span] | None = Field(None, max_length=500)
    seconds: float | None = Field(None, ge=0, le=1e7, allow_inf_nan=False)

    def answer(self) -> Answer:
        """As the store takes it."""
        return Answer(
            is_rejected=self.rejected,
            label=self.label,
            answers=self.answers,
            explanations=tuple(self.explanations),
            evidence=None if self.evidence is None else tuple(self.evidence),
            counter_evidence=None if self.counter_evidence is None else tuple(self.counter_evidence),
            seconds=self.seconds,
        )


class RowBody(Body):
    """A row."""

    row: int


class NoteBody(Body):
    """A note on a row; empty to remove it."""

    row: int
    text: str


class NameBody(Body):
    """Who reviews."""

    name: str
