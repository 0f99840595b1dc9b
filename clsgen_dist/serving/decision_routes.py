"""``/v1/decisions`` in the shape of OpenAI's client 3.57 (``client.decisions.create``), with an explanation beside it.

    binary       predicate    probability of the positive class
    classes      choice       each class's probability; binary too
    ordered      score        each level's probability, and their mean
    multi-label  predicate    named by the class that it is about
    handed over  refusal      the model is too uncertain, and a person should decide

A model here is trained for one question, and another question in ``instructions`` would get an answer to the wrong one:
it is refused.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from clsgen_dist.inference.prediction import Prediction
from clsgen_dist.serving.answers import ANSWERS, OTHER_MODEL, DecisionAnswer, documented
from clsgen_dist.serving.chat_routes import message_text, require_model
from clsgen_dist.serving.faults import RequestError
from clsgen_dist.serving.schemas import Decoding, Name
from clsgen_dist.serving.service import Service, new_id


class Choice(BaseModel):
    """A class to choose."""

    model_config = ConfigDict(extra="ignore")
    value: str | bool


class Level(BaseModel):
    """A level of a scale."""

    model_config = ConfigDict(extra="ignore")
    label: str


class Question(BaseModel):
    """A question about the input."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["predicate", "choice", "score"]
    instructions: str | list[dict[str, Any]] = ""
    name: Name | None = None
    choices: list[Choice] | None = None
    levels: list[Level] | None = None


class DecisionRequest(BaseModel):
    """OpenAI's request, and whether the answer is explained."""

    model_config = ConfigDict(extra="forbid")
    model: str
    input: str | list[dict[str, Any]]
    questions: list[Question] = Field(min_length=1, max_length=400)
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: str | None = None
    explain: bool = Field(default=True, description="Write an explanation (not OpenAI's); false is many times faster.")
    decoding: Decoding | None = Field(default=None, description="How the explanation is written (not OpenAI's).")


def decision_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    @router.post("/decisions", responses=documented(DecisionAnswer) | ANSWERS | OTHER_MODEL)
    async def decisions(body: DecisionRequest, request: Request) -> dict[str, Any]:
        """A typed, calibrated answer to each question, and the reason."""
        require_model(service, body.model)
        for question in body.questions:
            _check(service, question)
        text = _input_text(body.input)
        [ticket] = await service.tickets([text], explain=body.explain, decoding=body.decoding)
        prediction = await service.prediction(ticket, request)
        answer = await service.answer_json(prediction, new_id("dec"), text)
        prompt, written = len(ticket.task.prompt), ticket.task.tokens_written
        return {
            "id": answer["id"],
            "model": service.name,
            "answers": [{**_answer(service, question, prediction), **_reason(answer)} for question in body.questions],
            "usage": {
                "input_tokens": prompt,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": written,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": prompt + written,
            },
        }

    return router


def _check(service: Service, question: Question) -> None:
    """RequestError for a question that is not the model's."""
    space = service.card.space
    allowed: dict[str, list[str]] = {
        "multilabel": ["predicate"],
        "ordinal": ["score"],
        "single": ["predicate", "choice"] if space.is_binary else ["choice"],
    }
    if question.type not in allowed[space.kind]:
        raise RequestError(
            f"the question is a {question.type}, expected a {' or a '.join(allowed[space.kind])}: the model's classes "
            f"are {list(space.names)} ({space.kind})",
            "wrong_question",
        )
    asked = " ".join(message_text(question.instructions, ("input_text", "text")).split())
    own = " ".join(service.card.question.split())
    if asked and asked != own:
        raise RequestError(
            f"instructions are {asked[:200]!r}, expected the question that the model was trained for, {own!r}, or none",
            "wrong_question",
        )
    given = {"choice": ("choices", "value"), "score": ("levels", "label")}.get(question.type)
    if given is not None:
        entries = getattr(question, given[0])
        names = None if entries is None else [getattr(entry, given[1]) for entry in entries]
        same = names == list(space.names) if question.type == "score" else set(names or ()) == set(space.names)
        if names is not None and not same:
            raise RequestError(
                f"{given[0]} are {names}, expected the model's classes {list(space.names)}", "wrong_question"
            )
    if space.kind == "multilabel" and question.name not in space.names:
        raise RequestError(
            f"the predicate's name is {question.name!r}, expected the class it is about: {list(space.names)}",
            "wrong_question",
        )


def _answer(service: Service, question: Question, prediction: Prediction) -> dict[str, Any]:
    """The typed answer to a question."""
    space, p = service.card.space, prediction.probabilities
    if prediction.hand_over:
        return {"type": "refusal", "name": question.name}
    if question.type == "predicate":
        about = question.name if space.kind == "multilabel" and question.name else space.positive
        return {"type": "predicate", "name": question.name, "probability": p[about]}
    assert isinstance(prediction.label, str)
    found = {"type": question.type, "name": question.name, "confidence": p[prediction.label]}
    if question.type == "choice":
        return {
            **found,
            "choice": prediction.label,
            "probabilities": [{"value": name, "probability": p[name]} for name in space.names],
        }
    return {
        **found,
        "score": sum(level * p[name] for level, name in enumerate(space.names)),
        "probabilities": [
            {"label": name, "value": level, "probability": p[name]} for level, name in enumerate(space.names)
        ],
    }


def _reason(answer: dict[str, Any]) -> dict[str, Any]:
    """What goes beyond OpenAI's answer."""
    names = ("explanation", "evidence", "contradicts", "explanation_cut", "set", "interval", "hand_over", "truncated")
    return {name: answer[name] for name in names if name in answer}


def _input_text(given: str | list[dict[str, Any]]) -> str:
    """The text of the input: a string, or one message of the user."""
    if isinstance(given, str):
        return given
    if (roles := [message.get("role") for message in given]) != ["user"]:
        raise RequestError(
            f"input has the roles {roles}, expected a string or one message of the user; put the text into one message",
            "unsupported_messages",
        )
    content = given[0].get("content")
    if not isinstance(content, (str, list)):
        raise RequestError(f"the message's content is {content!r}, expected a text", "unsupported_content")
    return message_text(content, ("input_text", "text"))
