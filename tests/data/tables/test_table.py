"""Tables on disk: the same rows as read, built once, by any number of processes, and resumed after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading import records as read
from clsgen_dist.data.reading.ingest import read_examples
from clsgen_dist.data.tables.build import open_table
from clsgen_dist.data.tables.spec import TableSpec
from clsgen_dist.errors import DataError


def _spec(encoder, **changes):
    options = {
        "columns": Columns(),
        "labels": None,
        "max_explanation_length": 64,
        "tokens_of": encoder.tokens_of,
        "end_token": encoder.end_token,
        "tokenizer": encoder.tokenizer_key,
    }
    return TableSpec(**{**options, **changes})


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _assert_same_as_read(table, source, encoder, labels=None):
    truth = read_examples(source, columns=Columns(), labels=labels, max_bad_fraction=1, quarantine=None)
    assert [table.example(i) for i in range(len(table))] == truth.examples
    assert [table.id(i) for i in range(len(table))] == [e.id for e in truth.examples]
    assert table.card.labels == truth.labels
    for i, example in enumerate(truth.examples):
        assert table.text_ids(i).tolist() == encoder.tokens_of([example.text])[0]
        assert table.text_length_N[i] == len(table.text_ids(i))
        assert table.label_N[i] == (-1 if example.label is None else truth.labels.index(example.label))
        spans = table.explanation_length_E[table.explanation_start_N1[i] : table.explanation_start_N1[i + 1]]
        expected = encoder.explanations(example.explanations)
        assert [table.explanation_ids(i, k).tolist() for k in range(len(spans))] == expected
        assert spans.tolist() == [len(e) for e in expected]
    assert list(table.texts()) == [e.text for e in truth.examples]
    tokens = [t for _, starts, values in table.token_batches() for t in np.split(values, starts[1:-1])]
    assert [t.tolist() for t in tokens if len(tokens)] == [table.text_ids(i).tolist() for i in range(len(table))]
    return truth


def test_a_table_has_the_rows_of_its_source(tmp_path, mixed, encoder):
    source = _write(tmp_path / "rows.jsonl", mixed)
    _assert_same_as_read(open_table(source, _spec(encoder)), source, encoder)


def test_parts_read_by_several_processes_make_the_same_table(tmp_path, mixed, encoder, monkeypatch):
    """Cut in the middle of lines, with bad lines, long lines and an id repeated across parts."""
    rows = [json.dumps(row) for row in mixed]
    rows[5:5] = ["{broken", "", json.dumps({"text": "x" * 5000, "label": "no"})]
    rows.append(json.dumps({**mixed[2], "text": "again"}))
    source = str(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text("\ufeff" + "\n".join(rows))
    full = open_table(source, _spec(encoder))
    monkeypatch.setattr(read, "PART_BYTES", 300)
    parts = open_table(source, _spec(encoder, max_explanation_length=65))  # another key, the same rows
    assert len(list(parts.folder.glob("part-*.arrow"))) > 10
    for table in (full, parts):
        truth = _assert_same_as_read(table, source, encoder)
        assert sorted((r.line, r.code, r.reason) for r in table.rejected()) == sorted(
            (r.line, r.code, r.reason) for r in truth.rejected
        )
        assert table.card.rejected == {"not-json": 1, "duplicate-id": 1}


@pytest.mark.parametrize("kind", ["csv", "parquet", "saved"])
def test_other_formats_make_the_same_table(kind, tmp_path, mixed, encoder, monkeypatch):
    from datasets import Dataset

    monkeypatch.setattr(read, "PART_ROWS", 7)
    uniform = [{"label": None, "explanations": [], **row} for row in mixed]
    source = str(tmp_path / f"rows.{kind}")
    if kind == "csv":
        import csv

        with open(source, "w", newline="") as file:
            writer = csv.DictWriter(file, list(uniform[0]))
            writer.writeheader()
            writer.writerows({**row, "explanations": json.dumps(row["explanations"])} for row in uniform)
    elif kind == "parquet":
        Dataset.from_list(uniform).to_parquet(source, batch_size=5)
    else:
        Dataset.from_list(uniform).save_to_disk(source)
    _assert_same_as_read(open_table(source, _spec(encoder)), source, encoder)


def test_the_arrow_files_open_with_datasets(tmp_path, mixed, encoder):
    from datasets import Dataset

    table = open_table(_write(tmp_path / "rows.jsonl", mixed), _spec(encoder))
    [file] = table.folder.glob("part-*.arrow")
    assert Dataset.from_file(str(file))["id"][:] == [row["id"] for row in mixed]


def test_a_table_is_rebuilt_only_when_its_inputs_change(tmp_path, mixed, encoder):
    source = _write(tmp_path / "rows.jsonl", mixed)
    first = open_table(source, _spec(encoder)).folder
    assert first.parent == tmp_path / ".clsgen"
    stamp = (first / "table.json").stat().st_mtime_ns
    assert open_table(source, _spec(encoder)).folder == first
    assert (first / "table.json").stat().st_mtime_ns == stamp
    others = {
        open_table(source, _spec(encoder, **change)).folder
        for change in (
            {"labels": ("no", "yes")},
            {"max_explanation_length": 63},
            {"tokenizer": "other"},
            {"columns": Columns(explanations="elsewhere")},
        )
    }
    _write(tmp_path / "rows.jsonl", mixed[:-1])
    others.add(open_table(source, _spec(encoder)).folder)
    assert len(others) == 5 and first not in others


def test_a_table_of_another_format_is_rebuilt(tmp_path, mixed, encoder, monkeypatch):
    from clsgen_dist.data.tables import spec

    source = _write(tmp_path / "rows.jsonl", mixed)
    now = open_table(source, _spec(encoder)).folder
    monkeypatch.setattr(spec, "FORMAT", spec.FORMAT - 1)
    assert open_table(source, _spec(encoder)).folder != now


def test_notices_are_counted_over_all_parts(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(read, "PART_BYTES", 300)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})  # in this process
    rows = [{"text": f"t{n}", "label": ("0.0", "1.0", "nan")[n % 3], "explanation": "['a', 'b']"} for n in range(30)]
    table = open_table(_write(tmp_path / "rows.jsonl", rows), _spec(encoder))
    assert len(list(table.folder.glob("part-*.arrow"))) > 3
    counts = {notice: count for notice, (count, _) in table.card.noticed.items()}
    assert counts == {"respelt-label": 20, "missing-label": 10, "list-text": 30}
    assert "20 labels like '0.0' read as the class they mean" in table.card.summary()


def test_read_only_data_have_their_table_in_the_users_cache(tmp_path, mixed, encoder, monkeypatch):
    (tmp_path / "data").mkdir()
    source = _write(tmp_path / "data" / "rows.jsonl", mixed)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").chmod(0o555)
    assert open_table(source, _spec(encoder)).folder.parent == tmp_path / "cache" / "clsgen_dist" / "tables"


def test_a_row_with_too_long_an_explanation_is_rejected(tmp_path, encoder):
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y", "explanation": "so " * 100}]
    table = open_table(_write(tmp_path / "rows.jsonl", rows), _spec(encoder))
    [rejected] = table.rejected()
    assert (
        rejected.code == "long-explanation"
        and rejected.line == 2
        and "longer than data.max_explanation_length 64" in rejected.reason
    )
    assert (len(table), table.card.unexplained) == (1, 1)


def test_a_row_of_200_000_characters_is_one_row(tmp_path, encoder):
    rows = [{"text": "word " * 40_000, "label": "x"}, {"text": "b", "label": "y"}]
    table = open_table(_write(tmp_path / "rows.jsonl", rows), _spec(encoder))
    assert table.text_length_N[0] > 30_000
    assert len(encoder.build_prompt(table.text_ids(0))) == encoder.max_prompt_length


def test_a_batch_of_long_texts_has_fewer_rows(tmp_path, encoder, monkeypatch):
    from clsgen_dist.data.tables import table_part

    monkeypatch.setattr(table_part, "_BATCH_CHARACTERS", 1000)
    asked: list[int] = []

    def tokens_of(texts):
        asked.append(sum(map(len, texts)))
        return encoder.tokens_of(texts)

    rows = [{"text": f"{n} " + "word " * 100, "label": "xy"[n % 2]} for n in range(20)]
    table = open_table(_write(tmp_path / "rows.jsonl", rows), _spec(encoder, tokens_of=tokens_of))
    assert len(table) == 20 and [table.example(n).text[:2].strip() for n in (0, 9)] == ["0", "9"]
    assert max(asked) < 2000 and sum(asked) > 20 * 500


def test_a_label_that_only_rejected_rows_have_is_not_a_class(tmp_path, encoder):
    rows = [
        {"id": 1, "text": "a", "label": "a"},
        {"id": 1, "text": "b", "label": "b"},
        {"id": 2, "text": "c", "label": "c"},
    ]
    table = open_table(_write(tmp_path / "rows.jsonl", rows), _spec(encoder))
    assert (table.card.labels, table.label_N.tolist()) == (["a", "c"], [0, 1])


def test_a_file_with_a_very_long_name_has_a_table(tmp_path, encoder):
    name = "n" * 245 + ".jsonl"
    assert len(open_table(_write(tmp_path / name, [{"text": "a", "label": "x"}]), _spec(encoder))) == 1


def test_a_file_in_utf16_is_refused_with_the_command_that_converts_it(tmp_path, encoder):
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "x"}', encoding="utf-16")
    with pytest.raises(DataError, match=r"is UTF-16.*iconv -f UTF-16 -t UTF-8"):
        open_table(str(tmp_path / "rows.jsonl"), _spec(encoder))


def test_a_table_that_cannot_be_written_is_an_error_with_its_path_and_a_fix(tmp_path, mixed, encoder, monkeypatch):
    source = _write(tmp_path / "rows.jsonl", mixed)
    (tmp_path / ".clsgen").write_text("in the way")  # so the user's cache is taken
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"cannot be stored in .*cache/clsgen_dist.*XDG_CACHE_HOME"):
        open_table(source, _spec(encoder))


_BUILD = """
import logging
import sys
from clsgen_dist.data.reading import records as read
from clsgen_dist.data.encode import Encoder
from clsgen_dist.data.example import Columns
from clsgen_dist.data.tables.build import open_table
from clsgen_dist.data.tables.spec import TableSpec
from clsgen_dist.model.backbone import load_tokenizer

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    read.PART_BYTES = 20_000
    encoder = Encoder(load_tokenizer(sys.argv[2]), system="Be brief.", question="Why?", max_prompt_length=96)
    spec = TableSpec(Columns(), None, 64, encoder.tokens_of, encoder.end_token, encoder.tokenizer_key)
    table = open_table(sys.argv[1], spec)
    print(len(table), table.card.sha256)
"""


@pytest.mark.long
def test_a_killed_build_resumes_and_leaves_no_process(tmp_path, smollm2, encoder):
    rows = [{"id": str(i), "text": f"row {i} " + "word " * (i % 97), "label": "ab"[i % 2]} for i in range(6_000)]
    source = _write(tmp_path / "rows.jsonl", rows)
    script = tmp_path / "build.py"
    script.write_text(_BUILD)
    command = [sys.executable, str(script), source, str(smollm2)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 90
    while len(done := list(tmp_path.glob(".clsgen/*.partial/part-*.json"))) < 3:
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    while (tmp := _session(first.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not tmp, "workers outlived the process that started them"
    stamps = {path: path.stat().st_mtime_ns for path in done}
    second = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "resuming the build in" in second.stdout
    [folder] = [p for p in (tmp_path / ".clsgen").iterdir() if p.is_dir()]
    assert all((folder / path.name).stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    count, digest = second.stdout.split()[-2:]
    assert int(count) == len(rows)
    # Built without interruption, it is the same table.
    copy = tmp_path / "again"
    copy.mkdir()
    other = subprocess.run(
        [*command[:2], _write(copy / "rows.jsonl", rows), str(smollm2)], capture_output=True, text=True, check=True
    )
    assert other.stdout.split()[-1] == digest


def _session(leader):
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


@pytest.mark.parametrize("damage", ["card emptied", "part cut", "part gone", "column gone", "column cut"])
def test_a_damaged_table_is_rebuilt_with_a_warning(tmp_path, mixed, encoder, damage, caplog):
    source = _write(tmp_path / "rows.jsonl", mixed)
    full = open_table(source, _spec(encoder))
    folder, sha256 = full.folder, full.card.sha256
    file = folder / {"card": "table.json", "part": "part-00000.arrow", "column": "label.npy"}[damage.split()[0]]
    if damage.endswith("gone"):
        file.unlink()
    else:
        file.write_bytes(b"" if damage.endswith("emptied") else file.read_bytes()[:-30])
    again = open_table(source, _spec(encoder))
    assert again.card.sha256 == sha256 and again.example(40).text == mixed[40]["text"]
    [record] = [r for r in caplog.records if r.name.startswith("clsgen_dist.")]
    assert record.levelname == "WARNING" and f"the table {folder} is damaged" in record.message


def test_a_truncated_part_of_an_interrupted_build_is_rewritten(tmp_path, mixed, encoder, monkeypatch):
    source = _write(tmp_path / "rows.jsonl", mixed)
    full = open_table(source, _spec(encoder))
    partial = full.folder.with_name(full.folder.name + ".partial")
    full.folder.rename(partial)
    part = partial / "part-00000.arrow"
    part.write_bytes(part.read_bytes()[:-100])
    assert open_table(source, _spec(encoder)).card.sha256 == full.card.sha256


def test_a_read_only_cache_next_to_the_data_is_left_alone(tmp_path, mixed, encoder, monkeypatch):
    source = _write(tmp_path / "rows.jsonl", mixed)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / ".clsgen").mkdir(mode=0o555)
    assert open_table(source, _spec(encoder)).folder.parent == tmp_path / "cache" / "clsgen_dist" / "tables"


def test_a_label_column_of_ids_is_refused(tmp_path, encoder, monkeypatch):
    from clsgen_dist.data.tables import class_columns

    monkeypatch.setattr(class_columns, "_MAX_CLASSES", 30)
    rows = [{"text": f"t{n}", "label": f"id {n}"} for n in range(40)]
    with pytest.raises(DataError, match=r"has 40 classes, .* expected at most 30: check that data.columns.label names"):
        open_table(_write(tmp_path / "rows.jsonl", rows), _spec(encoder))
