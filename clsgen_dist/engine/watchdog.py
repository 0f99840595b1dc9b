"""Ends a process that is stuck, and says where: no hang outlasts ``faults.hang_timeout_s``.

The timer is the interpreter's own (:func:`faulthandler.dump_traceback_later`): a C thread that needs no lock of Python,
so it fires also while the main thread waits in a collective for a rank that is dead, stopped or asleep. It writes the
stack of every thread to ``stacks/rank-N.txt`` and ends the process with status 1; the launcher then ends the others.
The file keeps those of earlier starts.
"""

from __future__ import annotations

import faulthandler
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType


class Watchdog:
    """Armed while it is entered; :meth:`beat` at least every ``timeout_s`` seconds keeps the process alive."""

    def __init__(self, file: Path, timeout_s: float) -> None:
        """``file`` takes the stacks."""
        self._path, self._timeout_s = file, timeout_s

    def beat(self) -> None:
        """There is progress; the time starts anew."""
        faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=self._file)

    def __enter__(self) -> Watchdog:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a")
        self._file.write(
            f"--- start of {datetime.now(UTC).isoformat(timespec='seconds')}. Below, if anything: the stacks of this "
            f"rank after {self._timeout_s:g} s without progress (faults.hang_timeout_s), when it ended itself. A rank "
            "that waits in a collective is not the one that hangs: look for the one with other stacks, or none.\n"
        )
        self._file.flush()
        self.beat()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
