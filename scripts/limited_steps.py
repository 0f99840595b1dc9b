"""Runs a check in processes of its own, within a time limit: it passes, fails, times out or is skipped."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PREEMPTED_CODE = 75
"""Of a training run that a signal ended after a checkpoint."""
GRACE_S = 30
"""Between asking processes to end and killing them; and how long ranks may outlive one that failed."""

Figures = dict[str, float]


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "FAILED"
    TIMED_OUT = "TIMED OUT"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Aim:
    """A figure that should be at most (or at least) a bound: a number, or a multiple of another figure."""

    figure: str
    relation: str
    bound: float | str
    factor: float = 1.0

    def words(self, figures: Figures) -> tuple[str, bool | None]:
        """What was aimed at and found, and whether it was met; None if a figure is missing."""
        bound = figures.get(self.bound) if isinstance(self.bound, str) else self.bound
        found = figures.get(self.figure)
        times = "" if self.factor == 1 else f"{self.factor:g} × "
        aimed = f"{self.figure} {self.relation} {times}{self.bound}"
        if found is None or bound is None:
            return f"{aimed}: not measured", None
        limit = bound * self.factor
        met = found <= limit if self.relation == "≤" else found >= limit
        return f"{aimed}: {found:.4g}, bound {limit:.4g}", met


@dataclass(frozen=True)
class Step:
    """A check: its command, and what it needs."""

    name: str
    command: tuple[str, ...]
    """After the interpreter; ``{folder}`` is the folder of results."""
    limit_s: float
    ranks: int = 1
    """Processes, one a GPU; with more than one, or ``is_rank``, each gets its rank in its environment."""
    is_rank: bool = False
    needs: tuple[str, ...] = ()
    """Modules without which it is skipped."""
    environment: tuple[tuple[str, str], ...] = ()
    signal_after_s: float | None = None
    """When SIGTERM asks the processes to save and end, by exit code 75."""
    says: str = ""
    """What its log must contain."""
    figures: Callable[[Path, str], Figures] = lambda folder, log: {}
    """Read from the folder of results and the log; what it raises fails the step."""
    aims: tuple[Aim, ...] = ()


@dataclass
class Result:
    """What became of a step."""

    name: str
    outcome: Outcome
    seconds: float = 0.0
    reason: str = ""
    figures: Figures = field(default_factory=dict)
    command: str = ""


def run(step: Step, gpus: int, folder: Path) -> Result:
    """Run a step to its end or its limit; never raises."""
    command = [sys.executable, *(word.format(folder=folder) for word in step.command)]
    result = Result(step.name, Outcome.SKIPPED, command=" ".join(command))
    if step.ranks > gpus:
        result.reason = f"needs {step.ranks} GPUs, {gpus} found"
        return result
    if missing := [module for module in step.needs if importlib.util.find_spec(module) is None]:
        result.reason = f"not installed: {', '.join(missing)}"
        return result
    log = folder / f"{step.name.replace(' ', '_')}.log"
    start = time.monotonic()
    try:
        codes, ended = _processes(step, command, log)
        text = log.read_text(errors="replace")
        result.seconds = time.monotonic() - start
        result.outcome, result.reason = _verdict(step, codes, ended, text)
        if result.outcome is Outcome.PASSED:
            result.figures = {f"{step.name}: {name}": value for name, value in step.figures(folder, text).items()}
    except Exception as error:  # one step must not stop the others
        result.seconds = time.monotonic() - start
        result.outcome, result.reason = Outcome.FAILED, f"{type(error).__name__}: {error}"
    return result


def _without_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, without what says which rank of a launch this process is."""
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in environment.items() if name not in ranks}


def _processes(step: Step, command: list[str], log: Path) -> tuple[list[int], bool]:
    """Exit codes of the step's processes, and whether they ended by themselves within the limit."""
    with socket.socket() as probe_:
        probe_.bind(("127.0.0.1", 0))
        port = str(probe_.getsockname()[1])
    started: list[subprocess.Popen[bytes]] = []
    deadline = time.monotonic() + step.limit_s
    asked_at = None if step.signal_after_s is None else time.monotonic() + step.signal_after_s
    failed_at: float | None = None
    try:
        with log.open("wb") as file:
            for rank in range(step.ranks):
                ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(step.ranks),
                         "LOCAL_SIZE": str(step.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
                given = ranks if step.ranks > 1 or step.is_rank else {}
                environment_ = {
                    **_without_ranks(os.environ),
                    "PYTHONUNBUFFERED": "1",
                    **given,
                    **dict(step.environment),
                }
                started.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env=environment_,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        while any(process.poll() is None for process in started):
            now = time.monotonic()
            if asked_at is not None and now >= asked_at:
                asked_at = None
                for process in started:
                    process.send_signal(signal.SIGTERM)
            if failed_at is None and any(process.poll() not in (None, 0, PREEMPTED_CODE) for process in started):
                failed_at = now
            if now >= deadline or (failed_at is not None and now >= failed_at + GRACE_S):
                return [process.poll() or 0 for process in started], failed_at is not None
            time.sleep(0.05)
        return [process.returncode for process in started], True
    finally:
        _end(started)


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what still runs, each process with the session that it leads: what it started too."""
    for number, grace_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 10)):
        for process in started:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
        until = time.monotonic() + grace_s
        while any(process.poll() is None for process in started) and time.monotonic() < until:
            time.sleep(0.05)


def _verdict(step: Step, codes: list[int], ended: bool, log: str) -> tuple[Outcome, str]:
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "no output")[:300]
    if not ended:
        return Outcome.TIMED_OUT, f"still running after {step.limit_s:.0f} s; last line: {last}"
    expected = 0 if step.signal_after_s is None else PREEMPTED_CODE
    if set(codes) != {expected}:
        return Outcome.FAILED, f"exit codes {codes}, expected {expected}; last line: {last}"
    if step.says and step.says not in log:
        return Outcome.FAILED, f"its log has no {step.says!r}; last line: {last}"
    return Outcome.PASSED, ""
