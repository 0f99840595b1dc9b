"""A small model that is right by construction: its rows are labelled by its own logits, with noise near 0."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clsgen_dist.inference.calibrate import calibrate
from clsgen_dist.inference.predict import Predictor
from tests.inference.conftest import hand_made_export


def texts(name: str, count: int) -> list[str]:
    rng = np.random.default_rng(sum(map(ord, name)))
    where = ("left", "right", "both sides", "none")
    return [f"{name} {n}: {rng.integers(1, 90)} mm, {where[rng.integers(4)]}" for n in range(count)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A calibrated model; ``rows(name, count)`` are texts with the label that the model's logits make likely."""
    folder = tmp_path_factory.mktemp("lab")
    model = hand_made_export(folder / "model", ["benign", "malignant"])
    predictor = Predictor(model)

    def margins(of: list[str]) -> np.ndarray:
        return np.array([p.logits[1] - p.logits[0] for p in predictor.predict(of, explain=False)])

    centre, spread = np.median(known := margins(texts("known", 60))), np.std(known)

    def rows(name: str, count: int, sharpness: float = 8.0) -> list[dict[str, Any]]:
        of = texts(name, count)
        p = 1 / (1 + np.exp(-sharpness * (margins(of) - centre) / spread))
        drawn = np.random.default_rng(0).random(count) < p
        labels = np.where(drawn, "malignant", "benign").tolist()
        return [{"id": f"{name}{n}", "text": t, "label": c} for n, (t, c) in enumerate(zip(of, labels, strict=True))]

    source = write(folder / "calibration.jsonl", rows("calibration", 150))
    calibrate(model, source)
    return SimpleNamespace(model=model, rows=rows, folder=folder, calibration=source)


@pytest.fixture
def pool(tmp_path: Path) -> str:
    """70 rows: 64 to label, two labelled, one only explained, one bad, and hostile columns."""
    rows: list[dict[str, Any]] = [{"text": text, "site": {"x": [1.5]}} for text in texts("pool", 64)]
    rows += [{"text": f"has {n}", "label": "benign"} for n in range(2)]
    rows += [{"text": "told", "explanation": "It is benign."}, {"text": None}]
    rows[3] |= {"id": "own", "label": None, "provenance": "old", "explanations": []}
    return write(tmp_path / "pool.jsonl", rows)


@pytest.fixture
def read() -> Callable[[Path], list[dict[str, Any]]]:
    return lambda path: [json.loads(line) for line in path.read_text().splitlines()]
