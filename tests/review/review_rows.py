"""Rows and stores that the tests of the review share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.label_cells import Space
from clsgen_dist.review.import_rows import import_rows, remember
from clsgen_dist.review.store import Store


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plain_rows(count: int) -> list[dict]:
    return [
        {"id": f"r{i}", "text": f"The mass {i} has irregular margins.", "label": ("benign", "malignant")[i % 2],
         "explanation": f"Margins {i} are irregular."}
        for i in range(1, count + 1)
    ]  # fmt: skip


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def review_store(
    folder: Path,
    rows: list[dict],
    *,
    second_reading: float = 0.0,
    clock: Clock | None = None,
    labels: Sequence[str] = ("benign", "malignant", "unclear"),
    space: Space = "auto",
) -> Store:
    folder.mkdir(exist_ok=True)
    store = Store(folder / "review.sqlite", **({"clock": clock} if clock else {}))
    source = written(folder / "rows.jsonl", rows)
    remember(store, Columns(), list(labels))
    import_rows(store, str(source), Columns(), second_reading, space)
    return store
