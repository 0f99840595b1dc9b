"""An engine such as vLLM computes: one call a ticket, as many at a time as the engine batches well."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from clsgen_dist.clients import EnginePredictor
from clsgen_dist.inference.raw_predictions import require_finite
from clsgen_dist.serving.fair_queue import FairQueue
from clsgen_dist.serving.faults import UnavailableError
from clsgen_dist.serving.tickets import Ticket, late


class EngineBackend:
    """Answers tickets with an :class:`clsgen_dist.clients.EnginePredictor`; arguments as for ``LocalBackend``."""

    def __init__(self, predictor: EnginePredictor, *, max_batch: int, max_queue: int) -> None:
        self._predictor = predictor
        self._pool = ThreadPoolExecutor(max_batch, thread_name_prefix="engine")
        self._lock = threading.Lock()
        self._waiting = FairQueue(max_queue)
        self._running: set[Ticket] = set()
        self._stopping = False

    def start(self) -> None:
        """Nothing to begin: threads start with the first calls."""

    def submit(self, tickets: list[Ticket]) -> None:
        """Take a request's tickets in; all, or none and BusyError."""
        with self._lock:
            if self._stopping:
                raise UnavailableError("the server is stopping; ask another one, or later", "stopping")
            self._waiting.add(tickets, seconds=5)
        for _ in tickets:
            self._pool.submit(self._answer_next)

    def stop(self) -> None:
        """End; what is not finished is told so."""
        with self._lock:
            self._stopping = True
            left = [*self._waiting.take_all(), *self._running]
        for ticket in left:
            ticket.task.cancel()
            ticket.tell_error(UnavailableError("the server stopped before the answer was there; ask again", "stopping"))
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def waiting(self) -> int:
        """Tickets that nobody has begun."""
        with self._lock:
            return len(self._waiting)

    @property
    def running(self) -> int:
        """Tickets that are being answered."""
        return len(self._running)

    @property
    def is_alive(self) -> bool:
        """Whether tickets can be answered."""
        return not self._stopping

    def _answer_next(self) -> None:
        with self._lock:
            if not self._waiting:  # a ticket that nobody waits for was dropped
                return
            ticket = self._waiting.take()
            self._running.add(ticket)
        try:
            self._answer(ticket)
        except Exception as error:
            ticket.tell_error(error)
        finally:
            with self._lock:
                self._running.discard(ticket)

    def _answer(self, ticket: Ticket) -> None:
        task = ticket.task
        if task.is_cancelled:
            return
        raw = None
        if not ticket.is_late:
            raw = self._predictor.answer(task, is_void=lambda: task.is_cancelled, until=ticket.deadline)
        if raw is not None:
            require_finite([raw])
            ticket.tell_done(self._predictor.read(raw))
        elif not task.is_cancelled:
            raise late(ticket)
