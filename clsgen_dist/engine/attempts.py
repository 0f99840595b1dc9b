"""Every start of a run, in ``attempts.jsonl``: a chain of restarts that gets nowhere stops, and says why.

    {"start": "2026-03-01T12:00:00+00:00", "step": 120, "ranks": 64, "job": "4711", "restarts": 3}
    {"end": "RuntimeError", "step": 133, "why": "..."}

A start is without an end where the process was killed.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clsgen_dist.engine.dist import World
from clsgen_dist.errors import NoProgressError

FILE = "attempts.jsonl"


def refuse_stuck(world: World, output: Path, step: int, limit: int) -> None:
    """NoProgressError, on all ranks, if the last ``limit`` starts all began at this step as this one would."""
    if fault := world.broadcast(_stuck(output / FILE, step, limit) if world.is_main else None):
        raise NoProgressError(fault)


def _stuck(file: Path, step: int, limit: int) -> str | None:
    stuck = 0
    why: list[str] = []
    for line in reversed(_read(file)):
        if "start" in line:
            if line["step"] != step:
                break
            stuck += 1
        elif line["end"] in ("done", "KeyboardInterrupt"):
            break
        else:
            why.append(f"after step {line['step']}: {line['why']}")
    if stuck < limit:
        return None
    told = f" The last ends: {'; '.join(why[:3])}." if why else " They were killed without a word."
    return (
        f"{stuck} starts in a row began at step {step} and none came to its next checkpoint (faults.max_stuck_starts "
        f"is {limit}).{told} Mend that, then delete {file} and start again"
    )


def note_start(world: World, output: Path, step: int) -> None:
    """A start, from a step; rank 0 writes."""
    if not world.is_main:
        return
    note: dict[str, Any] = {"start": datetime.now(UTC).isoformat(timespec="seconds"), "step": step, "ranks": world.size}
    if "SLURM_JOB_ID" in os.environ:
        note |= {"job": os.environ["SLURM_JOB_ID"], "restarts": int(os.environ.get("SLURM_RESTART_COUNT", "0"))}
    _append(output / FILE, note)


def note_end(world: World, output: Path, step: int, error: BaseException | None) -> None:
    """How it ended, after a step; rank 0 writes."""
    if not world.is_main:
        return
    note: dict[str, Any] = {"end": "done" if error is None else type(error).__name__, "step": step}
    if error is not None:
        note["why"] = str(error)[:500]
    _append(output / FILE, note)


def _append(path: Path, note: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(note, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> list[dict[str, Any]]:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:  # cut short by a kill
            continue
    return lines
