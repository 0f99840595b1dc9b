"""Real runs on rows with planted faults, and on streamed shards."""

from __future__ import annotations

import json
import shutil

import pytest

pytestmark = [pytest.mark.dist, pytest.mark.slow]


def _visited(output):
    return [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]


def test_seven_rows_with_planted_faults_train_on_three_ranks(train, tmp_path):
    rows = [{"id": f"r{i}", "text": f"text {i}", "label": "a"} for i in range(6)]
    rows.append({"id": "huge", "text": "word " * 40_000, "label": "a"})
    path = tmp_path / "rows.jsonl"
    path.write_text("{broken\n" + "".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "run"
    options = {
        "data__train": path,
        "data__labels": "[a, b]",
        "data__positive_label": "b",
        "data__max_bad_fraction": 0.2,
        "train__batch_size": 2,
        "train__log_rows": "true",
    }
    done = train(output, ranks=3, **options)
    assert "7 rows, 7 without explanation, 1 rejected (1 not JSON); 1 shortened" in done.stdout
    steps = _visited(output)
    assert [len(step["rows"]) for step in steps] == [2, 2, 2, 1]
    assert sorted(r for step in steps for r in step["rows"]) == sorted(row["id"] for row in rows)
    refused = train(tmp_path / "other", ranks=1, check=False, **{**options, "data__max_bad_fraction": 0.01})
    assert refused.returncode != 0 and "1 of 8 rows are bad (12.5%)" in refused.stderr


def test_streamed_shards_resume_with_the_same_rows_on_another_number_of_ranks(train, tmp_path):
    from datasets import Dataset

    for s in range(5):
        rows = [{"id": f"{s}-{r}", "text": f"shard {s} row {r}", "label": "ab"[r % 2], "explanation": "so"} for r in range(9)]
        Dataset.from_list(rows).to_parquet(tmp_path / f"shard-{s}.parquet")
    options = {
        "data__train": tmp_path / "shard-*.parquet",
        "data__labels": "[a, b]",
        "data__positive_label": "b",
        "data__stream_window": 2,
        "train__epochs": 2,
        "train__log_rows": "true",
        "checkpoint__every": 4,
        "checkpoint__keep_last": 5,
    }
    truth = tmp_path / "truth"
    train(truth, ranks=2, **options)
    steps = _visited(truth)
    epochs = [r for step in steps for r in step["rows"]]
    assert sorted(epochs[:45]) == sorted(epochs[45:]) == sorted(f"{s}-{r}" for s in range(5) for r in range(9))
    resumed = tmp_path / "resumed"
    shutil.copytree(truth, resumed)
    for folder in (resumed / "checkpoints").glob("step-*"):
        if folder.name > "step-00000004":
            shutil.rmtree(folder)
    done = train(resumed, ranks=1, resume="auto", **options)
    assert "resumed from" in done.stdout and "at step 4 of 9" in done.stdout
    assert _visited(resumed) == steps

