"""What answers look like, for the OpenAPI page; nothing is checked or changed as it is sent."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorObject(_Answer):
    """Why a request is not answered."""

    message: str = Field(description="Value, expectation and remedy.")
    type: str
    code: str = Field(description="For programs; the message may change.")
    param: None = None


class ErrorBody(_Answer):
    """OpenAI's error object."""

    error: ErrorObject


class ReadingAnswer(_Answer):
    """What the head decided."""

    label: str | list[str]
    probabilities: dict[str, float]
    interval: dict[str, tuple[float, float]] | None = Field(default=None, description="Venn-Abers interval.")
    set: list[str] | dict[str, list[str]] | None = Field(default=None, description="Conformal set.")
    hand_over: bool | None = Field(default=None, description="Whether a person should decide.")


class TextAnswer(ReadingAnswer):
    """The answer for a text."""

    id: str
    model: str
    explanation: str | None = None
    evidence: list[tuple[int, int]] | None = Field(
        default=None, description="Spans of the text that the explanation names, in code points."
    )
    after: ReadingAnswer | None = Field(default=None, description="The decision after the explanation.")
    others: list[str] | None = Field(default=None, description="Other explanations, the best first.")
    contradicts: bool | None = Field(default=None, description="The explanation states another class.")
    explanation_cut: bool | None = None
    redraws: int | None = None
    truncated: bool | None = Field(default=None, description="The text lost its middle.")


class BatchAnswer(_Answer):
    """Answers of several texts, in their order."""

    model: str
    answers: list[TextAnswer | ErrorBody]


class Info(_Answer):
    """The model."""

    model: str
    labels: list[str]
    positive_label: str
    label_space: str
    thresholds: dict[str, float] | None
    question: str
    calibrated: bool
    decide: str
    max_characters: int
    auth: bool


class Status(_Answer):
    """Whether the server works."""

    status: str


class ModelEntry(_Answer):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(_Answer):
    """The one model."""

    object: Literal["list"]
    data: list[ModelEntry]


class ChatAnswer(_Answer):
    """OpenAI's chat completion, with the decision beside it."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, int]
    decision: TextAnswer


class DecisionAnswer(_Answer):
    """OpenAI's decision, each answer with its reason."""

    id: str
    model: str
    answers: list[dict[str, Any]]
    usage: dict[str, Any]


def documented(model: type[BaseModel], *, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """A route's answer where all is well; ``streams``: it may be server-sent events instead."""
    events: dict[str, Any] = {"content": {"text/event-stream": {}}} if streams else {}
    return {200: {"model": model, "description": "Events, or one JSON object." if streams else "The answer.", **events}}


def _refused(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody, "description": _WHY[status]} for status in statuses}


_WHY = {
    400: "The request asks for what cannot be done.",
    401: "No token, or a wrong one.",
    404: "Another model.",
    408: "The body takes too long.",
    413: "A body or a text over the limit.",
    421: "A host name that is not the server's.",
    422: "A field is missing, unknown, or of a wrong type.",
    429: "The queue is full; Retry-After says when to come again.",
    503: "The server is stopping, or its model or engine failed.",
    504: "The deadline passed.",
}
OPEN = _refused(421)
"""Of routes that need no token."""
ASKS = _refused(401, 421)
"""Of routes without a body."""
ANSWERS = _refused(400, 401, 408, 413, 421, 422, 429, 503, 504)
"""Of routes that answer texts."""
OTHER_MODEL = _refused(404)
