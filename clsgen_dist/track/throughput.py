"""Tokens per second of training alone, and the most memory it took.

    rate = tokens since the last report / (seconds since the last report - seconds paused)

Evaluation and saving happen inside ``pause()``, so the curve does not dip at each checkpoint. The clock is the host's
and nothing here waits for the device: rates are right once the loop has waited for it, which reading a loss does.

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
    """Counts tokens against the time not spent in ``pause()``; whose tokens (rank's or all) is up to who adds them."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """``clock`` returns seconds."""
        self._clock = clock
        self._tokens = 0
        self._supervised = 0
        self._active_seconds = 0.0
        self._running_since: float | None = clock()

    def add(self, tokens: int, supervised: int) -> None:
        """``tokens`` went through the model, ``supervised`` of them carry the generation loss."""
        self._tokens += tokens
        self._supervised += supervised

    def rates(self) -> dict[str, float]:
        """Rates since the last call under their TensorBoard tags, then starts anew; NaN if no time has passed."""
        self._settle()
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
        """Time inside does not count; a pause inside a pause adds nothing."""
        if self._running_since is None:
            yield
            return
        self._settle()
        self._running_since = None
        try:
            yield
        finally:
            self._running_since = self._clock()

    def _settle(self) -> None:
        """Moves the time since the clock was last looked at into the sum, unless paused."""
        if self._running_since is not None:
            now = self._clock()
            self._active_seconds += now - self._running_since
            self._running_since = now


def peak_memory_gib() -> float:
    """GiB this process took at most: CUDA tensors on its device if it uses CUDA, else resident memory of the host."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # getrusage counts KiB on Linux and bytes on macOS.
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
