"""Good rows: the same examples from every format."""

from __future__ import annotations

import csv
import json
import math

import pytest

from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.ingest import iter_texts, read_examples
from tests.data.reading.sources import GOOD, KINDS, read_rows, write_as, write_jsonl


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_examples(kind, tmp_path):
    read = read_rows(write_as(kind, tmp_path))
    assert [(e.id, e.text, e.label, e.explanations) for e in read.examples] == [
        (r["id"], r["text"], r["label"], tuple(r["explanations"])) for r in GOOD
    ]
    assert read.labels == ["no", "yes"]
    assert read.rejected == []


ODD = [
    {"\ufeffid ": "a", "te\u200bxt": "null", "label\u00a0": label, "explanation": explanation}
    for label, explanation in ((0.0, "['one', 'two']"), (1.0, "['one' 'two']"), (None, "three"), (0.5, "nan"))
]


@pytest.mark.parametrize("kind", KINDS)
def test_cells_and_column_names_mean_the_same_in_every_format(kind, tmp_path):
    """Integers as floats, as pandas writes them where some are missing; lists in text; hidden characters in names."""
    rows = [{**row, "\ufeffid ": f"{row[chr(0xFEFF) + 'id ']}{n}"} for n, row in enumerate(ODD)]
    read = read_rows(write_as(kind, tmp_path, rows))
    assert [(e.id, e.text, e.label, e.explanations) for e in read.examples] == [
        ("a0", "null", "0", ("one", "two")),
        ("a1", "null", "1", ("one", "two")),
        ("a2", "null", None, ("three",)),
    ]
    [rejected] = read.rejected
    assert (rejected.line - (kind[:3].lower() in ("csv", "tsv")), rejected.code) == (4, "fractional-label")
    for part in ("2 labels like '0.0' read as", "2 explanation lists read from their text", "3 texts like 'null' kept"):
        assert part in read.summary()


@pytest.mark.parametrize("kind", KINDS)
def test_booleans_are_the_same_classes_in_every_format(kind, tmp_path):
    read = read_rows(write_as(kind, tmp_path, [{"text": "a", "label": True}, {"text": "b", "label": False}]))
    assert [e.label for e in read.examples] == ["true", "false"]


def test_columns_are_mapped(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"body": "x", "class": "spam", "why": "because"}])
    read = read_rows(path, columns=Columns(text="body", label="class", explanation="why"))
    assert (read.examples[0].text, read.examples[0].label, read.examples[0].explanations) == ("x", "spam", ("because",))
    assert read.examples[0].id == "rows.jsonl:1"


def test_labels_may_be_numbers_or_booleans_and_both_explanation_columns_are_merged(tmp_path):
    rows = [
        {"text": "x", "label": 1, "explanation": "a", "explanations": ["b", "a", " "]},
        {"text": "y", "label": True},
        {"text": "z", "label": float("nan"), "explanation": "c"},
    ]
    read = read_rows(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert [e.label for e in read.examples] == ["1", "true", None]
    assert read.examples[0].explanations == ("a", "b")


def test_class_label_columns_become_names(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features).save_to_disk(tmp_path / "saved")
    assert [e.label for e in read_rows(tmp_path / "saved").examples] == ["pos", "neg"]


def test_a_very_long_row_is_read_completely(tmp_path):
    read = read_rows(write_jsonl(tmp_path / "rows.jsonl", [{"text": "word " * 40_000, "label": "yes"}]))
    assert len(read.examples[0].text) == 200_000


@pytest.mark.parametrize(
    ("name", "rows", "labels", "explanations"),
    [
        ("comve", (4000, 997, 1000), ["A", "B"], 3),
        ("pubmedqa", (400, 100, 500), ["maybe", "no", "yes"], 1),
        ("hatecheck", (2677, 363, 688), ["hateful", "non-hateful"], 1),
        ("contractnli", (430, 153, 318), ["contradiction", "entailment"], 1),
    ],
)
def test_the_real_datasets_are_read_completely(name, rows, labels, explanations, shared_data):
    for split, count in zip(("train", "dev", "test"), rows, strict=True):
        read = read_rows(shared_data / name / f"{split}.jsonl", max_bad_fraction=0.0)
        assert (len(read.examples), read.labels) == (count, labels)
        assert max(len(e.explanations) for e in read.examples) == explanations
        assert all(e.explanations for e in read.examples)


def test_a_column_called_difficulty_is_not_read_by_default(tmp_path):
    read = read_rows(write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": "x", "difficulty": "easy"}]))
    assert len(read.examples) == 1


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_delimiters_of_spreadsheets_are_detected(tmp_path, name, delimiter):
    path = tmp_path / name
    path.write_text(f'id{delimiter}"text"{delimiter}label\na{delimiter}"one{delimiter}, two"{delimiter}x\n')
    (example,) = read_rows(path).examples
    assert (example.text, example.label) == (f"one{delimiter}, two", "x")


def test_other_columns_are_not_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    beyond = pa.array([2**31 - 1, 0], type=pa.date32())  # the year 5,881,580
    pq.write_table(pa.table({"text": ["a", "b"], "label": ["x", "y"], "when": beyond}), tmp_path / "rows.parquet")
    assert [e.label for e in read_rows(tmp_path / "rows.parquet").examples] == ["x", "y"]


def test_empty_explanations_and_ids_are_missing(tmp_path):
    rows = [
        {"id": math.nan, "text": "a", "label": "x", "explanations": ["", None, " ", "why"]},
        {"id": math.nan, "text": "b", "label": "   ", "explanation": "since"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_rows(path)
    assert [(e.id, e.label, e.explanations) for e in read.examples] == [
        ("rows.jsonl:1", "x", ("why",)),
        ("rows.jsonl:2", None, ("since",)),
    ]


@pytest.mark.parametrize(
    "first", ["sep=,", "SEP=;", '"sep=|"', "\ufeffsep=;", "sep=\t"], ids=["comma", "semicolon", "quoted", "bom", "tab"]
)
def test_excels_separator_line_is_not_the_header(first, tmp_path):
    mark = first.strip('"')[-1]
    rows = [["id", "text", "label"], ["a", "one\nline", "x"], ["b", "", "y"], ["c", "fine", "x"]]
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        file.write(first + "\r\n")
        csv.writer(file, delimiter=mark).writerows(rows)
    read = read_rows(tmp_path / "rows.csv")
    assert [(e.id, e.location) for e in read.examples] == [("a", "rows.csv:3"), ("c", "rows.csv:6")]
    assert [(r.line, r.reason) for r in read.rejected] == [(5, "empty text")]


def test_ids_that_look_the_same_are_the_same(tmp_path):
    rows = [
        {"id": i, "text": f"t{n}", "label": "x"} for n, i in enumerate(["a", "a\u200b ", 1, 1.0, "1", "nan", "NaN"])
    ]
    read = read_rows(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert [e.id for e in read.examples] == ["a", "1", "rows.jsonl:6", "rows.jsonl:7"]
    assert {r.code for r in read.rejected} == {"duplicate-id"}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_to_predict_are_complete_and_in_order(kind, tmp_path):
    """Labels, explanations and ids are ignored, whatever they contain."""
    rows = [
        {"id": "a", "text": "one", "label": "['x', 'y']", "explanations": "['cut"},
        {"id": "a", "text": "null", "label": "0.5", "explanations": "nan"},
        {"id": None, "text": " ", "label": None, "explanations": None},
        {"id": "1.0", "text": None, "label": "\x00", "explanations": ""},
        {"id": "e", "text": "NaN\x00", "label": "x", "explanations": "y"},
        {"id": "f", "text": "[1]", "label": "x", "explanations": "y"},
    ]
    read = list(iter_texts(str(write_as(kind, tmp_path, rows)), Columns()))
    assert [row.text for row in read] == ["one", "null", "", "", "", "[1]"]
    assert [row.rejected and row.rejected.code for row in read] == [
        *(None, None, "empty-text", "empty-text", "nul-character", None)
    ]
    assert [row.id for row in read if "rows" not in row.id and "splits" not in row.id] == ["a", "a", "1.0", "e", "f"]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_groups_and_clusters_are_read_as_text(form, tmp_path):
    rows = [("a", "A", "7"), ("b", "", "7"), ("c", "N/A", "8")]
    path = tmp_path / f"rows.{form}"
    if form == "csv":
        path.write_text("text,label,site,patient\n" + "".join(f"{t},yes,{s},{p}\n" for t, s, p in rows))
    else:
        cells = [{"text": t, "label": "yes", "site": s or None, "patient": float(p)} for t, s, p in rows]
        path.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    columns = Columns(groups=("site", "text"), cluster="patient")
    found = read_examples(str(path), columns=columns, labels=None, max_bad_fraction=0, quarantine=None).examples
    assert [e.groups for e in found] == [("A", "a"), (None, "b"), (None, "c")]
    assert [e.cluster for e in found] == ["7", "7", "8"]
