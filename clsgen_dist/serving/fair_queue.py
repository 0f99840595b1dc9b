"""Texts that wait, taken from each request in turn: a long batch does not make others wait for its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from clsgen_dist.serving.faults import queue_full
from clsgen_dist.serving.tickets import Ticket


class FairQueue:
    """Tickets by request; callers hold a lock of their own.

    Args:
        size: most tickets that may wait. Of one request at most half of it is counted, so that others find room beside
            a long batch; alone, a request of any length is let in.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._requests: deque[deque[Ticket]] = deque()

    def __len__(self) -> int:
        return sum(map(len, self._requests))

    def add(self, tickets: Sequence[Ticket], seconds: float) -> None:
        """Take a request's tickets in; all, or none and BusyError, which says to come again after ``seconds``."""
        self.drop_cancelled()
        held, count = sum(map(self._counted, self._requests)), self._counted(tickets)
        if held and held + count > self.size:
            raise queue_full(len(self), len(tickets), self.size, seconds)
        self._requests.append(deque(tickets))

    def first(self) -> Ticket:
        """The next ticket, which stays; IndexError if none waits."""
        return self._requests[0][0]

    def take(self) -> Ticket:
        """The next ticket; the next one after it is another request's."""
        request = self._requests.popleft()
        ticket = request.popleft()
        if request:
            self._requests.append(request)
        return ticket

    def take_all(self) -> list[Ticket]:
        """Every ticket."""
        return [self.take() for _ in range(len(self))]

    def drop_cancelled(self) -> None:
        """Forget tickets for which nobody waits any more."""
        kept = (deque(ticket for ticket in request if not ticket.task.is_cancelled) for request in self._requests)
        self._requests = deque(request for request in kept if request)

    def _counted(self, tickets: Sequence[Ticket]) -> int:
        return min(len(tickets), max(1, self.size // 2))
