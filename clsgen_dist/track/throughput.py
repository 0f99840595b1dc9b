"""Tokens per second of training alone, and peak memory.

    rate = tokens since the last report / (seconds since the last report - seconds paused)

Evaluation and saving run inside ``pause()``, so the curve does not dip at each checkpoint. The clock is the host's and
nothing here synchronises with the device: rates are correct once the loop has synchronised, which reading a loss does.

Cost: two additions per step. Peak memory is a counter that the CUDA allocator or the kernel keeps anyway.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator

import torch

from clsgen_dist.track.tensorboard import SUPERVISED_TOKENS_PER_SECOND, TOKENS_PER_SECOND


class Throughput:
    """Counts tokens over the time outside ``pause()``; the caller decides whether of one rank or of all."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """``clock`` returns seconds."""
        self._clock = clock
        self._tokens = 0
        self._supervised = 0
        self._active_seconds = 0.0
        self._running_since: float | None = clock()

    def add(self, tokens: int, supervised: int) -> None:
        """Count ``tokens`` processed by the model, of which ``supervised`` have a generation loss."""
        self._tokens += tokens
        self._supervised += supervised

    def rates(self) -> dict[str, float]:
        """Rates since the last call by TensorBoard tag, and reset; NaN if no time has passed."""
        self._update_active_time()
        seconds = self._active_seconds
        rates = {
            TOKENS_PER_SECOND: self._tokens / seconds if seconds > 0 else float("nan"),
            SUPERVISED_TOKENS_PER_SECOND: self._supervised / seconds if seconds > 0 else float("nan"),
        }
        self._tokens = self._supervised = 0
        self._active_seconds = 0.0
        return rates

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside does not count; may be nested."""
        if self._running_since is None:
            yield
            return
        self._update_active_time()
        self._running_since = None
        try:
            yield
        finally:
            self._running_since = self._clock()

    def _update_active_time(self) -> None:
        """Adds the time since the last reading of the clock, unless paused."""
        if self._running_since is not None:
            now = self._clock()
            self._active_seconds += now - self._running_since
            self._running_since = now


def peak_memory_gib() -> float:
    """Peak memory of this process in GiB: CUDA tensors on its device if it uses CUDA, else resident host memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # getrusage counts KiB on Linux and bytes on macOS.
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
