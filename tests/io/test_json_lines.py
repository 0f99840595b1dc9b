"""Files of JSON lines survive a kill in the middle of a line, and texts that no line may hold."""

from __future__ import annotations

import json

import pytest

from clsgen_dist.io.json_lines import append_json_line, read_json_lines


def test_what_is_added_is_read_whatever_it_holds(tmp_path):
    notes = [{"why": why} for why in ("plain", "two\nlines", "U+2028 \u2028, U+0085 \x85", "Größe 患", "lone \ud800")]
    for note in notes:
        append_json_line(tmp_path / "notes.jsonl", note)
    assert list(read_json_lines(tmp_path / "notes.jsonl")) == notes
    assert "Größe 患" in (tmp_path / "notes.jsonl").read_text(encoding="utf-8")
    assert list(read_json_lines(tmp_path / "none.jsonl")) == []


@pytest.mark.parametrize("cut", range(1, 16))
def test_a_torn_line_costs_itself_alone(tmp_path, cut):
    file = tmp_path / "notes.jsonl"
    append_json_line(file, {"n": 1})
    whole = json.dumps({"why": "患者"}, ensure_ascii=False).encode()
    file.write_bytes(file.read_bytes() + whole[:-cut])
    append_json_line(file, {"n": 2})
    assert list(read_json_lines(file)) == [{"n": 1}, {"n": 2}]
