"""Which rows each optimizer step was made of: a line of JSON a step, for audits and for comparing two runs.

    {"step": 17, "stage": "easy", "rows": ["a1", "b7", ...]}

A resumed run drops what the killed one had written past its checkpoint, so every step is there once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType


class SampleLog:
    """Writes ``rows.jsonl`` in a run's folder, or nothing where ``path`` is None."""

    def __init__(self, path: Path | None, *, first_step: int) -> None:
        """``first_step`` is the first step (from 1) that this process will write."""
        self._file = None
        if path is None:
            return
        drop_steps_from(path, first_step)
        self._file = path.open("a", buffering=1)

    def step(self, step: int, stage: str, ids: Sequence[str]) -> None:
        """Note the rows of a step, in their order."""
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
    """Leave out of a file of JSON lines those of ``first_step`` and later ones, which will come again."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines(True) if _step_of(line) < first_step]
        aside = path.with_name(path.name + ".tmp")
        aside.write_text("".join(kept))
        os.replace(aside, path)


def _step_of(line: str) -> float:
    """The step of a line; a line that a kill cut short counts as past everything."""
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")
