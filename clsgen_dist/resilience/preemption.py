"""Preemption: SIGUSR2 (Slurm's warning before the time limit) or SIGTERM (scancel, a node drained).

A signal may reach one rank or all, at any time. The handler only records it; the ranks agree on it in the all-reduce
that begins each step, save once, and exit with status 75. Before the first step there is nothing to save, and the
process exits at once, from within the handler: an exception raised there would surface in whatever is being imported or
loaded, where libraries replace or swallow it. Worker processes leave these signals to their parent.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from clsgen_dist.errors import Preempted

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class PreemptionHandler:
    """Catches :data:`SIGNALS` while it is entered; not in other threads than the main one, where Python forbids it."""

    def __init__(self) -> None:
        self.received: str | None = None
        """Name of the first signal received."""
        self._stepping = False
        self._before: dict[signal.Signals, Any] = {}

    def begin_steps(self) -> None:
        """From here on a signal waits for the next step boundary."""
        self._stepping = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self._stepping:
            line = f"{Preempted.label}: received {name} before the first step: nothing to save. Start again\n"
            os.write(2, line.encode())  # not print: it may be printing that was interrupted
            os._exit(Preempted.exit_code)
        self.received = self.received or name

    def __enter__(self) -> PreemptionHandler:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
