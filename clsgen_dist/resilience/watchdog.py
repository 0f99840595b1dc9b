"""Ends a process that hangs, and logs where: no hang outlasts ``faults.hang_timeout_s``.

A thread checks for progress once a second, also while the main thread waits in a collective for a rank that is dead,
stopped or asleep. Once the time is up it writes the stack of every thread to ``stacks/rank-N.txt``
and ends the process with status 1; the launcher then ends the others. The file keeps those of earlier starts.

Only time in which the process could run counts: a job that ``scontrol suspend`` stopped for hours does not hang.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO


class Watchdog:
    """Armed while it is entered; :meth:`beat` at least every ``timeout_s`` seconds keeps the process alive.

    Args:
        file: takes the stacks.
        timeout_s: longest time without progress, in seconds.
    """

    def __init__(self, file: Path, timeout_s: float) -> None:
        self._path, self._timeout_s = file, timeout_s
        self._idle_s = 0.0
        self._over = threading.Event()
        self._entered = contextlib.ExitStack()

    def beat(self) -> None:
        """There is progress: restart the timer."""
        self._idle_s = 0.0

    def __enter__(self) -> Watchdog:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._entered.enter_context(self._path.open("a"))
        file.write(
            f"--- start of {datetime.now(UTC).isoformat(timespec='seconds')}. Below, if anything: the stacks of this "
            f"rank after {self._timeout_s:g} s without progress (faults.hang_timeout_s), when it ended itself. A rank "
            "that waits in a collective is not the one that hangs: look for the one with other stacks, or none.\n"
        )
        file.flush()
        thread = threading.Thread(target=self._watch, args=(file,), name="watchdog", daemon=True)
        thread.start()
        self._entered.callback(thread.join)
        self._entered.callback(self._over.set)
        return self

    def _watch(self, file: IO[str]) -> None:
        tick = min(1.0, self._timeout_s / 10)
        before = time.monotonic()
        while not self._over.wait(tick):
            now = time.monotonic()
            # A wait much longer than asked for: the process was stopped, or had no processor.
            self._idle_s += min(now - before, 2 * tick)
            before = now
            if self._idle_s > self._timeout_s:
                file.write(f"no progress for {self._timeout_s:g} s\n")
                file.flush()
                faulthandler.dump_traceback(file=file, all_threads=True)
                os._exit(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.close()
