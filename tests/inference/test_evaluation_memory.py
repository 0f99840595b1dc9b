"""Memory of an evaluation grows with the rows by a few kB each, and with nothing squared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from clsgen_dist.data.example import Columns, Example
from clsgen_dist.inference.measures import measure_decisions
from clsgen_dist.model.label_space import LabelSpace

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    "lesion",
    "margin",
    "smooth",
    "spiculated",
    "size",
    "left",
    "right",
    "lobe",
    "seen",
    "absent",
    "nodule",
    "skin",
]


def peak_growth(script: str, *arguments: object) -> int:
    """Bytes by which the peak memory of a fresh process grows from ``first()`` to ``second()`` of the script."""
    # Not ru_maxrss, which starts at the memory of the process that starts this one.
    measured = """
def peak():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
first()
before = peak()
second()
print("grew by", peak() - before)
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script + measured, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])


def test_decisions_of_2000_rows_are_measured_in_1_kb_a_row():
    rng, columns = np.random.default_rng(0), Columns(groups=("site",), cluster="patient")
    p_NC, labels_N = rng.dirichlet([1, 1], 2000), rng.integers(0, 2, 2000)
    examples = [Example(id=str(n), text="x", groups=("AB"[n % 2],), cluster=str(n // 2)) for n in range(2000)]

    def measure(rows: int) -> None:
        p, space = p_NC[:rows], LabelSpace.of(["no", "yes"])
        measure_decisions(p, p, labels_N[:rows], space, None, examples[:rows], columns)

    measure(100)  # what it imports
    tracemalloc.start()
    measure(2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1000 * 2000


@pytest.mark.long
def test_evaluating_100000_rows_takes_3_kb_a_row(folder, tmp_path):
    rng = np.random.default_rng(0)

    def write(name: str, rows: int) -> Path:
        path = tmp_path / f"{name}.jsonl"
        with path.open("w") as file:
            for number in range(rows):
                words = [WORDS[place] for place in rng.integers(len(WORDS), size=rng.integers(6, 14))]
                label = "yes" if ("nodule" in words) ^ (rng.random() < 0.2) else "no"
                file.write(
                    json.dumps({"id": number, "text": f"case {number}: {' '.join(words)}", "label": label}) + "\n"
                )
        return path

    few, many = write("few", 1000), write("many", 100_000)
    script = """
import sys
from clsgen_dist.inference.evaluate import evaluate
model, few, many, output = sys.argv[1:]
def first():
    evaluate(model, few, output=output + "/few", batch_size=128, explain=False)
def second():
    found = evaluate(model, many, output=output + "/many", batch_size=128, explain=False)
    assert len(found.predictions) == found.decisions.confusion_CC.sum() == 100_000
"""
    assert peak_growth(script, folder, few, many, tmp_path) < 3000 * 100_000
    kept = (tmp_path / "many/predictions").glob("*/part-*.jsonl")
    rows = [int(row) for part in kept for line in part.open() for row in json.loads(line)["rows"]]
    assert sorted(rows) == list(range(100_000))


@pytest.mark.long
def test_measuring_100000_explanations_takes_5_kb_a_row():
    script = f"""
import numpy as np
from clsgen_dist.data.example import Columns, Example
from clsgen_dist.inference.measures import measure_explanations
from clsgen_dist.model.label_space import LabelSpace
words = {WORDS} + [f"word{{n}}" for n in range(3000)]
def measured(rows):
    rng = np.random.default_rng(0)
    p_NC = rng.dirichlet([1, 1], rows)
    examples, explanations = [], []
    for number in range(rows):
        own = [words[place] for place in rng.integers(len(words), size=40)]
        examples.append(Example(id=str(number), text=" ".join(own), explanations=(" ".join(own[:12]),)))
        stated = "no" if number % 3 else "yes"
        explanations.append(f"{{stated}}: {{own[3]}} and {{own[9]}}, because {{own[20]}} is seen.")
    space = LabelSpace.of(["no", "yes"])
    found = measure_explanations(examples, explanations, p_NC, p_NC.argmax(axis=1), space, Columns())
    assert found.grounding.statements.defined == rows
    assert found.reconstruction.reciprocal_rank.defined == min(rows, 10_000)
def first():
    measured(1000)
def second():
    measured(100_000)
"""
    assert peak_growth(script) < 5000 * 100_000
