"""Worker processes for work on rows: they exit with their parent, and leave signals to it."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from clsgen_dist.errors import DataError

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

Item = TypeVar("Item")
Result = TypeVar("Result")
_ITEMS_PER_WORKER = 4
"""Fewest items that are worth the start of a process."""


def worker_count(items: int) -> int:
    """Processes for so many items of about a second each: one for each core at most; 1 where they are not worth it."""
    return max(1, min(len(os.sched_getaffinity(0)), items // _ITEMS_PER_WORKER))


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """``function`` of each item, in their order, by so many processes; by this one if it is one.

    A few results are computed ahead, so memory does not grow with the items. Function, items and results are pickled.

    Raises:
        DataError: a process was killed; what the function raises is raised here.
    """
    if workers < 2:
        yield from map(function, items)
        return
    from concurrent.futures.process import BrokenProcessPool

    pending: deque[Future[Result]] = deque()
    with worker_pool(workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > workers + 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "a process that read rows was killed, most likely for lack of memory; free memory, and start again"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def worker_pool(workers: int) -> Executor:
    """A pool of spawned processes, which exit with this one and leave Ctrl-C and Slurm's signals to it."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_become_worker)


def _become_worker() -> None:
    import multiprocessing
    import signal

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core each: parallelism is over processes
    parent = multiprocessing.parent_process()

    def exit_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
