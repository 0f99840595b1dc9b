"""Files broken in every way: no exception but those for people, and no row that is neither read nor rejected."""

from __future__ import annotations

import csv
import io
import json
import re
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clsgen_dist.data.example import Columns, Example
from clsgen_dist.data.reading.ingest import detect_space, iter_rows, iter_texts
from clsgen_dist.data.reading.records import find_source
from clsgen_dist.data.reading.rejection import RejectedRow
from clsgen_dist.data.reading.sniff import BYTE_ORDER_MARK
from clsgen_dist.errors import UserError

COLUMNS = Columns(
    difficulty="difficulty", evidence="evidence", counter_evidence="against", verdict="verdict", chosen="chosen",
    rejected="rejected", groups=("site",), cluster="patient",
)  # fmt: skip
NAMES = ["id", "text", "label", "explanation", "explanations", "difficulty", "evidence", "against", "verdict", "chosen",
         "rejected", "provenance", "site", "patient", "other", "text\u200b", ""]  # fmt: skip
DEEP = "[" * 3000 + "]" * 3000
ODD = [
    *("", " ", "\r", "\n", "\x00", "\ud800", "\ufeff", "\u200b", "\u2026", '"', "'", "-", "a...b", "=1+1"),
    *("nan", "None", "yes", "no", "True", "0.0", "1/2", "1e999", "1" * 400, "b'x'", "'[1]'"),
    *("[", "[]", "[...]", "['a' 'b']", '["a", 1]', "array(['a'], dtype=object)", DEEP, "(" * 3000 + ")"),
    *("{", "{'a'}", '{"a": 1}', "{'a': 2}", '{"a": ' + DEEP + "}"),
]
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 2**63, 1e308, -0.0, True, False])
TEXT = st.sampled_from(ODD) | st.text(max_size=12)
CELLS = st.recursive(
    st.none() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.dictionaries(st.sampled_from(NAMES), CELLS, max_size=8)
LINES = (
    RECORDS.map(lambda record: json.dumps(record).encode())
    | RECORDS.map(lambda record: json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    | CELLS.map(lambda cell: json.dumps(cell).encode())
    | st.binary(max_size=12)
    | st.sampled_from(
        [b"{", b"}", b"\xff", b"null", b'{"text": "a"} x', b"\xef\xbb\xbf", b"\x00" * 9, b"\x1f\x8b", b" "]
    )
)
QUICK = settings(
    max_examples=250, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def rows_of(path, space, labels=None):
    """How many rows are read or rejected; None if the file is refused with an error for people."""
    try:
        rows = list(iter_rows(find_source(str(path)), columns=COLUMNS, labels=labels, space=space))
        texts = list(iter_texts(str(path), COLUMNS, every_column=True))
    except UserError:
        return None
    assert all(isinstance(row, (Example, RejectedRow)) for row in rows)
    assert [row.line for row in texts] == [row.line for row in rows], "the same rows are read and predicted"
    assert all(row.rejected or row.text.strip() for row in texts)
    return len(rows)


SPACES = st.sampled_from(["auto", "single", "multilabel", "ordinal"])


@QUICK
@given(lines=st.lists(LINES, max_size=8), space=SPACES, ending=st.sampled_from([b"\n", b"\r\n"]), last=st.booleans())
def test_no_line_of_jsonl_is_lost(tmp_path, lines, space, ending, last):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ending.join(lines) + (ending if last else b""))
    count = rows_of(path, space, labels=["yes", "no"] if last else None)
    given_lines = path.read_bytes().removeprefix(BYTE_ORDER_MARK).split(b"\n")
    assert count in (None, sum(bool(line.strip()) for line in given_lines))


@QUICK
@given(record=RECORDS, space=SPACES)
def test_a_good_row_survives_any_neighbour(tmp_path, record, space):
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"id": "a", "text": "good", "label": "yes"})
    path.write_text(f"{good}\n{json.dumps(record)}\n{good}\n")
    rows = list(iter_rows(find_source(str(path)), columns=COLUMNS, labels=None, space=space))
    assert len(rows) == 3 and isinstance(rows[0], Example) and isinstance(rows[2], Example)
    detect_space([record.get("label"), record.get("evidence")])


@QUICK
@given(
    rows=st.lists(st.lists(TEXT, min_size=4, max_size=4), max_size=6), space=SPACES, delimiter=st.sampled_from(",;\t|")
)
def test_no_record_of_csv_is_lost(tmp_path, rows, space, delimiter):
    """Those that a writer of CSV wrote; it cannot write lone surrogates."""
    path, text = tmp_path / "rows.csv", io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(["id", "text", "label", "evidence"])
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))
    assert rows_of(path, space) == len(rows)


PIECES = [
    b",",
    b";",
    b"\t",
    b'"',
    b"a",
    b"text",
    b"label",
    b"\n",
    b"\r\n",
    b"\r",
    b"\xff",
    b"\x00",
    b" ",
    b"sep=;\n",
    b"'",
    b"\\",
]


@settings(QUICK, max_examples=400)
@given(data=st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=40).map(b"".join), named=st.booleans())
def test_no_line_of_csv_without_quotes_is_lost(tmp_path, data, named):
    path = tmp_path / "rows.csv"
    path.write_bytes((b"text,label\n" if named else b"") + data)
    count = rows_of(path, "auto")
    if named and b'"' not in data and count is not None:
        lines = re.split(rb"\r\n|\r|\n", path.read_bytes().removeprefix(BYTE_ORDER_MARK))
        assert count == sum(bool(line) for line in lines[1:])


@QUICK
@given(data=st.binary(max_size=200), kind=st.sampled_from(["jsonl.gz", "csv.gz", "parquet", "tsv", "ndjson"]))
def test_any_bytes_under_any_name_are_refused_in_words(tmp_path, data, kind):
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(data)
    count = rows_of(path, "auto")
    assert count is None or count >= 0


@pytest.mark.parametrize(
    "cell", [*ODD, *string.punctuation, 10**400, [10**400, 1], {"a": 10**400}, [[1, 10**400]]], ids=repr
)
def test_odd_cells_in_every_column(tmp_path, cell):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "a text", "label": "yes", name: cell} for name in NAMES]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for space in ("auto", "single", "multilabel", "ordinal"):
        assert rows_of(path, space) == len(rows)
        assert rows_of(path, space, labels=["yes", "no"]) == len(rows)
