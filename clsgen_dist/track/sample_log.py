"""The rows of each optimizer step, one JSON line per step, for audits and to compare two runs.

    {"step": 17, "stage": "easy", "rows": ["a1", "b7", ...]}

A resumed run drops the lines that the killed one wrote after its checkpoint, so every step appears once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from clsgen_dist.io.files import atomic_write
from clsgen_dist.io.json_lines import json_object


class SampleLog:
    """Writes ``rows.jsonl`` in a run's folder, or nothing if ``path`` is None."""

    def __init__(self, path: Path | None, *, first_step: int) -> None:
        """``first_step`` is the first step (from 1) that this process will write."""
        self._file = None
        if path is None:
            return
        drop_steps_from(path, first_step)
        self._file = path.open("a", buffering=1)

    def step(self, step: int, stage: str, ids: Sequence[str]) -> None:
        """Log the rows of a step, in order."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, "stage": stage, "rows": list(ids)}) + "\n")

    def __enter__(self) -> SampleLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def drop_steps_from(path: Path, first_step: int) -> None:
    """Delete the JSON lines of ``first_step`` and later steps, which will be repeated."""
    if path.exists():
        lines = path.read_bytes().split(b"\n")
        kept = [line + b"\n" for line in lines if _step_of(line) < first_step]
        atomic_write(path, b"".join(kept).decode("utf-8"))


def _step_of(line: bytes) -> float:
    """The step of a line; infinity for one that is torn, or has no step."""
    step = (json_object(line) or {}).get("step")
    return step if isinstance(step, (int, float)) else float("inf")
