"""``/v1/models`` and ``/v1/chat/completions``: OpenAI's API, with the decision as an extra field.

The user's message is the text; the answer's content is the explanation. What this model cannot do (a system prompt
of the client's, several turns, tools) is refused, not ignored.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from clsgen_dist.inference.prediction import Prediction
from clsgen_dist.serving import faults
from clsgen_dist.serving.answers import ANSWERS, ASKS, OTHER_MODEL, ChatAnswer, ModelEntry, ModelList, documented
from clsgen_dist.serving.faults import RequestError
from clsgen_dist.serving.own_routes import KEEP_ALIVE, sse
from clsgen_dist.serving.schemas import Decoding
from clsgen_dist.serving.service import Service, new_id
from clsgen_dist.serving.tickets import Ticket

_IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
"""What says nothing about the answer."""
_NEUTRAL: dict[str, Any] = {
    "n": 1, "frequency_penalty": 0, "presence_penalty": 0, "logprobs": False, "stop": None, "logit_bias": None,
    "parallel_tool_calls": True, "tools": [], "tool_choice": "none", "top_logprobs": None, "modalities": ["text"],
}  # fmt: skip
"""What has no effect with this value, and is refused with another."""


class Message(BaseModel):
    """A message of the conversation."""

    model_config = ConfigDict(extra="allow")
    role: str
    content: str | list[dict[str, Any]]


class ChatRequest(BaseModel):
    """OpenAI's request, as far as it applies."""

    model_config = ConfigDict(extra="allow")
    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0)
    response_format: dict[str, Any] | None = None
    decoding: Decoding | None = Field(default=None, description="How the explanation is written (not OpenAI's).")


def chat_router(service: Service) -> APIRouter:
    """OpenAI's routes."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])
    created = int(time.time())

    @router.get("/models", responses=documented(ModelList) | ASKS)
    async def models() -> dict[str, Any]:
        """The one model."""
        return {
            "object": "list",
            "data": [{"id": service.name, "object": "model", "created": created, "owned_by": "clsgen_dist"}],
        }

    @router.get("/models/{name}", responses=documented(ModelEntry) | ASKS | OTHER_MODEL)
    async def model(name: str) -> dict[str, Any]:
        """The model, by its name."""
        require_model(service, name)
        return {"id": service.name, "object": "model", "created": created, "owned_by": "clsgen_dist"}

    answers = documented(ChatAnswer, streams=True) | ANSWERS | OTHER_MODEL

    @router.post("/chat/completions", responses=answers, response_model=None)
    async def completions(body: ChatRequest, request: Request) -> Any:
        """The explanation as the assistant's message, the decision in ``decision``."""
        require_model(service, body.model)
        text, decoding = _text(body), _decoding(body)
        longest = body.max_completion_tokens or body.max_tokens
        streams = bool(body.stream)
        [ticket] = await service.tickets(
            [text], explain=True, max_tokens=longest, decoding=decoding, streams=streams, holds_back=True
        )
        head: dict[str, Any] = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": service.name}
        if body.stream:
            wants_usage = bool((body.stream_options or {}).get("include_usage"))
            chunks = _chunks(service, ticket, request, head, text, usage=wants_usage)
            return StreamingResponse(chunks, media_type="text/event-stream")
        prediction = await service.prediction(ticket, request)
        message = {"role": "assistant", "content": prediction.explanation, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": _finish(prediction), "logprobs": None}
        decision = await service.answer_json(prediction, head["id"], text)
        return {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(ticket), "decision": decision}

    return router


def require_model(service: Service, name: str) -> None:
    """RequestError with status 404 for another model."""
    if name != service.name:
        error = RequestError(f"model is {name!r}, expected {service.name!r}, the one served here", "model_not_found")
        error.status = 404
        raise error


def message_text(content: str | list[dict[str, Any]], kinds: tuple[str, ...]) -> str:
    """The text of a message's content; RequestError for parts that are no text."""
    if isinstance(content, str):
        return content
    for part in content:
        if part.get("type") not in kinds or not isinstance(part.get("text"), str):
            kind = part.get("type")
            raise RequestError(f"a part of the message has type {kind!r}, expected text only", "unsupported_content")
    return "\n".join(part["text"] for part in content)


def _text(body: ChatRequest) -> str:
    """The text to classify: the only message, the user's."""
    roles = [message.role for message in body.messages]
    if roles != ["user"]:
        raise RequestError(
            f"messages have the roles {roles}, expected one message of the user: the model has a prompt of its own, "
            "and each text is decided alone; put the text into one message",
            "unsupported_messages",
        )
    return message_text(body.messages[0].content, ("text",))


def _decoding(body: ChatRequest) -> Any:
    """The changes that OpenAI's parameters ask for, over those of ``decoding``."""
    for name, value in (body.model_extra or {}).items():
        if name in _IGNORED or value is None or (name in _NEUTRAL and value == _NEUTRAL[name]):
            continue
        raise RequestError(f"{name} is {value!r}, which this model does not do; leave it out", "unsupported_parameter")
    changes = body.decoding.model_dump(exclude_unset=True) if body.decoding else {}
    asked = {"temperature": body.temperature, "top_p": body.top_p, "seed": body.seed}
    changes |= {name: value for name, value in asked.items() if value is not None}
    if changes.get("temperature") == 0:
        changes.pop("top_p", None)  # nothing is drawn
    elif "top_p" in changes and "temperature" not in changes:
        changes["temperature"] = 1.0  # OpenAI's default
    form = body.response_format or {"type": "text"}
    if form.get("type") == "json_schema":
        named = form.get("json_schema")
        changes["json_schema"] = named.get("schema") if isinstance(named, dict) else None
        if not isinstance(changes["json_schema"], dict):
            raise RequestError(
                "response_format has no object in json_schema.schema, expected the schema there", "invalid_settings"
            )
    elif form.get("type") == "json_object":
        changes["json_schema"] = {"type": "object"}
    elif form.get("type") != "text":
        raise RequestError(
            f"response_format has type {form.get('type')!r}, expected text, json_object or json_schema",
            "unsupported_parameter",
        )
    return Decoding(**changes)


def _finish(prediction: Prediction) -> str:
    return "length" if prediction.explanation_cut else "stop"


def _usage(ticket: Ticket) -> dict[str, int]:
    prompt, written = len(ticket.task.prompt), ticket.task.tokens_written
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


async def _chunks(
    service: Service, ticket: Ticket, request: Request, head: dict[str, Any], text: str, *, usage: bool
) -> AsyncIterator[str]:
    """OpenAI's chunks: the second has the decision, the last but one the finished answer.

    Chunks cannot be taken back, so an explanation that may be drawn anew is sent when it stands.
    """
    whole = ticket.task.decoding.redraws > 0 or ticket.task.decoding.candidates > 1

    def chunk(delta: dict[str, Any], finish: str | None = None, **fields: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return sse("", {**head, "object": "chat.completion.chunk", "choices": [choice], **fields})

    sent, silent = "", 0
    yield chunk({"role": "assistant", "content": ""})
    async for event in service.events(ticket, request):
        silent = silent + 1 if event is None else 0
        if event is None:
            if silent % KEEP_ALIVE == 0:
                yield ": still at work\n\n"
            continue
        if event.kind == "decision":
            decision = service.reading_json(event.value, head["id"], truncated=ticket.task.truncated)
            yield chunk({}, decision=decision)
        elif event.kind == "text" and not whole:
            sent += event.value
            yield chunk({"content": event.value})
        elif event.kind == "done":
            explanation = event.value.explanation or ""
            if explanation.startswith(sent) and explanation != sent:
                yield chunk({"content": explanation[len(sent) :]})
            yield chunk({}, _finish(event.value), decision=await service.answer_json(event.value, head["id"], text))
            if usage:
                yield sse("", {**head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(ticket)})
            yield "data: [DONE]\n\n"
        elif event.kind == "error":
            yield sse("", faults.body(faults.as_request_error(event.value)))
