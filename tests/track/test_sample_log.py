"""The log of visited rows: each step once, whatever the ids."""

from __future__ import annotations

import json

import pytest

from clsgen_dist.track.sample_log import SampleLog, drop_steps_from


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


@pytest.mark.parametrize("odd", [b"7", b'{"stage": "a"}', b'{"step": 1, "rows": ["\xe6', b'{"step": null}', b""])
def test_lines_without_a_step_are_dropped_and_no_others(tmp_path, odd):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n' + odd + b'\n{"step": 2}\n{"step": 3}\n')
    drop_steps_from(path, 3)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
