"""Every start of a run, in ``attempts.jsonl``: a chain of restarts without progress is ended, with the reason.

    {"start": "2026-03-01T12:00:00+00:00", "step": 120, "ranks": 64, "job": "4711", "restarts": 3}
    {"end": "RuntimeError", "step": 133, "status": 1, "why": "..."}

A start is recorded before anything is loaded. It has no end if the process was killed, or stopped before the first
step; if Slurm itself took the job away (a lost node, preemption, ``scontrol requeue``), as its logs show, it does not
count. Its step is that of the newest checkpoint, which may be damaged: it shows whether there is a newer one than at
the start before.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from clsgen_dist.errors import NoProgressError, RunLockError
from clsgen_dist.io.json_lines import append_json_line, read_json_lines

FILE = "attempts.jsonl"


class StartLog:
    """A start of a run and how it ended, noted where ``is_main``.

    Args:
        output: the run's folder.
        step: where it begins.
        ranks: how many take part.
        limit: this many starts in a row may begin at one step; None: any number.
        forget: forget the starts so far.

    Raises:
        NoProgressError: the last ``limit`` starts all began at this step.
    """

    def __init__(
        self, output: Path, *, is_main: bool, step: int, ranks: int, limit: int | None, forget: bool = False
    ) -> None:
        self._file, self._is_main, self._step, self._ranks = output / FILE, is_main, step, ranks
        self._limit, self._forget = limit, forget
        self.reached = step
        """Optimizer steps done, which the trainer keeps up to date."""

    def __enter__(self) -> StartLog:
        if not self._is_main:
            return self
        if self._forget:
            self._file.unlink(missing_ok=True)
        if self._limit is not None and (fault := _stuck(self._file, self._step, self._limit)):
            raise NoProgressError(fault)
        note = {"start": datetime.now(UTC).isoformat(timespec="seconds"), "step": self._step, "ranks": self._ranks}
        if "SLURM_JOB_ID" in os.environ:
            restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
            note |= {"job": os.environ["SLURM_JOB_ID"], "restarts": restarts}
        append_json_line(self._file, note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_main or isinstance(error, RunLockError):  # the file is another's by now
            return
        note: dict[str, Any] = {"end": "done" if error is None else type(error).__name__, "step": self.reached}
        if error is not None:
            note |= {"status": getattr(error, "exit_code", 1), "why": str(error)[:500]}
        append_json_line(self._file, note)


def _stuck(file: Path, step: int, limit: int) -> str | None:
    stuck = 0
    ended = False
    why: list[str] = []
    for line in reversed(list(read_json_lines(file))):
        if "start" in line:
            if line["step"] != step:
                break
            stuck += ended or not _taken_by_slurm(file.parent, line)
            ended = False
        elif line["end"] in ("done", "KeyboardInterrupt") or line.get("status") == 2:  # a person started what followed
            break
        else:
            ended = True
            why.append(f"after step {line['step']}: {line['why']}")
    if stuck < limit:
        return None
    why_text = (
        f" The last ends: {'; '.join(why[:3])}." if why else " They were killed, or stopped before the first step."
    )
    return (
        f"no progress over {stuck} starts: all began at step {step}, none reached its next checkpoint "
        f"(faults.max_stuck_starts is {limit}).{why_text} Fix that, then delete {file} and start again"
    )


def _taken_by_slurm(output: Path, start: dict[str, Any]) -> bool:
    """Whether a start without an end was one of a job that did not see its tasks fail (``crash``, by slurm/lib.sh)."""
    logs = output / f"logs/{start.get('job')}.{start.get('restarts')}"
    return (logs / "started").exists() and not (logs / "crash").exists()
