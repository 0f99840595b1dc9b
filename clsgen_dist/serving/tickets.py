"""A text on its way through the server, and what is told of it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from clsgen_dist.inference.batch_decoder import Task
from clsgen_dist.inference.prediction import Prediction, Reading
from clsgen_dist.serving.faults import LateError

EventKind = Literal["decision", "text", "redraw", "done", "error"]


@dataclass(frozen=True)
class Event:
    """What happened to a ticket."""

    kind: EventKind
    value: Any = None
    """``decision``: a :class:`Reading`; ``text``: a piece; ``done``: a :class:`Prediction`; ``error``: an exception."""
    at: float = field(default_factory=time.monotonic)
    """When it happened, on the clock of ``time.monotonic``."""

    @property
    def is_last(self) -> bool:
        """Whether none follows."""
        return self.kind in ("done", "error")


@dataclass(eq=False)
class Ticket:
    """A task, the time by which it must be answered, and the queue of its events; made in the server's event loop."""

    task: Task
    deadline: float
    """On the clock of ``time.monotonic``."""
    streams: bool = True
    """Whether pieces of the explanation are told."""
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.task.on_reading = self.tell_reading
        if self.streams:
            self.task.on_text = lambda piece: self.tell(Event("text", piece))
        self.task.on_redraw = lambda: self.tell(Event("redraw"))

    def tell(self, event: Event) -> None:
        """Put an event into the queue, from any thread; a loop that is closed has nobody who listens."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)

    def tell_reading(self, reading: Reading) -> None:
        """The decision is there."""
        self.tell(Event("decision", reading))

    def tell_done(self, prediction: Prediction) -> None:
        """The answer is there."""
        self.tell(Event("done", prediction))

    def tell_error(self, error: Exception) -> None:
        """There will be no answer."""
        self.tell(Event("error", error))

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() > self.deadline


class Backend(Protocol):
    """What computes tickets: :class:`LocalBackend` or :class:`EngineBackend`."""

    def start(self) -> None:
        """Begin to work."""

    def submit(self, tickets: list[Ticket]) -> None:
        """Take tickets in; all, or none and :class:`BusyError`."""

    def stop(self) -> None:
        """End; what is not finished is told so."""

    @property
    def waiting(self) -> int:
        """Tickets that nobody has begun."""

    @property
    def running(self) -> int:
        """Tickets that are being answered."""

    @property
    def is_alive(self) -> bool:
        """Whether tickets can be answered."""


def late(ticket: Ticket) -> LateError:
    """The error of a ticket whose deadline passed."""
    seconds = ticket.deadline - ticket.begun
    return LateError(
        f"no answer within {seconds:.0f} s; ask for a shorter explanation, or when the server is less busy", "deadline"
    )
