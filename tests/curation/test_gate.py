"""`clsgen data gate`: destinations, reasons, and files that add up to the input byte for byte."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clsgen_dist.curation import gate_files, row_source
from clsgen_dist.curation.gate import GateSummary, gate, restore
from clsgen_dist.curation.gate_files import Destination, restored_lines, split_lines
from clsgen_dist.curation.gate_report import to_text
from clsgen_dist.curation.raw_rows import suffix_of
from clsgen_dist.curation.settings import CurationSettings, SeveritySettings
from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.ingest import iter_rows
from clsgen_dist.data.reading.records import find_source
from clsgen_dist.errors import DataError, SettingsError
from tests.curation.planted_rows import good_rows
from tests.data.checks.planted import write_rows

DEFAULT = CurationSettings(severity=SeveritySettings(copies_input="reject"))


def run_gate(path, output, **options):
    """The gate, by default with its own settings but for copies, which are rejected."""
    return gate(
        str(path),
        output,
        **{"columns": Columns(), "labels": None, "space": "auto", "settings": DEFAULT} | options,
    )


def reasons(folder):
    """The lines of the reasons file."""
    return [json.loads(line) for line in (folder / "reasons.jsonl").read_text().splitlines()]


def faulty_rows():
    """40 good rows, in which rows 3, 7 and 12 have a fault."""
    rows = good_rows(40)
    rows[3]["explanation"] = rows[3]["text"]
    rows[7]["explanation"] = f"A mass of 999 mm is {rows[7]['label']}."
    rows[12]["text"] = ""
    return rows


def test_rows_go_where_their_gravest_issue_sends_them(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", faulty_rows())
    summary = run_gate(path, tmp_path / "out")
    assert summary.rows == {Destination.KEPT: 37, Destination.REVIEW: 1, Destination.REJECTED: 2}
    lines = Path(path).read_bytes().splitlines(keepends=True)
    assert (tmp_path / "out/review.jsonl").read_bytes() == lines[7]
    assert (tmp_path / "out/rejected.jsonl").read_bytes() == lines[3] + lines[12]
    kept = [line for number, line in enumerate(lines) if number not in (3, 7, 12)]
    assert (tmp_path / "out/kept.jsonl").read_bytes() == b"".join(kept)
    told = reasons(tmp_path / "out")
    assert [row["line"] for row in told] == list(range(1, 41))
    assert told[0] == {"line": 1, "id": "r0", "where": "kept", "issues": []}
    assert told[7]["issues"] == [{"code": "ungrounded-number", "severity": "review", "detail": "999"}]
    assert [issue["code"] for issue in told[3]["issues"]] == ["copies-input"]
    assert told[12]["issues"] == [{"code": "empty-text", "severity": "reject", "detail": "empty text"}]
    assert json.loads((tmp_path / "out/summary.json").read_text())["issues"] == {
        "copies-input": 1,
        "ungrounded-number": 1,
    }


def test_severities_decide_and_a_note_keeps_the_row(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", faulty_rows())
    severity = SeveritySettings(copies_input="note", ungrounded_number="off")
    summary = run_gate(path, tmp_path / "out", settings=CurationSettings(severity=severity))
    assert summary.rows == {"kept": 39, "rejected": 1} and summary.issues == {"copies-input": 1}
    assert reasons(tmp_path / "out")[3]["where"] == "kept"


def test_the_same_input_gives_the_same_bytes_and_a_second_run_is_done_at_once(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", faulty_rows())
    first, second = run_gate(path, tmp_path / "a"), run_gate(path, tmp_path / "b")
    assert first == second
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert names == ["kept.jsonl", "reasons.jsonl", "rejected.jsonl", "review.jsonl", "summary.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    (tmp_path / "a/kept.jsonl").write_text("edited since")
    assert run_gate(path, tmp_path / "a") == first
    assert (tmp_path / "a/kept.jsonl").read_text() == "edited since"


@pytest.mark.parametrize("name", ["rows.jsonl", pytest.param("rows.csv", marks=pytest.mark.long)])
def test_several_processes_write_the_same_bytes(tmp_path, monkeypatch, name):
    """In pieces of a few rows: repeated ids, frames, leaks and the label model's rows lie in different ones."""
    rows = good_rows(240) + faulty_rows()[:20]
    for number in range(30, 240, 30):
        rows[number]["explanation"] = f"The overall picture suggests {rows[number]['label']}, as experience teaches."
        rows[number + 1]["label"] = {"benign": "malignant", "malignant": "benign"}[rows[number + 1]["label"]]
        for leak in (rows[number + 2], rows[number + 3]):
            leak["text"] = f"{leak['label']}: {leak['text']}"
    path = write_rows(tmp_path / "rows.jsonl", rows)
    if name == "rows.csv":
        path = tmp_path / name
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text", "label", "explanation"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    summary = run_gate(path, tmp_path / "one")
    assert summary.rejections == {"duplicate-id": 19, "empty-text": 1}
    assert set(summary.issues) >= {"boilerplate", "label-error", "label-in-text"}
    monkeypatch.setattr(row_source, "_ROWS", 16)
    monkeypatch.setattr(row_source, "_FINER", 2**12)
    run_gate(path, tmp_path / "pieces")
    monkeypatch.setattr(row_source, "worker_count", lambda pieces: 2)
    run_gate(path, tmp_path / "processes")
    for file in (tmp_path / "one").iterdir():
        assert (tmp_path / "pieces" / file.name).read_bytes() == file.read_bytes()
        assert (tmp_path / "processes" / file.name).read_bytes() == file.read_bytes()


def test_a_folder_with_other_results_or_files_is_refused(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", faulty_rows())
    run_gate(path, tmp_path / "out")
    with pytest.raises(SettingsError, match=r"results of rows.jsonl, with other settings; name another folder"):
        run_gate(path, tmp_path / "out", settings=CurationSettings(min_words=4))
    other = write_rows(tmp_path / "other.jsonl", good_rows(20))
    with pytest.raises(SettingsError, match=r"results of rows\.jsonl; name another"):
        run_gate(other, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(SettingsError, match="holds other files"):
        run_gate(path, tmp_path / "mine")
    assert (tmp_path / "mine/notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert run_gate(path, tmp_path / "empty").rows["kept"] == 37


def test_what_is_no_file_of_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        run_gate(tmp_path / "none.jsonl", tmp_path / "out")
    with pytest.raises(DataError, match="not a folder of `clsgen data gate`"):
        restore(tmp_path, tmp_path / "rows.jsonl")
    assert list(tmp_path.iterdir()) == []
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in good_rows(60)).encode())[:700])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz is not a complete gzip file"):
        run_gate(cut, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [cut]


AWKWARD = {
    "bom.jsonl": b'\xef\xbb\xbf{"text": "a b c", "label": "x"}\r\n\r\n{broken\n\n{"text": "d", "label": "y"}',
    "blank.jsonl": b'\n\n{"text": "\xc3\xa4", "label": "x"}\n  \n[1]\n{"text": "\xff"}\n'
    b'{"text": "e", "label": "y"}\n\n\n',
    "quoted.csv": b'\xef\xbb\xbftext,label,explanation\r\n"a\r\n\r\nb",x,"too ""short"""\r\n'
    b"only one cell\r\n\r\nc,y,\r\n",
    "returns.csv": b"sep=;\rtext;label\ra;x\r\rb;y\r\xff;x\rc;x",
    "header.csv": b"text,label\n",
    "quoted_header.csv": b'text,"la\nbel"\na,x\nb,y\n',
}


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("is_compressed", [False, True])
def test_awkward_files_add_up_to_the_input(tmp_path, name, is_compressed):
    path = tmp_path / (name + ".gz" * is_compressed)
    path.write_bytes(gzip.compress(AWKWARD[name]) if is_compressed else AWKWARD[name])
    summary = run_gate(path, tmp_path / "out")
    restore(tmp_path / "out", tmp_path / f"again{suffix_of(path)}")
    again = (tmp_path / f"again{suffix_of(path)}").read_bytes()
    assert (gzip.decompress(again) if is_compressed else again) == AWKWARD[name]
    told = reasons(tmp_path / "out")
    assert len(told) == summary.rows.total()
    if name == "quoted.csv" and not is_compressed:
        assert [(row["line"], row["where"]) for row in told] == [(2, "rejected"), (5, "rejected"), (7, "kept")]
        header = b"\xef\xbb\xbftext,label,explanation\r\n"
        assert (tmp_path / "out/review.csv").read_bytes() == header
        assert (tmp_path / "out/kept.csv").read_bytes() == header + b"c,y,\r\n"


@given(
    lines=st.lists(st.sampled_from([b"a", b"", b"\xff", b"\xc3\xa4b", b"\xef\xbb\xbfc"]), max_size=12),
    ends=st.lists(st.sampled_from([b"\n", b"\r\n", b"\r"]), min_size=12, max_size=12),
    is_last_ended=st.booleans(),
    starts=st.sets(st.integers(1, 12)),
    where=st.lists(st.sampled_from(list(Destination)), min_size=12, max_size=12),
    name=st.sampled_from(["rows.jsonl", "rows.csv", "rows.TSV"]),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_with_any_destinations_add_up(tmp_path, lines, ends, is_last_ended, starts, where, name):
    data = b"".join(line + end for line, end in zip(lines, ends, strict=False))
    data = data if is_last_ended else data.rstrip(b"\r\n")
    path = tmp_path / name
    path.write_bytes(data)
    # A row begins where the reader saw something: never in an empty line.
    with_text = [n for n, line in enumerate(lines, start=1) if line]
    rows = [(line, where[line - 1]) for line in sorted(starts) if line in with_text] if name != "rows.jsonl" else []
    above = split_lines(path, tmp_path, iter(rows))
    assert b"".join(restored_lines(tmp_path, suffix_of(path), above, iter(rows))) == data


@given(
    st.lists(st.sampled_from([b"a", b",", b'"', b"\n", b"\r", b"\xff", b"\xc3\xa4", b'{"text": "a"}']), max_size=40),
    st.sampled_from(["rows.jsonl", "rows.csv"]),
    st.lists(st.sampled_from(list(Destination)), min_size=40, max_size=40),
)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_reader_takes_for_rows_adds_up(tmp_path, pieces, name, where):
    path = tmp_path / name
    path.write_bytes((b"text,label\n" if name == "rows.csv" else b'{"text": "first"}\n') + b"".join(pieces))
    try:
        found = list(iter_rows(find_source(str(path)), columns=Columns(), labels=None))
    except DataError:  # a quote that is never closed
        return
    rows = [(row.line, to) for row, to in zip(found, where, strict=False)]
    above = split_lines(path, tmp_path, iter(rows))
    assert b"".join(restored_lines(tmp_path, suffix_of(path), above, iter(rows))) == path.read_bytes()


def test_parquet_rows_keep_columns_types_and_order(tmp_path, monkeypatch):
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setattr(gate_files, "PARQUET_ROWS", 250)
    rows = [{**row, "size": number, "tags": [str(number)]} for number, row in enumerate(faulty_rows() * 15)]
    for number, row in enumerate(rows):
        row["id"] = f"p{number}"
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata({"by": "us"})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=330)
    off = SeveritySettings(boilerplate="off", label_error="off", copies_input="reject")
    summary = run_gate(tmp_path / "rows.parquet", tmp_path / "out", settings=CurationSettings(severity=off))
    files = {to: pyarrow.parquet.read_table(tmp_path / f"out/{to}.parquet") for to in Destination}
    assert {to: len(file) for to, file in files.items()} == summary.rows
    assert files[Destination.REVIEW].column("size").to_pylist() == [40 * round_ + 7 for round_ in range(15)]
    assert all(file.schema.equals(table.schema) for file in files.values())
    restore(tmp_path / "out", tmp_path / "again.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "again.parquet").equals(table)


def test_changed_files_are_not_restored(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", faulty_rows())
    run_gate(path, tmp_path / "out")
    kept = tmp_path / "out/kept.jsonl"
    kept.write_bytes(kept.read_bytes().replace(b"mm", b"cm", 1))
    with pytest.raises(DataError, match=r"does not add up to rows\.jsonl"):
        restore(tmp_path / "out", tmp_path / "again.jsonl")
    assert not (tmp_path / "again.jsonl").exists()


KILLED = """
import os, signal, sys
from clsgen_dist.curation import gate as module
from tests.curation.test_gate import run_gate
from pathlib import Path
place = module._place_rows
def dies(*arguments):
    for number, row in enumerate(place(*arguments)):
        if number == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        yield row
module._place_rows = dies
run_gate(sys.argv[1], Path(sys.argv[2]))
"""


def test_a_kill_leaves_no_folder_and_the_next_run_sweeps_what_was_written(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", faulty_rows())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED, path, str(tmp_path / "out")], env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists() and len(list(tmp_path.glob(".out.*.gate"))) == 1
    assert run_gate(path, tmp_path / "out").rows["kept"] == 37
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "rows.jsonl"]
    assert GateSummary.read(tmp_path / "out").rows["review"] == 1


def test_the_summary_says_which_source_is_bad(tmp_path):
    rows = faulty_rows()
    for number, row in enumerate(rows):
        row["provenance"] = "teacher:small" if number < 10 else "human"
    rows[20] |= {"explanations": ["It is a further sign."], "provenance": ["human", "teacher:big"]}
    del rows[30]["provenance"]
    rows[31]["explanation"] = None
    summary = run_gate(write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out")
    assert json.loads((tmp_path / "out/summary.json").read_text())["provenance"] == [
        {"provenance": "human", "kept": 27, "review": 0, "rejected": 0},
        {"provenance": "teacher:big", "kept": 1, "review": 0, "rejected": 0},
        {"provenance": "teacher:small", "kept": 8, "review": 1, "rejected": 1},
        {"provenance": None, "kept": 1, "review": 0, "rejected": 0},
    ]
    text = to_text(summary, tmp_path / "out")
    assert "| teacher:small     | 10   | 8 (80.0%)   | 1 (10.0%) | 1 (10.0%) |" in text
    assert "| (not stated)      | 1    | 1 (100.0%)" in text
    assert run_gate(tmp_path / "rows.jsonl", tmp_path / "out").provenance == summary.provenance
    plain = run_gate(write_rows(tmp_path / "plain.jsonl", faulty_rows()), tmp_path / "plain")
    assert "explanations from" not in to_text(plain, tmp_path / "plain")
