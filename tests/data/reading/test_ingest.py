"""Rows in: every format, every fault with file and line, nothing lost."""

from __future__ import annotations

import csv
import gzip
import json
import math

import pytest

from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.ingest import read_examples, read_texts
from clsgen_dist.errors import DataError

GOOD = [
    {"id": "a", "text": "first text", "label": "yes", "explanations": ["one reason", "another"]},
    {"id": "b", "text": 'second, with "quotes"\nand a new line', "label": "no", "explanations": []},
    {"id": "c", "text": "third", "label": None, "explanations": ["only explained"]},
]


def _read(source, **options):
    defaults = {"columns": Columns(), "labels": None, "max_bad_fraction": 1.0, "quarantine": None}
    return read_examples(str(source), **{**defaults, **options})


def _jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


KINDS = ["jsonl", "JSONL.gz", "csv", "tsv", "CSV.GZ", "Parquet", "saved", "saved splits", "saved as numpy"]


def _write(kind, tmp_path, rows=GOOD):
    """The rows in a format; names are upper case here and there, as on other systems."""
    from datasets import Dataset, DatasetDict

    path = tmp_path / f"rows.{kind}"
    opened = gzip.open if kind.lower().endswith(".gz") else open
    if kind.lower().startswith("jsonl"):
        with opened(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return path
    if kind.lower().startswith(("csv", "tsv")):
        with opened(path, "wt", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            as_json = ({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
            writer.writerows(as_json)
        return path
    table = Dataset.from_list(rows)
    if kind == "Parquet":
        table.to_parquet(path)
    elif kind == "saved splits":
        DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "splits")
        return f"{tmp_path / 'splits'}:train"
    else:
        (table.with_format("numpy") if kind == "saved as numpy" else table).save_to_disk(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_examples(kind, tmp_path):
    read = _read(_write(kind, tmp_path))
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
    """Floats with a gap, as pandas writes whole numbers; lists in text; names nobody sees the marks of."""
    rows = [{**row, "\ufeffid ": f"{row[chr(0xFEFF) + 'id ']}{n}"} for n, row in enumerate(ODD)]
    read = _read(_write(kind, tmp_path, rows))
    assert [(e.id, e.text, e.label, e.explanations) for e in read.examples] == [
        ("a0", "null", "0", ("one", "two")),
        ("a1", "null", "1", ("one", "two")),
        ("a2", "null", None, ("three",)),
    ]
    [rejected] = read.rejected
    assert (rejected.line - (kind[:3].lower() in ("csv", "tsv")), rejected.reason[:32]) == (
        4,
        "label is a number that is not wh",
    )
    for part in ("2 labels like '0.0' read as", "2 explanation lists read from their text", "3 texts like 'null' kept"):
        assert part in read.summary()


@pytest.mark.parametrize("kind", KINDS)
def test_truth_values_are_the_same_classes_in_every_format(kind, tmp_path):
    read = _read(_write(kind, tmp_path, [{"text": "a", "label": True}, {"text": "b", "label": False}]))
    assert [e.label for e in read.examples] == ["true", "false"]


FAULTS = [
    (b"{not json", "not JSON"),
    (b"[1, 2]", "not a JSON object: list"),
    (b'{"txt": "x", "label": "yes"}', "missing text: no column 'text', but 'txt'"),
    (b'{"text": "  ", "label": "yes"}', "empty text"),
    (b'{"text": null, "label": "yes"}', "empty text"),
    (b'{"text": 5, "label": "yes"}', "text is not a string: int"),
    (
        b'{"text": "x", "label": "yess"}',
        "unknown label: 'yess' is not in the label space ['no', 'yes']; did you mean 'yes'",
    ),
    (b'{"text": "x", "label": ["yes"]}', "label is a list: ['yes']; write one class name"),
    (b'{"text": "x", "explanation": 5}', "explanation has a wrong type: int"),
    (b'{"text": "x", "explanations": [["nested"]]}', "explanation has a wrong type: list"),
    (b'{"text": "x\xff", "label": "yes"}', "not valid UTF-8: byte 0xff at offset 11"),
    (b'{"text": "x\\u0000", "label": "yes"}', "NUL character: in the text, at 1"),
    (b'{"text": "x", "label": "yes", "explanation": "y\\u0000"}', "NUL character: in the explanation"),
    (b'{"text": "\\ud800", "label": "yes"}', "lone surrogate: '\\ud800' in the text"),
    (b'{"text": "x"}', "neither label nor explanation"),
    (b'{"id": "a", "text": "x", "label": "yes"}', "duplicate id: 'a' is already at rows.jsonl:1"),
    (b"[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("line", "reason"), FAULTS, ids=[f[1][:30] for f in FAULTS])
def test_a_bad_row_is_reported_with_line_and_reason_and_quarantined(line, reason, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD[0]).encode() + b"\n\n" + line + b"\n" + json.dumps(GOOD[1]).encode())
    read = _read(path, labels=["no", "yes"], quarantine=tmp_path / "out" / "quarantine.jsonl")
    [rejected] = read.rejected
    assert rejected.line == 3  # the blank line counts as a line, not as a row
    assert rejected.reason.startswith(reason)
    assert [e.id for e in read.examples] == ["a", "b"]
    [kept] = [json.loads(row) for row in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert (kept["line"], kept["reason"], kept["source"]) == (3, rejected.reason, str(path))
    assert len(kept["raw"]) <= 2000
    assert "1 rejected" in read.summary()


def test_an_earlier_runs_quarantine_does_not_stay(tmp_path):
    stale = tmp_path / "quarantine.jsonl"
    stale.write_text("old")
    _read(_jsonl(tmp_path / "rows.jsonl", GOOD), quarantine=stale)
    assert not stale.exists()


def test_too_many_bad_rows_end_the_run_with_counts_places_and_remedy(tmp_path):
    path = _jsonl(tmp_path / "rows.jsonl", [*GOOD, {"text": ""}])
    assert len(_read(path, max_bad_fraction=0.25).rejected) == 1
    with pytest.raises(DataError) as stop:
        _read(path, max_bad_fraction=0.24, quarantine=tmp_path / "q.jsonl")
    for part in ("1 of 4 rows", "25.0%", "rows.jsonl:4: empty text", "q.jsonl", "or raise data.max_bad_fraction"):
        assert part in str(stop.value)


def test_a_file_without_one_good_row_never_passes(tmp_path):
    with pytest.raises(DataError, match="2 of 2 rows are bad"):
        _read(_jsonl(tmp_path / "rows.jsonl", [{"text": ""}] * 2))
    with pytest.raises(DataError, match="holds no rows"):
        _read(_jsonl(tmp_path / "empty.jsonl", []))


def test_csv_faults_have_the_line_their_record_starts_on(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'id,text,label\na,"two\nlines",yes\nb,bad \xff byte,no\nc,x,yes,surplus\nd,,yes\ne,fine,no\n')
    read = _read(path)
    assert [(r.line, r.code) for r in read.rejected] == [
        (4, "not-utf8"),
        (5, "wrong-cell-count"),
        (6, "empty-text"),
    ]
    assert [e.id for e in read.examples] == ["a", "e"]


def test_a_missing_text_column_is_said_with_the_nearest(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("id,texts,label\na,b,c\n")
    with pytest.raises(DataError, match=r"'id', 'texts', 'label'.*columns\.text=texts"):
        _read(path)


def test_columns_are_mapped(tmp_path):
    path = _jsonl(tmp_path / "rows.jsonl", [{"body": "x", "class": "spam", "why": "because"}])
    read = _read(path, columns=Columns(text="body", label="class", explanation="why"))
    assert (read.examples[0].text, read.examples[0].label, read.examples[0].explanations) == ("x", "spam", ("because",))
    assert read.examples[0].id == "rows.jsonl:1"


def test_labels_may_be_numbers_or_truth_values_and_both_explanation_columns_join(tmp_path):
    rows = [
        {"text": "x", "label": 1, "explanation": "a", "explanations": ["b", "a", " "]},
        {"text": "y", "label": True},
        {"text": "z", "label": float("nan"), "explanation": "c"},
    ]
    read = _read(_jsonl(tmp_path / "rows.jsonl", rows))
    assert [e.label for e in read.examples] == ["1", "true", None]
    assert read.examples[0].explanations == ("a", "b")


def test_class_label_columns_become_names(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features).save_to_disk(tmp_path / "saved")
    assert [e.label for e in _read(tmp_path / "saved").examples] == ["pos", "neg"]


def test_what_cannot_be_opened_says_why(tmp_path, monkeypatch):
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(GOOD)}).save_to_disk(tmp_path / "splits")
    (tmp_path / "rows.txt").write_text("x")
    (tmp_path / "rows.parquet").write_text("x")
    (tmp_path / "folder").mkdir()
    for source, expected in (
        (tmp_path / "none.jsonl", "does not exist"),
        (tmp_path / "rows.txt", "files ending in '.txt'"),
        (tmp_path / "rows.parquet", "cannot be read as Parquet"),
        (tmp_path / "splits", "holds the splits train; name one"),
        (tmp_path / "folder", "no folder of Dataset.save_to_disk"),
        ("nobody/nothing", "no file or folder here, and the hub did not give it"),
    ):
        with pytest.raises(DataError, match=expected):
            _read(source)


def test_a_very_long_row_is_just_a_row(tmp_path):
    read = _read(_jsonl(tmp_path / "rows.jsonl", [{"text": "word " * 40_000, "label": "yes"}]))
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
def test_the_real_sets_are_read_whole(name, rows, labels, explanations, shared_data):
    for split, count in zip(("train", "dev", "test"), rows, strict=True):
        read = _read(shared_data / name / f"{split}.jsonl", max_bad_fraction=0.0)
        assert (len(read.examples), read.labels) == (count, labels)
        assert max(len(e.explanations) for e in read.examples) == explanations
        assert all(e.explanations for e in read.examples)


@pytest.mark.parametrize("number", ["1" * 5000, "1e999"])
def test_numbers_no_computer_holds_reject_their_row_only(number, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "a", "label": "x"}}\n{{"text": "b", "label": "y", "difficulty": {number}}}\n')
    read = _read(path, columns=Columns(difficulty="difficulty"))
    assert ([e.text for e in read.examples], [r.line for r in read.rejected]) == (["a"], [2])


def test_a_column_called_difficulty_is_not_read_unasked(tmp_path):
    read = _read(_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": "x", "difficulty": "easy"}]))
    assert len(read.examples) == 1


def test_a_quote_that_is_never_closed_swallows_no_rows(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(
        "id,label,text\n" + "".join(f"{i},a,text {i}\n" for i in range(9)) + '9,a,"open\n10,a,lost\n11,a,lost\n'
    )
    with pytest.raises(DataError, match=r"line 11 is never closed, so the rest of the file, 3 lines"):
        _read(path)
    path.write_text('id,label,text\n1,a,"open\n2,a,lost\n3,a,"fine"\n4,a,fine\n')
    with pytest.raises(DataError, match=r"record of line 2 closes only in line 4"):
        _read(path)
    path.write_text('id,label,text\n1,a,"closed" too early\n2,a,fine\n')
    read = _read(path)
    assert ([e.id for e in read.examples], [(r.line, r.reason[:7]) for r in read.rejected]) == (["2"], [(2, "not CSV")])


def test_what_only_looks_like_a_source_is_told(tmp_path):
    path = _jsonl(tmp_path / "rows.jsonl", GOOD)
    with pytest.raises(DataError, match="a file has no splits"):
        _read(f"{path}:validation")
    with pytest.raises(DataError, match=r"address of shards.*data\.stream_window"):
        _read("hf://datasets/a/b/*.parquet")


def test_parquet_faults_are_told_as_what_they_are(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features, Value

    odd = pa.array([[("k", 1)], [("k", 2)]], type=pa.map_(pa.string(), pa.int32()))
    pq.write_table(pa.table({"text": ["a", "b"], "label": ["x", "y"], "odd": odd}), tmp_path / "map.parquet")
    assert len(_read(tmp_path / "map.parquet").examples) == 2
    features = Features({"text": Value("string"), "label": ClassLabel(names=["n", "y"])})
    table = pa.table({"text": ["a", "b"], "label": pa.array([1, 5])})
    pq.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), tmp_path / "class.parquet")
    read = _read(tmp_path / "class.parquet")
    assert read.labels == ["y"] and read.rejected[0].reason == "unknown label: number 5, but the set names 2 classes"
    pq.write_table(pa.table({"text": [f"word {i} " * 50 for i in range(3000)]}), tmp_path / "torn.parquet")
    data = bytearray((tmp_path / "torn.parquet").read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    (tmp_path / "torn.parquet").write_bytes(data)
    with pytest.raises(DataError, match=r"torn.parquet cannot be read as Parquet"):
        _read(tmp_path / "torn.parquet", require_target=False)


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_cells_may_be_separated_as_spreadsheets_do(tmp_path, name, delimiter):
    path = tmp_path / name
    path.write_text(f'id{delimiter}"text"{delimiter}label\na{delimiter}"one{delimiter}, two"{delimiter}x\n')
    (example,) = _read(path).examples
    assert (example.text, example.label) == (f"one{delimiter}, two", "x")


@pytest.mark.parametrize("header", ['id,"text,label', 'id,"text" x,label'])
def test_a_header_with_broken_quotes_is_told(tmp_path, header):
    path = tmp_path / "rows.csv"
    path.write_text(f"{header}\na,b,c\n")
    with pytest.raises(DataError, match=r"its header, line 1, is not CSV .*; fix its quotes"):
        _read(path)


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("id,text,label,text\na,one,x,two\n")
    with pytest.raises(DataError, match="columns twice: text; which one counts"):
        _read(tmp_path / "rows.csv")


def test_columns_that_nobody_asked_for_are_not_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    beyond = pa.array([2**31 - 1, 0], type=pa.date32())  # the year 5,881,580
    pq.write_table(pa.table({"text": ["a", "b"], "label": ["x", "y"], "when": beyond}), tmp_path / "rows.parquet")
    assert [e.label for e in _read(tmp_path / "rows.parquet").examples] == ["x", "y"]


def test_nothing_in_a_list_of_explanations_or_as_id_is_nothing(tmp_path):
    rows = [
        {"id": math.nan, "text": "a", "label": "x", "explanations": ["", None, " ", "why"]},
        {"id": math.nan, "text": "b", "label": "   ", "explanation": "since"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = _read(path)
    assert [(e.id, e.label, e.explanations) for e in read.examples] == [
        ("rows.jsonl:1", "x", ("why",)),
        ("rows.jsonl:2", None, ("since",)),
    ]


def test_what_cannot_be_opened_is_told_in_one_line(tmp_path):
    (tmp_path / ("n" * 100)).mkdir()
    with pytest.raises(DataError, match=r"cannot be opened .*too long"):
        _read(tmp_path / ("n" * 300 + ".jsonl"))
    with pytest.raises(DataError, match="expected a file, a folder or a hub id"):
        _read("")


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_a_damaged_saved_folder_is_told_as_one(tmp_path, name):
    from datasets import Dataset

    Dataset.from_dict({"text": ["a"], "label": ["x"]}).save_to_disk(tmp_path / "set")
    (tmp_path / "set" / name).write_bytes((tmp_path / "set" / name).read_bytes()[:20])
    with pytest.raises(DataError, match=r"damaged folder of Dataset.save_to_disk"):
        _read(tmp_path / "set")


@pytest.mark.parametrize(
    "first", ["sep=,", "SEP=;", '"sep=|"', "\ufeffsep=;", "sep=\t"], ids=["comma", "semicolon", "quoted", "bom", "tab"]
)
def test_excels_line_of_the_separator_is_no_header(first, tmp_path):
    mark = first.strip('"')[-1]
    rows = [["id", "text", "label"], ["a", "one\nline", "x"], ["b", "", "y"], ["c", "fine", "x"]]
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        file.write(first + "\r\n")
        csv.writer(file, delimiter=mark).writerows(rows)
    read = _read(tmp_path / "rows.csv")
    assert [(e.id, e.source) for e in read.examples] == [("a", "rows.csv:3"), ("c", "rows.csv:6")]
    assert [(r.line, r.reason) for r in read.rejected] == [(5, "empty text")]


def test_a_packed_file_that_is_cut_or_not_packed_is_told(tmp_path):
    whole = gzip.compress(
        "".join(json.dumps({"text": f"t {n}", "label": "xy"[n % 2]}) + "\n" for n in range(5000)).encode()
    )
    for name, data, expected in (
        ("cut.jsonl.gz", whole[:-2000], "is no whole gzip file"),
        ("plain.csv.gz", b"text,label\na,b\n", "is no whole gzip file"),
        ("rows.parquet.gz", whole, "files ending in '.gz' cannot be read"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=expected):
            _read(tmp_path / name)


def test_columns_that_look_the_same_are_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label,label\u00a0\na,x,y\n", encoding="utf-8")
    with pytest.raises(DataError, match="columns twice: label"):
        _read(tmp_path / "rows.csv")
    read = _read(_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "text\u200b": "b", "label": "x"}, *GOOD]))
    assert [(r.line, r.code) for r in read.rejected] == [(1, "duplicate-column")]


def test_ids_that_look_the_same_are_the_same(tmp_path):
    rows = [
        {"id": i, "text": f"t{n}", "label": "x"} for n, i in enumerate(["a", "a\u200b ", 1, 1.0, "1", "nan", "NaN"])
    ]
    read = _read(_jsonl(tmp_path / "rows.jsonl", rows))
    assert [e.id for e in read.examples] == ["a", "1", "rows.jsonl:6", "rows.jsonl:7"]
    assert {r.code for r in read.rejected} == {"duplicate-id"}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_to_predict_are_all_there_in_their_order(kind, tmp_path):
    """Labels, explanations and ids are not looked at, whatever they hold."""
    rows = [
        {"id": "a", "text": "one", "label": "['x', 'y']", "explanations": "['cut"},
        {"id": "a", "text": "null", "label": "0.5", "explanations": "nan"},
        {"id": None, "text": " ", "label": None, "explanations": None},
        {"id": "1.0", "text": None, "label": "\x00", "explanations": ""},
        {"id": "e", "text": "NaN\x00", "label": "x", "explanations": "y"},
        {"id": "f", "text": "[1]", "label": "x", "explanations": "y"},
    ]
    read = read_texts(str(_write(kind, tmp_path, rows)), Columns())
    assert [row.text for row in read] == ["one", "null", "", "", "", "[1]"]
    assert [row.rejected and row.rejected.code for row in read] == [
        *(None, None, "empty-text", "empty-text", "nul-character", None)
    ]
    assert [row.id for row in read if "rows" not in row.id and "splits" not in row.id] == ["a", "a", "1.0", "e", "f"]


def test_what_is_no_row_at_all_is_answered_too(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n{broken\n[1]\n{"text": 5}\n{"txt": "b"}\n{"text": "\xff"}\n{"text": "c"}\n')
    read = read_texts(str(path), Columns())
    assert [(row.line, row.rejected and row.rejected.code) for row in read] == [
        (1, None),
        (3, "not-json"),
        (4, "not-an-object"),
        (5, "wrong-text-type"),
        (6, "missing-text"),
        (7, "not-utf8"),
        (8, None),
    ]
