"""From a request's texts to answers: checks, tickets, events, metrics; the same for every endpoint."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from clsgen_dist.clients import EnginePredictor
from clsgen_dist.decoding.constraint import grammar
from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.decoding.trial import MOST_SECONDS, is_bounded
from clsgen_dist.explanations.grounding import named_phrases
from clsgen_dist.hf_export.artifact import META_FILE, ModelCard
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.prediction import AnswerReader, Prediction, Reading
from clsgen_dist.serving.faults import ClientLeftError, RequestError, TooLargeError, queue_full
from clsgen_dist.serving.metrics import Metrics
from clsgen_dist.serving.schemas import changed
from clsgen_dist.serving.tickets import Backend, Event, Ticket, late

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
"""Between two looks whether a client that waits is still there."""
_FIXED = ("labels", "label_space", "positive_label", "head_sha256", "decide", "prompt", "folded")
"""What a model that is served may not change."""
_TRIALS, _MOST_WAITING = 2, 16
"""Forms of requests that are tried at a time, and that wait for it."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may cost."""

    max_characters: int
    deadline: float
    """Seconds to an answer."""
    log_texts: bool = False


class Service:
    """An exported model behind a backend.

    Args:
        folder: the model's.
        name: what clients call it.
        predictor: of the folder.
        backend: computes.
        limits: of requests.
    """

    def __init__(
        self, folder: Path, name: str, predictor: Predictor | EnginePredictor, backend: Backend, limits: Limits
    ) -> None:
        self.folder, self.name, self.predictor, self.backend, self.limits = folder, name, predictor, backend, limits
        self.metrics = Metrics(self.watched)
        self._trials, self._tried = ThreadPoolExecutor(_TRIALS, thread_name_prefix="trial"), 0
        self._read = self._stamp()
        self._looked = 0.0

    @property
    def card(self) -> ModelCard:
        """What the folder says now."""
        return self.predictor.reader.card

    @property
    def watched(self) -> list[str]:
        """Classes whose probabilities the metrics show: binary the positive one, else all."""
        space = self.card.space
        return [space.positive] if space.is_binary else list(space.names)

    def refresh(self) -> None:
        """Read ``clsgen.json`` again if it changed, such as by ``clsgen calibrate``; looks once a second at most.

        A file that cannot be read, or is of another model, is logged and left.
        """
        now = time.monotonic()
        if now - self._looked < 1:
            return
        self._looked = now
        if (stamp := self._stamp()) == self._read:
            return
        self._read = stamp
        try:
            card = ModelCard.read(self.folder)
        except Exception as error:  # half a file is no reason to stop
            logger.error("%s is left as it was read before: %s", self.folder / META_FILE, error)
            return
        other = [name for name in _FIXED if getattr(card, name) != getattr(self.card, name)]
        if other:
            logger.error("%s has another %s; start the server again to serve it", self.folder / META_FILE, other[0])
            return
        self.predictor.reader = AnswerReader(card)
        self.predictor.card = card
        self.metrics.forget()
        logger.info("%s changed: calibration and decisions are those of the new file", self.folder / META_FILE)

    async def tickets(
        self,
        texts: Sequence[str],
        *,
        explain: bool,
        max_tokens: int | None = None,
        decoding: Any = None,
        streams: bool = False,
        holds_back: bool = False,
    ) -> list[Ticket]:
        """Check texts and take them in.

        Args:
            texts: the request's.
            explain: whether explanations are written.
            max_tokens: most tokens of one.
            decoding: what the request changes of the model's settings.
            streams: whether their pieces are told.
            holds_back: whether pieces are whole sentences, as they cannot be taken back.

        Raises:
            RequestError: a text is not usable, or there is no room.
        """
        self.refresh()
        for number, text in enumerate(texts):
            self._check_text(text, f"texts[{number}]" if len(texts) > 1 else "the text")
        settings = self.predictor.decoding(changed(self.card.decoding_settings, decoding))
        if explain:
            await self._require_bounded(settings)
        tasks = await run_in_threadpool(self._tasks, texts, explain, max_tokens, settings)
        deadline = time.monotonic() + self.limits.deadline
        for task in tasks:
            task.holds_back = holds_back
        tickets = [Ticket(task, deadline, streams=streams) for task in tasks]
        self.backend.submit(tickets)
        return tickets

    async def events(self, ticket: Ticket, request: Request) -> AsyncIterator[Event | None]:
        """The ticket's events up to the last; None about once a second without one.

        A client that leaves, or a reader that stops, stops the decoding.
        """
        looked = time.monotonic()
        try:
            while True:
                try:
                    event = await asyncio.wait_for(ticket.events.get(), _POLL_SECONDS)
                except TimeoutError:
                    event = None
                if time.monotonic() - looked > _POLL_SECONDS or event is None:
                    looked = time.monotonic()
                    if await request.is_disconnected():
                        return
                    if event is None and ticket.deadline + _POLL_SECONDS < looked:  # nobody else has said so
                        event = Event("error", late(ticket))
                if event is None:
                    yield None
                    continue
                self._observe(ticket, event)
                yield event
                if event.is_last:
                    return
        finally:
            ticket.task.cancel()

    async def prediction(self, ticket: Ticket, request: Request) -> Prediction:
        """The answer; raises what the ticket ends with otherwise."""
        async for event in self.events(ticket, request):
            if event is None or not event.is_last:
                continue
            if event.kind == "error":
                raise event.value
            found: Prediction = event.value
            return found
        raise ClientLeftError("the client left before the answer was there", "client_left")

    def reading_json(self, reading: Reading, identity: str, *, truncated: bool) -> dict[str, Any]:
        """A decision, before its explanation is there."""
        fields = {"id": identity, "model": self.name, **reading.to_json()}
        return {**fields, "truncated": True} if truncated else fields

    async def answer_json(self, prediction: Prediction, identity: str, text: str) -> dict[str, Any]:
        """A complete answer; ``evidence``: spans of the text that the explanation names, in code points."""
        fields = {"id": identity, "model": self.name, **prediction.to_json()}
        if prediction.explanation is not None:
            names = self.predictor.reader.names
            spans = await run_in_threadpool(named_phrases, text, prediction.explanation, names)
            if prediction.truncated:  # the model has not seen the middle
                read = self.predictor.encoder.read_spans(text)
                spans = [span for span in spans if any(start <= span[0] and span[1] <= end for start, end in read)]
            fields["evidence"] = [list(span) for span in spans]
        return fields

    def _observe(self, ticket: Ticket, event: Event) -> None:
        if event.kind == "decision":
            self.metrics.decision_seconds.observe(event.at - ticket.begun)
        elif event.kind == "done":
            self.metrics.observe(event.value)
            self.metrics.tokens.inc(ticket.task.tokens_written)
            if self.limits.log_texts:
                logger.info("text %r answered %r", ticket.task.text, event.value.to_json())

    def _check_text(self, text: str, name: str) -> None:
        if not text.strip():
            raise RequestError(f"{name} is empty, expected a text to classify", "empty_text")
        if len(text) > self.limits.max_characters:
            raise TooLargeError(
                f"{name} has {len(text)} characters, expected {self.limits.max_characters} or fewer; shorten it",
                "text_too_long",
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"{name} has half a character (a lone surrogate) at {error.start}; send valid Unicode", "invalid_text"
            ) from None

    async def _require_bounded(self, settings: DecodingSettings) -> None:
        """RequestError if a form that a request brings would hold the decode loop up, or end the process."""
        form, own = settings.form, self.card.decoding_settings
        if form is None or getattr(settings, form) == getattr(own, form) or isinstance(self.predictor, EnginePredictor):
            return
        if self._tried >= _TRIALS + _MOST_WAITING:
            raise queue_full(self._tried, 1, _TRIALS + _MOST_WAITING, seconds=10)
        self._tried += 1
        try:
            loop = asyncio.get_running_loop()
            passed = await loop.run_in_executor(self._trials, is_bounded, grammar(settings, "", [], 1))
        finally:
            self._tried -= 1
        if not passed:
            raise RequestError(
                f"decoding.{form} cannot be compiled within {MOST_SECONDS} s and 2 GB; simplify it", "invalid_settings"
            )

    def _tasks(
        self, texts: Sequence[str], explain: bool, max_tokens: int | None, settings: DecodingSettings
    ) -> list[Any]:
        encoder, predictor = self.predictor.encoder, self.predictor
        if isinstance(predictor, Predictor) and explain:  # what cannot be read is said before anything is computed
            predictor.constraints.constraint(settings, texts[0], predictor.card.labels[:1], 1)
        return [
            predictor.task(text, encoder.prompt(text), decoding=settings, explain=explain, max_new_tokens=max_tokens)
            for text in texts
        ]

    def _stamp(self) -> tuple[int, int]:
        """Changes whenever the file does."""
        try:
            found = (self.folder / META_FILE).stat()
        except OSError:
            return (0, 0)
        return found.st_mtime_ns, found.st_size


def new_id(prefix: str) -> str:
    """A name for an answer."""
    return f"{prefix}-{uuid.uuid4().hex}"
