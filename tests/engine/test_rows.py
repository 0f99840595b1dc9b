"""From the settings to rows, on sets with every planted fault: told clearly, never lost, never hanging."""

from __future__ import annotations

import json

import pytest

from clsgen_dist.config import DataSettings
from clsgen_dist.engine.rows import read_rows
from clsgen_dist.errors import DataError

GOOD = [{"id": f"g{i}", "text": f"text {i}", "label": "ab"[i % 2], "explanation": "so"} for i in range(7)]


def _data(path, **changes):
    return DataSettings(**{"train": str(path), "max_prompt_length": 96, "max_explanation_length": 64, **changes})


def _write(path, lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


def test_bad_rows_are_quarantined_with_file_line_and_reason(tmp_path, encoder):
    faults = [b"{broken", b'{"text": "\xff", "label": "a"}', {"text": "", "label": "a"}, {"text": "x"}, GOOD[3]]
    faults.append({"text": "long", "label": "a", "explanation": "so " * 100})
    path = _write(tmp_path / "rows.jsonl", [*GOOD, *faults])
    out = tmp_path / "out"
    rows = read_rows(_data(path, max_bad_fraction=0.6), encoder, out)
    assert (len(rows.train), rows.labels) == (7, ["a", "b"])
    kept = [json.loads(line) for line in (out / "quarantine-train.jsonl").read_text().splitlines()]
    assert sorted(row["line"] for row in kept) == list(range(8, 14))
    assert {row["reason"].split(":")[0] for row in kept} == {
        "not JSON", "not valid UTF-8", "empty text", "neither label nor explanation", "duplicate id",
        "explanation of 101 tokens is longer than data.max_explanation_length 64",
    }  # fmt: skip
    assert "6 rejected" in rows.notes[0]
    with pytest.raises(
        DataError, match=r"6 of 13 rows are bad \(46.2%\).*quarantine-train.jsonl.*raise data.max_bad_fraction"
    ):
        read_rows(_data(path), encoder, out)
    _write(tmp_path / "rows.jsonl", GOOD)
    read_rows(_data(path), encoder, out)
    assert not (out / "quarantine-train.jsonl").exists()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "holds no rows"),
        ([b"{", b"}"], "2 of 2 rows are bad"),
        ([{**row, "label": "a"} for row in GOOD], r"found the classes \['a'\], expected two or more"),
        ([{"text": "x", "explanation": "y"}], r"found the classes \[\], expected two or more"),
    ],
    ids=["empty", "all bad", "one class", "no class"],
)
def test_sets_that_cannot_be_trained_on_are_refused(lines, expected, tmp_path, encoder):
    with pytest.raises(DataError, match=expected):
        read_rows(_data(_write(tmp_path / "rows.jsonl", lines)), encoder, None)


def test_one_class_and_none_explained_are_fine_once_the_classes_are_named(tmp_path, encoder):
    rows = [{"text": f"text {i}", "label": "a"} for i in range(7)]
    read = read_rows(_data(_write(tmp_path / "rows.jsonl", rows), labels=["a", "b"]), encoder, None)
    assert (len(read.train), read.train.table.card.unexplained) == (7, 7)


def test_a_row_of_200_000_characters_loses_its_middle_and_is_counted(tmp_path, encoder):
    rows = [*GOOD, {"text": "START " + "word " * 40_000 + "END", "label": "a"}]
    read = read_rows(_data(_write(tmp_path / "rows.jsonl", rows)), encoder, None)
    assert read.train.longest() == 96 and "1 shortened" in read.notes[0]
    assert len(read.train.sample(7).prompt) == 96
