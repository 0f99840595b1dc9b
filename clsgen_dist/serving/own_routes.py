"""``/v1/info``, ``/v1/classify``, ``/v1/explain`` and ``/v1/batch``."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from clsgen_dist.serving import faults
from clsgen_dist.serving.answers import ANSWERS, ASKS, BatchAnswer, Info, TextAnswer, documented
from clsgen_dist.serving.faults import ClientLeftError
from clsgen_dist.serving.schemas import BatchRequest, ClassifyRequest, ExplainRequest
from clsgen_dist.serving.service import Service, new_id
from clsgen_dist.serving.tickets import Ticket

KEEP_ALIVE = 10
"""Looks at a silent stream, about a second each, after which something is sent, so that proxies keep it open."""


def own_router(service: Service, *, auth: bool) -> APIRouter:
    """The routes of our own API."""
    router = APIRouter(prefix="/v1", tags=["decisions with reasons"])

    @router.get("/info", responses=documented(Info) | ASKS)
    async def info() -> dict[str, Any]:
        """The model: its classes, thresholds and question."""
        service.refresh()
        card = service.card
        thresholds = None
        if card.thresholds is not None:
            names = card.labels if card.label_space == "multilabel" else [card.positive_label]
            thresholds = dict(zip(names, card.thresholds, strict=True))
        return {
            "model": service.name,
            "labels": card.labels,
            "positive_label": card.positive_label,
            "label_space": card.label_space,
            "thresholds": thresholds,
            "question": card.question,
            "calibrated": card.calibration is not None,
            "decide": card.decide,
            "max_characters": service.limits.max_characters,
            "auth": auth,
        }

    @router.post("/classify", responses=documented(TextAnswer) | ANSWERS)
    async def classify(body: ClassifyRequest, request: Request) -> dict[str, Any]:
        """The calibrated probability of each class, without an explanation."""
        [ticket] = await service.tickets([body.text], explain=False)
        return await service.answer_json(await service.prediction(ticket, request), new_id("cls"), body.text)

    @router.post("/explain", responses=documented(TextAnswer, streams=True) | ANSWERS, response_model=None)
    async def explain(body: ExplainRequest, request: Request) -> Any:
        """The probability first, then the explanation as it is written.

        Events: ``decision``; ``text`` repeatedly; ``redraw``, after which the text so far is void; ``done`` with the
        complete answer, or ``error``.
        """
        [ticket] = await service.tickets(
            [body.text], explain=True, max_tokens=body.max_tokens, decoding=body.decoding, streams=body.stream
        )
        identity = new_id("exp")
        if not body.stream:
            return await service.answer_json(await service.prediction(ticket, request), identity, body.text)
        events = _events(service, ticket, request, identity, body.text)
        return StreamingResponse(events, media_type="text/event-stream")

    @router.post("/batch", responses=documented(BatchAnswer) | ANSWERS)
    async def batch(body: BatchRequest, request: Request) -> dict[str, Any]:
        """Answers of several texts, in their order; a text that fails has an ``error`` instead."""
        tickets = await service.tickets(
            body.texts, explain=body.explain, max_tokens=body.max_tokens, decoding=body.decoding
        )
        answers: list[dict[str, Any]] = []
        try:
            for text, ticket in zip(body.texts, tickets, strict=True):
                try:
                    prediction = await service.prediction(ticket, request)
                    answers.append(await service.answer_json(prediction, new_id("bat"), text))
                except ClientLeftError:
                    raise
                except Exception as error:
                    answers.append(faults.body(faults.as_request_error(error)))
        finally:
            for ticket in tickets:
                ticket.task.cancel()
        return {"model": service.name, "answers": answers}

    return router


async def _events(service: Service, ticket: Ticket, request: Request, identity: str, text: str) -> AsyncIterator[str]:
    """The ticket's events as server-sent events."""
    silent = 0
    async for event in service.events(ticket, request):
        silent = silent + 1 if event is None else 0
        if event is None:
            if silent % KEEP_ALIVE == 0:
                yield ": still at work\n\n"
        elif event.kind == "decision":
            yield sse("decision", service.reading_json(event.value, identity, truncated=ticket.task.truncated))
        elif event.kind == "text":
            yield sse("text", {"text": event.value})
        elif event.kind == "redraw":
            yield sse("redraw", {"reason": "contradicts"})
        elif event.kind == "done":
            yield sse("done", await service.answer_json(event.value, identity, text))
        else:
            yield sse("error", faults.body(faults.as_request_error(event.value)))


def sse(event: str, data: Any) -> str:
    """A server-sent event with JSON as its data; an event of no name has data alone."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data, ensure_ascii=False)}\n\n"
