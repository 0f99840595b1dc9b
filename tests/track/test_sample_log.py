"""The log of visited rows: each step once, whatever the ids."""

from __future__ import annotations

import json

from clsgen_dist.track.sample_log import SampleLog


def test_a_resumed_run_drops_entries_after_its_checkpoint_and_keeps_odd_ids(tmp_path):
    path = tmp_path / "rows.jsonl"
    with SampleLog(path, first_step=1) as log:
        for step, row in enumerate(["x", "a\u2028b", "nel\x85", "late"], start=1):
            log.step(step, "all", [row])
    path.write_text(path.read_text() + '{"step": 5, "rows": ["cut sh')
    with SampleLog(path, first_step=4) as log:
        log.step(4, "all", ["again"])
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(entry["step"], entry["rows"]) for entry in found] == [
        (1, ["x"]), (2, ["a\u2028b"]), (3, ["nel\x85"]), (4, ["again"]),
    ]  # fmt: skip
