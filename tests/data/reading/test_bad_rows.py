"""Bad rows and bad sources: each fault with file, line and reason, and nothing lost."""

from __future__ import annotations

import gzip
import json

import pytest

from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.ingest import iter_texts
from clsgen_dist.errors import DataError
from tests.data.reading.sources import GOOD, read_rows, write_jsonl

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
    (b'{"text": "x", "label": ["yes"]}', "label is a list or an object: ['yes']; write one class name per row"),
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
    read = read_rows(path, labels=["no", "yes"], quarantine=tmp_path / "out" / "quarantine.jsonl")
    [rejected] = read.rejected
    assert rejected.line == 3  # the blank line counts as a line, not as a row
    assert rejected.reason.startswith(reason)
    assert [e.id for e in read.examples] == ["a", "b"]
    [kept] = [json.loads(row) for row in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert (kept["line"], kept["reason"], kept["source"]) == (3, rejected.reason, str(path))
    assert len(kept["raw"]) <= 2000
    assert "1 rejected" in read.summary()


def test_the_quarantine_file_of_an_earlier_run_is_deleted(tmp_path):
    stale = tmp_path / "quarantine.jsonl"
    stale.write_text("old")
    read_rows(write_jsonl(tmp_path / "rows.jsonl", GOOD), quarantine=stale)
    assert not stale.exists()


def test_too_many_bad_rows_end_the_run_with_counts_places_and_remedy(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [*GOOD, {"text": ""}])
    assert len(read_rows(path, max_bad_fraction=0.25).rejected) == 1
    with pytest.raises(DataError) as stop:
        read_rows(path, max_bad_fraction=0.24, quarantine=tmp_path / "q.jsonl")
    for part in ("1 of 4 rows", "25.0%", "rows.jsonl:4: empty text", "q.jsonl", "or raise data.max_bad_fraction"):
        assert part in str(stop.value)


def test_a_file_without_a_good_row_is_refused(tmp_path):
    with pytest.raises(DataError, match="2 of 2 rows are bad"):
        read_rows(write_jsonl(tmp_path / "rows.jsonl", [{"text": ""}] * 2))
    with pytest.raises(DataError, match="has no rows"):
        read_rows(write_jsonl(tmp_path / "empty.jsonl", []))


def test_csv_faults_have_the_line_their_record_starts_on(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'id,text,label\na,"two\nlines",yes\nb,bad \xff byte,no\nc,x,yes,surplus\nd,,yes\ne,fine,no\n')
    read = read_rows(path)
    assert [(r.line, r.code) for r in read.rejected] == [
        (4, "not-utf8"),
        (5, "wrong-cell-count"),
        (6, "empty-text"),
    ]
    assert [e.id for e in read.examples] == ["a", "e"]


def test_a_missing_text_column_is_reported_with_the_nearest_name(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("id,texts,label\na,b,c\n")
    with pytest.raises(DataError, match=r"'id', 'texts', 'label'.*columns\.text=texts"):
        read_rows(path)


def test_unreadable_sources_are_refused_with_the_reason(tmp_path, monkeypatch):
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(GOOD)}).save_to_disk(tmp_path / "splits")
    (tmp_path / "rows.txt").write_text("x")
    (tmp_path / "rows.parquet").write_text("x")
    (tmp_path / "folder").mkdir()
    for source, expected in (
        (tmp_path / "none.jsonl", "does not exist"),
        (tmp_path / "rows.txt", "files ending in '.txt'"),
        (tmp_path / "rows.parquet", "cannot be read as Parquet"),
        (tmp_path / "splits", "has the splits train; name one"),
        (tmp_path / "folder", "not a folder of Dataset.save_to_disk"),
        ("nobody/nothing", "not a local file or folder, and could not be loaded from the hub"),
    ):
        with pytest.raises(DataError, match=expected):
            read_rows(source)


@pytest.mark.parametrize("number", ["1" * 5000, "1e999"])
def test_overflowing_numbers_reject_only_their_row(number, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "a", "label": "x"}}\n{{"text": "b", "label": "y", "difficulty": {number}}}\n')
    read = read_rows(path, columns=Columns(difficulty="difficulty"))
    assert ([e.text for e in read.examples], [r.line for r in read.rejected]) == (["a"], [2])


def test_an_unclosed_quote_does_not_swallow_rows(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(
        "id,label,text\n" + "".join(f"{i},a,text {i}\n" for i in range(9)) + '9,a,"open\n10,a,lost\n11,a,lost\n'
    )
    with pytest.raises(DataError, match=r"line 11 is never closed, so the rest of the file, 3 lines"):
        read_rows(path)
    path.write_text('id,label,text\n1,a,"open\n2,a,lost\n3,a,"fine"\n4,a,fine\n')
    with pytest.raises(DataError, match=r"record of line 2 closes only in line 4"):
        read_rows(path)
    path.write_text('id,label,text\n1,a,"closed" too early\n2,a,fine\n')
    read = read_rows(path)
    assert ([e.id for e in read.examples], [(r.line, r.reason[:7]) for r in read.rejected]) == (["2"], [(2, "not CSV")])
    path.write_text('id,label,text\n1,a,fine\n2,a,"closed" too early')
    assert [(r.line, r.reason[:7]) for r in read_rows(path).rejected] == [(3, "not CSV")]


def test_splits_of_files_and_shard_patterns_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", GOOD)
    with pytest.raises(DataError, match="a file has no splits"):
        read_rows(f"{path}:validation")
    with pytest.raises(DataError, match=r"address of shards.*data\.stream_window"):
        read_rows("hf://datasets/a/b/*.parquet")


def test_each_fault_of_a_parquet_file_has_its_own_message(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features, Value

    odd = pa.array([[("k", 1)], [("k", 2)]], type=pa.map_(pa.string(), pa.int32()))
    pq.write_table(pa.table({"text": ["a", "b"], "label": ["x", "y"], "odd": odd}), tmp_path / "map.parquet")
    assert len(read_rows(tmp_path / "map.parquet").examples) == 2
    features = Features({"text": Value("string"), "label": ClassLabel(names=["n", "y"])})
    table = pa.table({"text": ["a", "b"], "label": pa.array([1, 5])})
    pq.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), tmp_path / "class.parquet")
    read = read_rows(tmp_path / "class.parquet")
    assert read.labels == ["y"]
    assert read.rejected[0].reason == "unknown label: number 5, but the dataset names 2 classes"
    pq.write_table(pa.table({"text": [f"word {i} " * 50 for i in range(3000)]}), tmp_path / "torn.parquet")
    data = bytearray((tmp_path / "torn.parquet").read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    (tmp_path / "torn.parquet").write_bytes(data)
    with pytest.raises(DataError, match=r"torn.parquet cannot be read as Parquet"):
        read_rows(tmp_path / "torn.parquet", require_target=False)


@pytest.mark.parametrize("header", ['id,"text,label', 'id,"text" x,label'])
def test_a_header_with_broken_quotes_is_refused(tmp_path, header):
    path = tmp_path / "rows.csv"
    path.write_text(f"{header}\na,b,c\n")
    with pytest.raises(DataError, match=r"its header, line 1, is not CSV .*; fix its quotes"):
        read_rows(path)


def test_a_repeated_column_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("id,text,label,text\na,one,x,two\n")
    with pytest.raises(DataError, match="columns more than once: text; rename or delete"):
        read_rows(tmp_path / "rows.csv")


def test_overlong_and_empty_paths_are_refused(tmp_path):
    (tmp_path / ("n" * 100)).mkdir()
    with pytest.raises(DataError, match=r"cannot be opened .*too long"):
        read_rows(tmp_path / ("n" * 300 + ".jsonl"))
    with pytest.raises(DataError, match="expected a file, a folder or a hub id"):
        read_rows("")


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_a_damaged_saved_folder_is_reported_as_such(tmp_path, name):
    from datasets import Dataset

    Dataset.from_dict({"text": ["a"], "label": ["x"]}).save_to_disk(tmp_path / "set")
    (tmp_path / "set" / name).write_bytes((tmp_path / "set" / name).read_bytes()[:20])
    with pytest.raises(DataError, match=r"damaged folder of Dataset.save_to_disk"):
        read_rows(tmp_path / "set")


def test_a_truncated_or_fake_gzip_file_is_refused(tmp_path):
    full = gzip.compress(
        "".join(json.dumps({"text": f"t {n}", "label": "xy"[n % 2]}) + "\n" for n in range(5000)).encode()
    )
    for name, data, expected in (
        ("cut.jsonl.gz", full[:-2000], "is not a complete gzip file"),
        ("plain.csv.gz", b"text,label\na,b\n", "is not a complete gzip file"),
        ("rows.parquet.gz", full, "files ending in '.gz' cannot be read"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=expected):
            read_rows(tmp_path / name)


def test_columns_that_look_the_same_are_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label,label\u00a0\na,x,y\n", encoding="utf-8")
    with pytest.raises(DataError, match="columns more than once: label"):
        read_rows(tmp_path / "rows.csv")
    read = read_rows(write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "text\u200b": "b", "label": "x"}, *GOOD]))
    assert [(r.line, r.code) for r in read.rejected] == [(1, "duplicate-column")]


def test_bad_rows_to_predict_are_returned_with_their_fault(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n{broken\n[1]\n{"text": 5}\n{"txt": "b"}\n{"text": "\xff"}\n{"text": "c"}\n')
    read = list(iter_texts(str(path), Columns()))
    assert [(row.line, row.rejected and row.rejected.code) for row in read] == [
        (1, None),
        (3, "not-json"),
        (4, "not-an-object"),
        (5, "wrong-text-type"),
        (6, "missing-text"),
        (7, "not-utf8"),
        (8, None),
    ]
