"""Faults at chosen places of a real run, in the ranks that a test names; only the cause is artificial.

    {"what": "kill", "where": "save:write", "step": 4, "rank": 1}

where    start (before rows are planned), frozen (a sequence's states are kept, ``after`` so many), step (before a
         step's forward passes), save:copy, save:write, save:written, save:marker, save:committed
what     kill, stop (SIGSTOP), usr2, term (to oneself), sleep (``seconds``), raise, full (the disk), nan_loss, nan_grad,
         spike (a loss times ``factor``), damage (all bytes of the file ``path``), write (``text`` to ``path``);
         count, which is none: counted_steps.py
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def inject(faults: list[dict[str, Any]]) -> None:
    """Arm these faults in this process."""
    if not faults:
        return
    from clsgen_dist.checkpoint import marker, saver
    from clsgen_dist.training import prepare, step, trainer

    now = {"step": -1}

    def due(where: str) -> list[dict[str, Any]]:
        steps = [f for f in faults if f.get("where", "step") == where]
        return [f for f in steps if now["step"] in f.get("steps", [f.get("step", now["step"])])]

    def reach(where: str) -> None:
        for fault in due(where):
            _trigger(fault)

    def before(function: Callable[..., Any], where: str, then: str | None = None) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            reach(where)
            result = function(*args, **options)
            if then:
                reach(then)
            return result

        return wrapped

    _arm_kept_states(faults)
    take_step = step.TrainStep.__call__

    def stepping(self: Any, number: int, *rest: Any, **options: Any) -> Any:
        now["step"] = number + 1  # as logs count
        reach("step")
        return take_step(self, number, *rest, **options)

    step.TrainStep.__call__ = stepping  # type: ignore[method-assign]
    saver._ShardWriter.save = before(saver._ShardWriter.save, "save:copy")  # type: ignore[method-assign]
    saver._write = before(saver._write, "save:write", "save:written")
    marker.atomic_write = before(marker.atomic_write, "save:marker", "save:committed")
    prepare.plan_stream = before(prepare.plan_stream, "start")
    loss = step.backward_loss

    def backward_loss(*args: Any) -> Any:
        value = loss(*args)
        for fault in due("step"):
            if fault["what"] == "nan_grad":
                value.register_hook(lambda grad: grad * float("nan"))
        return value

    step.backward_loss = backward_loss

    def forward_of(engine: Any) -> None:
        forward = engine.forward

        def faulty(*args: Any, **options: Any) -> Any:
            output = forward(*args, **options)
            for fault in due("step"):
                factor = {"nan_loss": float("nan"), "spike": fault.get("factor", 1e4)}.get(fault["what"])
                if factor is not None and engine.training:
                    output = output._replace(term_sums=tuple(total * factor for total in output.term_sums))
            return output

        engine.forward = faulty

    init = trainer.Trainer.__init__

    def started(self: Any, settings: Any, world: Any, run: Any, *rest: Any) -> None:
        forward_of(run.engine)
        init(self, settings, world, run, *rest)

    trainer.Trainer.__init__ = started  # type: ignore[method-assign]


def _arm_kept_states(faults: list[dict[str, Any]]) -> None:
    """Faults while the states of sequences are kept, and counts of what the steps call."""
    from clsgen_dist.data.tables.state_cache import StateCache
    from tests.dist.counted_steps import count_steps

    for fault in faults:
        if fault["what"] == "count":
            count_steps(fault["path"])
    keep, count = StateCache.write, itertools.count(1)

    def keeping(self: Any, *rest: Any) -> None:
        number = next(count)
        for fault in faults:
            if fault.get("where") == "frozen" and number > fault["after"]:
                _trigger(fault)
        keep(self, *rest)

    StateCache.write = keeping  # type: ignore[method-assign]


def _trigger(fault: dict[str, Any]) -> None:
    what = fault["what"]
    number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "usr2": signal.SIGUSR2, "term": signal.SIGTERM}.get(what)
    if number is not None:
        for _ in range(fault.get("times", 1)):
            os.kill(os.getpid(), number)
    elif what == "sleep":
        time.sleep(fault["seconds"])
    elif what == "write":
        Path(fault["path"]).write_text(fault["text"])
    elif what == "damage":
        with Path(fault["path"]).open("r+b") as file:
            file.write(b"\xff" * Path(fault["path"]).stat().st_size)
    elif what == "raise":
        raise RuntimeError("a fault that a test asked for")
    elif what == "stale":
        raise OSError(errno.ESTALE, "Stale file handle")
    elif what == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
