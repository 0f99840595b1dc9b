"""Asked to stop: all ranks agree at a step boundary, write one checkpoint, end with 75, and go on as if undisturbed."""

from __future__ import annotations

import json

import pytest

from clsgen_dist.engine import checkpoint

pytestmark = pytest.mark.dist

RUN = {
    "data__labels": "[first, second]",
    "data__positive_label": "second",
    "train__epochs": 3,
    "train__batch_size": 8,
    "train__micro_batch_tokens": 512,
    "train__max_steps": 8,
    "train__log_rows": "true",
    "checkpoint__every": 3,
    "checkpoint__keep_last": 9,
    "resume": "auto",
}


@pytest.fixture(scope="module")
def run(recipe, ranks, mixed, tmp_path_factory):
    """``run(output, faults, **overrides)`` on 41 rows of every kind."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    names = {"no": "first", "yes": "second"}
    rows = [row | ({"label": names[row["label"]]} if "label" in row else {}) for row in mixed]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def go(output, faults=(), world=2, request=None, **overrides):
        options = {
            **RUN,
            "data__train": path,
            "data__labels": "['no', 'yes']",
            "data__positive_label": "yes",
            **overrides,
        }
        return ranks(recipe(output, **options), ranks=world, faults=list(faults), **(request or {}))

    return go


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory):
    """The run that nobody disturbs."""
    output = tmp_path_factory.mktemp("faults") / "undisturbed"
    assert run(output).status == [0, 0]
    return output


def digests(output):
    """Checksums of all files of the last checkpoint that hold numbers."""
    last = checkpoint.committed(output / "checkpoints")[-1]
    marker = checkpoint.verify(last)
    return marker["state"]["step"], {n: f["sha256"] for n, f in marker["files"].items() if n.endswith("states.pt")}


def test_undisturbed(undisturbed):
    print(digests(undisturbed))
