"""One model in this process: one thread runs one decode loop, which requests join and leave between tokens.

    submit ─▶ waiting (bounded) ─▶ prefill, a few at a time ─▶ decode loop ─▶ events

Requests take turns, each with its next prompt. A prefill holds the loop up for its own time, so few
prompts are put through together (:func:`clsgen_dist.inference.prefill.fit_together`).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

from clsgen_dist.inference.batch_decoder import BatchDecoder
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.prefill import fit_together
from clsgen_dist.inference.raw_predictions import require_finite
from clsgen_dist.serving.fair_queue import FairQueue
from clsgen_dist.serving.faults import UnavailableError
from clsgen_dist.serving.tickets import Ticket, late

logger = logging.getLogger(__name__)


class LocalBackend:
    """Answers tickets with a :class:`clsgen_dist.Predictor`.

    Args:
        predictor: the model.
        max_batch: explanations written at a time, candidates included; more than that of one text are written alone.
        max_queue: tickets that may wait.
    """

    def __init__(self, predictor: Predictor, *, max_batch: int, max_queue: int) -> None:
        self._predictor, self._max_batch = predictor, max_batch
        self._decoder: BatchDecoder = predictor.decoder(ended_share=0)
        self._waiting = FairQueue(max_queue)
        self._running: dict[int, Ticket] = {}
        """By the id of their task."""
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds = 1.0
        """Of an answer, a running mean."""
        self._thread = threading.Thread(target=self._work, name="decode", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit(self, tickets: list[Ticket]) -> None:
        """Take a request's tickets in; all, or none and BusyError."""
        with self._changed:
            if self._stopping or not self._thread.is_alive():
                raise UnavailableError("the server is stopping; ask another one, or later", "stopping")
            rounds = math.ceil((len(self._waiting) + len(self._running)) / self._max_batch)
            self._waiting.add(tickets, rounds * self._seconds)
            self._changed.notify()

    def stop(self) -> None:
        """End; what is not finished is told so."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def waiting(self) -> int:
        """Tickets that nobody has begun."""
        with self._changed:
            return len(self._waiting)

    @property
    def running(self) -> int:
        """Tickets that are being answered."""
        return len(self._running)

    @property
    def is_alive(self) -> bool:
        """Whether tickets can be answered."""
        return self._thread.is_alive() and not self._stopping

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._stopping):
                    self._changed.wait()
                if self._stopping:
                    break
                begun = self._taken()
            try:
                self._decoder.reader = self._predictor.reader  # a recalibrated model has another one
                done = self._decoder.begin([ticket.task for ticket in begun]) if begun else []
                self._tell(done)
                if self._decoder.tasks:
                    self._tell(self._decoder.run(self._is_interrupted))
            except Exception as error:  # the next requests may not meet it: out of memory on a long text
                logger.exception("a batch of %d texts failed", len(self._running))
                self._fail(error)
                self._decoder = self._predictor.decoder(ended_share=0)
        stopped = UnavailableError("the server stopped before the answer was there; ask again", "stopping")
        for ticket in (*self._waiting.take_all(), *self._running.values()):
            ticket.tell_error(stopped)
        self._running.clear()

    def _taken(self) -> list[Ticket]:
        """The next tickets to begin together."""
        begun: list[Ticket] = []
        while self._waiting and self._decoder.is_open and self._has_room(ticket := self._waiting.first()):
            if self._is_void(ticket):
                self._waiting.take()
                continue
            lengths = [len(other.task.prompt) for other in (*begun, ticket)]
            if not fit_together(lengths, may_pad=self._predictor.may_pad):
                break
            begun.append(self._waiting.take())
            self._running[id(ticket.task)] = ticket
        return begun

    def _is_void(self, ticket: Ticket) -> bool:
        """Whether nobody waits for a ticket any more; one that is late is told so."""
        if ticket.is_late and not ticket.task.is_cancelled:
            ticket.task.cancel()
            ticket.tell_error(late(ticket))
        return ticket.task.is_cancelled

    def _is_interrupted(self) -> bool:
        """Whether decoding should stop for others; asked after each token."""
        for ticket in list(self._running.values()):
            self._is_void(ticket)
        if self._stopping:
            return True
        with self._changed:
            return bool(self._waiting) and self._decoder.is_open and self._has_room(self._waiting.first())

    def _has_room(self, ticket: Ticket) -> bool:
        """Whether a ticket can be begun beside those that are at work."""
        held = sum(_explanations(other) for other in self._running.values())
        return not held or held + _explanations(ticket) <= self._max_batch

    def _tell(self, tasks: Sequence[Any]) -> None:
        """Tell the answers of tasks that are done."""
        for task in tasks:
            ticket = self._running.pop(id(task))
            if task.is_cancelled:
                continue
            try:
                if task.error is not None:
                    raise task.error
                require_finite([task.raw])
                ticket.tell_done((task.reader or self._predictor.reader).read(task.raw))
            except Exception as error:
                ticket.tell_error(error)
            self._seconds += 0.1 * (time.monotonic() - ticket.begun - self._seconds)

    def _fail(self, error: Exception) -> None:
        """Tell all that are being answered that they are not."""
        for ticket in self._running.values():
            ticket.tell_error(error)
        self._running.clear()


def _explanations(ticket: Ticket) -> int:
    """How many are written at a time for a ticket; one that has none takes a place too."""
    return ticket.task.decoding.candidates if ticket.task.longest else 1
