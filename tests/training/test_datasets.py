"""From the settings to rows, on files with planted faults: each is reported, none is lost, none hangs."""

from __future__ import annotations

import json

import pytest

from clsgen_dist.config import DataSettings, ModelSettings, PromptSettings, Settings
from clsgen_dist.data.example import Columns
from clsgen_dist.errors import DataError
from clsgen_dist.training.datasets import open_datasets, require_rows_for_terms

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
    rows = open_datasets(_data(path, max_bad_fraction=0.6), encoder, out)
    assert (len(rows.train), rows.labels) == (7, ["a", "b"])
    kept = [json.loads(line) for line in (out / "quarantine-train.jsonl").read_text().splitlines()]
    assert sorted(row["line"] for row in kept) == list(range(8, 14))
    assert {row["code"] for row in kept} == {
        "not-json", "not-utf8", "empty-text", "no-target", "duplicate-id", "long-explanation"
    }  # fmt: skip
    assert "6 rejected" in rows.notes[0]
    with pytest.raises(
        DataError, match=r"6 of 13 rows are bad \(46.2%\).*quarantine-train.jsonl.*raise data.max_bad_fraction"
    ):
        open_datasets(_data(path), encoder, out)
    _write(tmp_path / "rows.jsonl", GOOD)
    open_datasets(_data(path), encoder, out)
    assert not (out / "quarantine-train.jsonl").exists()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "has no rows"),
        ([b"{", b"}"], "2 of 2 rows are bad"),
        ([{**row, "label": "a"} for row in GOOD], r"found the classes \['a'\], expected two or more"),
        ([{"text": "x", "explanation": "y"}], r"found the classes \[\], expected two or more"),
    ],
    ids=["empty", "all bad", "one class", "no class"],
)
def test_sets_that_cannot_be_trained_on_are_refused(lines, expected, tmp_path, encoder):
    with pytest.raises(DataError, match=expected):
        open_datasets(_data(_write(tmp_path / "rows.jsonl", lines)), encoder, None)


def test_one_class_without_explanations_is_accepted_if_labels_are_listed(tmp_path, encoder):
    rows = [{"text": f"text {i}", "label": "a"} for i in range(7)]
    read = open_datasets(_data(_write(tmp_path / "rows.jsonl", rows), labels=["a", "b"]), encoder, None)
    assert (len(read.train), read.train.table.card.unexplained) == (7, 7)


def test_a_row_of_200_000_characters_is_truncated_and_counted(tmp_path, encoder):
    rows = [*GOOD, {"text": "START " + "word " * 40_000 + "END", "label": "a"}]
    read = open_datasets(_data(_write(tmp_path / "rows.jsonl", rows)), encoder, None)
    assert read.train.longest() == 96 and "1 shortened" in read.notes[0]
    assert len(read.train.sample(7).prompt) == 96


def test_notes_list_the_classes_and_the_cells_not_read_literally(tmp_path, encoder):
    lines = [*GOOD, {"text": "x", "label": "a\u200b"}, {"text": "y", "label": "None", "explanation": "['so', 'thus']"}]
    read = open_datasets(_data(_write(tmp_path / "rows.jsonl", lines)), encoder, None)
    assert read.notes[1] == "2 classes: 'a' (5), 'b' (3)"
    for part in (
        "1 without label",
        "1 labels like 'None' read as missing",
        "1 labels read without their invisible characters",
        "1 explanation lists read from their text",
    ):
        assert part in read.notes[0]


def test_of_many_classes_the_largest_are_listed(tmp_path, encoder):
    lines = [{"text": f"t{n} {k}", "label": f"c{n}"} for n in range(12) for k in range(n + 1)]
    note = open_datasets(_data(_write(tmp_path / "rows.jsonl", lines)), encoder, None).notes[1]
    assert note.startswith("12 classes: 'c11' (12), 'c10' (11)") and note.endswith("and 4 more")


def test_dev_rows_in_another_format_have_the_same_classes(tmp_path, encoder):
    """Written by pandas as floats, 0.0, since one label is missing; 0 and 1 in the training rows."""
    train = [{"text": f"t{n}", "label": n % 2} for n in range(8)]
    (tmp_path / "dev.csv").write_text("text,label\na,0.0\nb,1.0\n", encoding="utf-8")
    read = open_datasets(_data(_write(tmp_path / "rows.jsonl", train), dev=str(tmp_path / "dev.csv")), encoder, None)
    assert read.labels == ["0", "1"] and read.dev.label_N.tolist() == [0, 1]


def test_a_class_named_like_a_missing_value_must_be_listed(tmp_path, encoder):
    lines = [{"text": f"t{n}", "label": ("None", "some")[n % 2], "explanation": "so"} for n in range(8)]
    path = _write(tmp_path / "rows.jsonl", lines)
    assert open_datasets(_data(path, labels=["None", "some"]), encoder, None).train.label_N.tolist() == [0, 1] * 4
    with pytest.raises(DataError, match=r"found the classes \['some'\].*4 labels like 'None' read as missing"):
        open_datasets(_data(path), encoder, None)
    for line in lines:
        del line["explanation"]
    with pytest.raises(
        DataError, match=r"the row has nothing to train on; list 'None' in data.labels, if it is a class"
    ):
        open_datasets(_data(_write(tmp_path / "bare.jsonl", lines)), encoder, None)


def test_the_log_names_what_no_term_uses(tmp_path, encoder, caplog):
    columns = Columns(rejected="rejected")
    rows = [{**row, "rejected": "no", "evidence": ["text"]} for row in GOOD]
    data = _data(_write(tmp_path / "rows.jsonl", rows), columns=columns, replay="general.jsonl")
    settings = Settings(
        output_dir="out", data=data, prompt=PromptSettings(question="Why?"), model=ModelSettings(backbone="x")
    )
    datasets = open_datasets(data, encoder, None)
    with caplog.at_level("INFO"):
        require_rows_for_terms(datasets, settings)
    text = caplog.text
    assert "data.replay is general.jsonl, but its texts are not used: objectives.retention.weight is 0" in text
    assert "7 rejected explanations are not used: objectives.preference.weight is 0" in text
    assert "the evidence of 7 rows is not used: objectives.evidence.weight is 0" in text
    caplog.clear()
    for section in (settings.objectives.preference, settings.objectives.contrast, settings.objectives.retention):
        section.weight = 1.0
    require_rows_for_terms(datasets, settings)
    assert "not used" not in caplog.text
