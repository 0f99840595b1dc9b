"""Progress of a run: a bar on a terminal, plain lines in a log file.

Slurm and CI write stderr to a file, where a bar is one endless line of carriage returns. There, a line is printed at
most every ``every_seconds``, and always for the first and the last update, such as

    train 12/60 (20%) eta 1m32s  loss/generation 1.234  loss/classification 0.6931

The time left is (total - done) * seconds per unit since this process started, so a resumed run's estimate excludes
the steps of earlier processes.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TextIO


class Progress:
    """Displays ``done`` of ``total`` units; nothing if ``enabled`` is False (every rank but 0)."""

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        enabled: bool,
        unit: str = "step",
        label: str = "train",
        rate: bool = False,
        stream: TextIO | None = None,
        every_seconds: float = 10,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``start`` units are already done; ``stream`` defaults to stderr; ``every_seconds`` applies to plain lines.

        ``rate``: plain lines say the units per second too.
        """
        self.total = total
        self.done = start
        self._start = start
        self._enabled = enabled
        self._unit, self._rate = unit, rate
        self._label = label
        # Not a default value, since stderr may have been redirected after the import.
        self._stream = sys.stderr if stream is None else stream
        self._every_seconds = every_seconds
        self._clock = clock
        self._started_at = clock()
        self._printed_at: float | None = None
        self._printed_done: int | None = None
        self._postfix: dict[str, float] = {}
        self._bar: Any = None
        if enabled and self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=start, unit=unit, desc=label, file=self._stream, dynamic_ncols=True, leave=True
            )

    def update(self, n: int = 1, **postfix: float) -> None:
        """``n`` more units are done; ``postfix`` are numbers to display, such as losses (NaN as a dash)."""
        self.done += n
        if not self._enabled:
            return
        self._postfix = postfix
        if self._bar is not None:
            self._bar.set_postfix_str(_numbers(postfix), refresh=False)
            self._bar.update(n)
            return
        now = self._clock()
        is_due = self._printed_at is None or now - self._printed_at >= self._every_seconds
        if is_due or self.done >= self.total:
            self._print_state(now)

    def skip(self, n: int) -> None:
        """``n`` more units were done before: they say nothing of the speed."""
        self._start += n
        if self._bar is not None:
            self._bar.initial += n
        self.update(n)

    def close(self) -> None:
        """Closes the bar, or prints the final state if it has not been printed yet."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._enabled and self._printed_at is not None and self._printed_done != self.done:
            self._print_state(self._clock())
        self._enabled = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _print_state(self, now: float) -> None:
        share = f" ({100 * self.done // self.total}%)" if self.total > 0 else ""
        here = self.done - self._start
        left = self.total - self.done
        elapsed = now - self._started_at
        if left <= 0:
            when = f"done in {duration(elapsed)}"
        elif here > 0:
            when = f"eta {duration(left * elapsed / here)}"
        else:
            when = "eta ?"
        if self._rate and here > 0 and elapsed > 0:
            when += f"  {here / elapsed:.3g} {self._unit}s/s"
        numbers = _numbers(self._postfix)
        self._print(f"{self._label} {self.done}/{self.total}{share} {when}" + (f"  {numbers}" if numbers else ""))
        self._printed_at, self._printed_done = now, self.done

    def _print(self, text: str) -> None:
        # Flushed, so that the log file does not lag behind by a buffer.
        print(text, file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """Two units at most: ``45s``, ``1m32s``, ``2h05m``, ``3d04h``."""
    total = max(0, round(seconds))
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02d}s"
    if total < 86400:
        return f"{total // 3600}h{total % 3600 // 60:02d}m"
    return f"{total // 86400}d{total % 86400 // 3600:02d}h"


def _numbers(postfix: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {'-' if math.isnan(value) else format(value, '.4g')}" for name, value in postfix.items())
