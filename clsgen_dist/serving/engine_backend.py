"""An engine such as vLLM computes: one call a ticket, as many at a time as the engine batches well."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from clsgen_dist.clients import EnginePredictor
from clsgen_dist.inference.raw_predictions import require_finite
from clsgen_dist.serving.faults import UnavailableError, queue_full
from clsgen_dist.serving.tickets import Ticket, late


class EngineBackend:
    """Answers tickets with an :class:`clsgen_dist.clients.EnginePredictor`; arguments as for ``LocalBackend``."""

    def __init__(self, predictor: EnginePredictor, *, max_batch: int, max_queue: int) -> None:
        self._predictor, self._max_batch, self._max_queue = predictor, max_batch, max_queue
        self._pool = ThreadPoolExecutor(max_batch, thread_name_prefix="engine")
        self._lock = threading.Lock()
        self._tickets: set[Ticket] = set()
        self._running = 0
        self._stopping = False

    def start(self) -> None:
        """Nothing to begin: threads start with the first calls."""

    def submit(self, tickets: list[Ticket]) -> None:
        """Take tickets in; all, or none and BusyError."""
        with self._lock:
            if self._stopping:
                raise UnavailableError("the server is stopping; ask another one, or later", "stopping")
            held, count = self.waiting, len(tickets)
            if held and held + count > self._max_queue:
                raise queue_full(held, count, self._max_queue, seconds=5)
            self._tickets.update(tickets)
        for ticket in tickets:
            self._pool.submit(self._answer, ticket)

    def stop(self) -> None:
        """End; what is not finished is told so."""
        with self._lock:
            self._stopping = True
            left = list(self._tickets)
        for ticket in left:
            ticket.task.cancel()
            ticket.tell_error(UnavailableError("the server stopped before the answer was there; ask again", "stopping"))
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def waiting(self) -> int:
        """Tickets that nobody has begun."""
        return len(self._tickets) - self._running

    @property
    def running(self) -> int:
        """Tickets that are being answered."""
        return self._running

    @property
    def is_alive(self) -> bool:
        """Whether tickets can be answered."""
        return not self._stopping

    def _answer(self, ticket: Ticket) -> None:
        task = ticket.task
        with self._lock:
            self._running += 1
        try:
            if task.is_cancelled:
                return
            if ticket.is_late:
                raise late(ticket)
            raw = self._predictor.answer(task, is_void=lambda: task.is_cancelled or ticket.is_late)
            if raw is None:
                if not task.is_cancelled:
                    raise late(ticket)
                return
            require_finite([raw])
            ticket.tell_done(self._predictor.read(raw))
        except Exception as error:
            ticket.tell_error(error)
        finally:
            with self._lock:
                self._running -= 1
                self._tickets.discard(ticket)
