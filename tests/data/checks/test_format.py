"""Files and rows that cannot be read: found, counted, located, with the command that converts them."""

from __future__ import annotations

import json
import time

import pytest

from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.records import find_source
from clsgen_dist.errors import DataError
from clsgen_dist.training.check_files import check_files
from tests.data.checks.planted import findings_of, lines_of, make_rows


def test_good_rows_have_no_findings(train, test):
    assert findings_of(train(make_rows(200)), test(make_rows(60, seed=1))) == {}


def test_broken_lines_are_an_error_with_reasons_and_lines(tmp_path, train):
    path = train(make_rows(200))
    with open(path, "a") as file:
        file.write('{"id": "x", "text": \n[1]\n{"id": "y", "text": " ", "label": "yes"}\n')
    found = findings_of(path)
    assert list(found) == ["unusable-rows"]
    finding = found["unusable-rows"]
    assert (finding.severity, finding.count, finding.of, lines_of(finding)) == ("error", 3, 203, [201, 202, 203])
    assert "1 not JSON" in finding.what and "1 empty text" in finding.what
    assert finding.rows[0].excerpt == '{"id": "x", "text": '


def test_a_few_broken_lines_are_a_warning(train):
    path = train(make_rows(200))
    with open(path, "a") as file:
        file.write("{\n")
    assert findings_of(path)["unusable-rows"].severity == "warning"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_file_in_utf_16_is_reported_with_the_command_that_converts_it(encoding, kind, tmp_path):
    path = tmp_path / f"rows.{kind}"
    text = "".join(json.dumps(row) + "\n" for row in make_rows(50)) if kind == "jsonl" else "id,text,label\na,one,yes\n"
    path.write_bytes(text.encode(encoding))
    found = findings_of(str(path))
    assert list(found) == ["encoding"]
    assert found["encoding"].severity == "error"
    assert f"iconv -f {encoding.upper().replace('-LE', 'LE')} -t UTF-8" in found["encoding"].remedy


def test_latin_1_rows_are_unusable_and_the_remedy_names_the_encoding(tmp_path):
    rows = [{**row, "text": row["text"] + " café"} if i < 30 else row for i, row in enumerate(make_rows(200))]
    path = tmp_path / "train.jsonl"
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("latin-1"))
    finding = findings_of(str(path))["unusable-rows"]
    assert (finding.severity, lines_of(finding)) == ("error", list(range(1, 31)))
    assert "iconv -f WINDOWS-1252 -t UTF-8" in finding.remedy


def test_a_byte_order_mark_loses_no_row(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "".join(json.dumps(row) + "\n" for row in make_rows(60)).encode())
    found = findings_of(str(path))
    assert {code: finding.severity for code, finding in found.items()} == {"byte-order-mark": "info"}


def test_wrongly_decoded_characters_are_found(train):
    rows = make_rows(100)
    rows[4]["text"] += " café".encode().decode("latin-1")
    rows[7]["explanation"] += " \ufffd"
    rows[8]["text"] += " café"
    assert lines_of(findings_of(train(rows))["mojibake"]) == [5, 8]


def test_an_empty_file_is_an_error_and_the_other_files_are_still_checked(tmp_path, train, test):
    rows = make_rows(100)
    (tmp_path / "dev.jsonl").write_text("\n \n")
    found = findings_of(train(rows), str(tmp_path / "dev.jsonl"), test(rows[:50]))
    assert found["empty"].severity == "error"
    assert found["empty"].splits == ("dev",)
    assert found["leakage"].count == 50


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        (json.dumps(make_rows(30), indent=1), "is a single JSON value", "jq -c '.[]'"),
        (json.dumps(make_rows(30)), "is a single JSON value", "jq -c '.[]'"),
        (json.dumps(make_rows(1)[0], indent=1), "is a single JSON value", "jq -c '.'"),
        ("\0" * 5000, "begins with NUL bytes", "write it again"),
        ("\x1f\x8b\x08\0abc", "is compressed with gzip", "name it rows.json.gz, or decompress it: gunzip"),
        ("PK\x03\x04abc", "is a zip archive or an Excel workbook", "save the sheet as CSV UTF-8"),
    ],
)
def test_a_file_that_is_not_jsonl_is_reported_with_the_command_that_converts_it(tmp_path, text, message, remedy):
    path = tmp_path / "rows.json"
    path.write_bytes(text.encode("latin-1"))
    finding = findings_of(str(path))["format"]
    assert finding.severity == "error" and message in finding.what and remedy in finding.remedy
    with pytest.raises(DataError, match=message):
        find_source(str(path))


def test_lines_after_one_that_begins_like_an_array_are_still_rows(tmp_path, train):
    path = train(make_rows(200))
    (tmp_path / "train.jsonl").write_text("[1, 2]\n" + (tmp_path / "train.jsonl").read_text())
    assert lines_of(findings_of(path)["unusable-rows"]) == [1]


def test_a_text_of_200_000_combining_marks_is_fast(train):
    rows = make_rows(200)
    rows[3]["text"] = rows[3]["text"] + "a" + "\u0301\u0327" * 100_000
    start = time.monotonic()
    assert set(findings_of(train(rows))) == {"truncation"}
    assert time.monotonic() - start < 40  # a few seconds; quadratic time would be minutes


def test_many_look_alike_labels_are_a_summary_and_ten_examples(train):
    names = [f"class {chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(100)]
    rows = [
        {**row, "label": names[i % 100] if i < 300 else names[i % 100].upper()} for i, row in enumerate(make_rows(600))
    ]
    checked = check_files([train(rows)])
    message = [finding.what for finding in checked.findings if finding.code == "label-names"]
    assert len(message) == 11 and message[0].startswith("100 groups of labels look alike")


def test_a_missing_column_is_reported_with_the_columns_of_the_row(train):
    found = findings_of(train([{"text": row["text"], "verdict": row["label"]} for row in make_rows(50)]))
    assert found["unusable-rows"].severity == "error"
    assert "line 1 has text, verdict" in found["unusable-rows"].remedy
    again = findings_of(
        train([{"text": r["text"], "verdict": r["label"]} for r in make_rows(50)]), columns=Columns(label="verdict")
    )
    assert list(again) == ["none-explained"]


@pytest.mark.parametrize("kind", ["csv", "parquet", "saved"])
def test_every_format_is_checked(kind, tmp_path):
    from datasets import Dataset

    rows = make_rows(100)
    rows[9]["text"] = rows[3]["text"].upper()
    table = Dataset.from_list(rows)
    target = tmp_path / ("train" if kind == "saved" else f"train.{kind}")
    {"csv": table.to_csv, "parquet": table.to_parquet, "saved": table.save_to_disk}[kind](str(target))
    finding = findings_of(str(target))["exact-duplicates"]
    assert lines_of(finding) == [11 if kind == "csv" else 10]  # a CSV file has a header
    assert "Duplicates" not in finding.what and finding.rows[0].like.id == "r3"
