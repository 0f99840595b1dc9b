"""Files of any kind in and out: columns kept, order kept, one window after the other, standard streams."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clsgen_dist.data.example import Columns
from clsgen_dist.decoding.draft import Draft
from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.errors import DataError, ModelError, SettingsError
from clsgen_dist.inference import predict_file as module
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.predict_file import predict_file
from clsgen_dist.inference.raw_predictions import RawPrediction
from clsgen_dist.inference.stored_predictions import Ranks
from tests.inference.conftest import hand_made_export

ROWS = [
    {"id": "a", "text": "one", "label": "yes", "age": 61, "site": "left", "p_yes": "mine", "tags": ["x", "y"]},
    {
        "id": "b",
        "text": "two words",
        "label": None,
        "age": 47.5,
        "site": 'a "quoted", cell\nof two lines',
        "p_yes": None,
    },
    {"id": "c", "text": None, "age": None, "site": "right", "late": True},
    {"id": "d", "text": "four", "age": 3, "site": "\ud83d left"},
]


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_rows_columns_stay_beside_the_answers(folder, rows, tmp_path):
    written = predict_file(folder, str(rows), tmp_path / "out.jsonl")
    found = lines(tmp_path / "out.jsonl")
    assert [row["id"] for row in found] == ["a", "b", "c", "d"]
    assert (written.rows, written.bad, [row.line for row in written.rejected]) == (4, 1, [3])
    answer = dict.fromkeys(("label", "probabilities", "explanation", "explanation_cut"), 0)  # random weights never end
    assert found[0] | answer == {
        **{"id": "a", "text": "one", "input_label": "yes", "age": 61, "site": "left", "input_p_yes": "mine"},
        **{"tags": ["x", "y"], **answer},
    }
    assert found[2] == {"id": "c", "text": None, "age": None, "site": "right", "late": True, "code": "empty-text"} | {
        "error": found[2]["error"]
    }
    predict_file(folder, str(rows), tmp_path / "bare.jsonl", keep_columns=False)
    assert set(lines(tmp_path / "bare.jsonl")[0]) == {"id", *answer}


def test_csv_and_parquet_hold_the_same_answers_flat(folder, rows, tmp_path):
    predict_file(folder, str(rows), tmp_path / "out.jsonl")
    nested = lines(tmp_path / "out.jsonl")
    names = ["id", "text", "input_label", "age", "site", "input_p_yes", "tags", "late"]
    names += ["label", "p_no", "p_yes", "explanation", "explanation_cut", "error", "code"]
    predict_file(folder, str(rows), tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.names == names
    types = {"age": pa.float64(), "late": pa.bool_(), "p_no": pa.float64(), "tags": pa.string(), "label": pa.string()}
    assert {name: table.schema.field(name).type for name in types} == types
    flat = table.to_pylist()
    assert flat[0]["tags"] == '["x", "y"]' and flat[0]["input_p_yes"] == "mine" and flat[3]["site"] == "\\ud83d left"
    for row, answer in zip(flat, nested, strict=True):
        assert (row["label"], row["explanation"], row["code"]) == tuple(
            map(answer.get, ("label", "explanation", "code"))
        )
        assert (row["p_no"], row["p_yes"]) == tuple(answer.get("probabilities", {}).get(n) for n in ("no", "yes"))
    predict_file(folder, str(rows), tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert list(cells[0]) == names and [row["id"] for row in cells] == ["a", "b", "c", "d"]
    assert cells[1]["site"] == ROWS[1]["site"] and cells[2]["late"] == "true" and cells[2]["label"] == ""
    assert float(cells[0]["p_no"]) == nested[0]["probabilities"]["no"]


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_files_written_are_files_read(kind, folder, tmp_path):
    given = tmp_path / f"rows{kind}"
    table = pa.table({"id": ["a", "b"], "text": ["one", "two words"], "age": [61, 47], "label": ["no", "yes"]})
    if kind == ".csv":
        given.write_text("id,text,age,label\na,one,61,no\nb,two words,47,yes\n")
    else:
        pq.write_table(table, given)
    predict_file(folder, str(given), tmp_path / f"first{kind}")
    predict_file(folder, str(tmp_path / f"first{kind}"), tmp_path / "second.jsonl")
    found = lines(tmp_path / "second.jsonl")
    assert [str(row["age"]) for row in found] == ["61", "47"] and found[0]["input_label"] == found[0]["label"]


def test_windows_change_no_answer_and_are_predicted_once(folder, tmp_path, monkeypatch):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"id": n, "text": "x" * (n % 9) or None, "n": n}) + "\n" for n in range(40)))
    predict_file(folder, str(file), tmp_path / "whole.jsonl", batch_size=4, explain=False)
    monkeypatch.setattr(module, "_WINDOW", 7)
    written = predict_file(folder, str(file), tmp_path / "parts.jsonl", batch_size=4, explain=False)
    whole, parts = lines(tmp_path / "whole.jsonl"), lines(tmp_path / "parts.jsonl")
    assert [row["n"] for row in parts] == list(range(40)) and written.bad == 5
    for a, b in zip(whole, parts, strict=True):
        assert {k: v for k, v in a.items() if k != "probabilities"} == {
            k: v for k, v in b.items() if k != "probabilities"
        }
        assert b.get("probabilities") == pytest.approx(a.get("probabilities"), abs=1e-5)
    assert not list(tmp_path.glob("*.parts"))


def test_no_column_of_a_row_is_lost_or_taken_for_the_answers(folder, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [
        {"id": 7, "case": "c1", "text": "one", "label": "gold", "input_label": "older", "p_yes": 0.11, "input_note": 1},
        {"id": 8, "case": "c2", "text": None, "label": "gold", "p_yes": 0.77, "score": float("nan")},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = Columns(id="case")
    predict_file(folder, str(file), tmp_path / "out.csv", columns, explain=False)
    good, bad = csv.DictReader((tmp_path / "out.csv").open(newline=""))
    assert (good["id"], good["case"], good["input_id"]) == ("c1", "c1", "7")
    assert (good["input_label"], good["input_input_label"], good["input_note"]) == ("gold", "older", "1")
    assert (bad["p_yes"], bad["input_p_yes"], good["input_p_yes"]) == ("", "0.77", "0.11")
    predict_file(folder, str(file), tmp_path / "out.jsonl", columns, explain=False)
    assert "NaN" not in (tmp_path / "out.jsonl").read_text() and lines(tmp_path / "out.jsonl")[1]["score"] is None
    predict_file(folder, str(tmp_path / "out.csv"), tmp_path / "again.jsonl", Columns(), explain=False)
    again = lines(tmp_path / "again.jsonl")[0]
    assert again["input_input_label"] == "gold" and again["input_label"] == again["label"]


def test_dates_are_written_as_dates_and_repeated_columns_are_refused(folder, tmp_path):
    day = pa.array([date(2024, 1, 2)])
    pq.write_table(pa.table({"text": ["one"], "day": day}), tmp_path / "rows.parquet")
    predict_file(folder, str(tmp_path / "rows.parquet"), tmp_path / "out.csv", explain=False)
    assert next(csv.DictReader((tmp_path / "out.csv").open(newline="")))["day"] == "2024-01-02"
    predict_file(folder, str(tmp_path / "rows.parquet"), tmp_path / "out.parquet", explain=False)
    assert pq.read_table(tmp_path / "out.parquet")["day"].to_pylist() == ["2024-01-02"]
    (tmp_path / "twice.csv").write_text("text,note,note\none,a,b\n")
    with pytest.raises(DataError, match="1 columns more than once: note"):
        predict_file(folder, str(tmp_path / "twice.csv"), tmp_path / "out.jsonl", explain=False)
    predict_file(folder, str(tmp_path / "twice.csv"), tmp_path / "out.jsonl", explain=False, keep_columns=False)


def test_a_model_that_gives_no_finite_number_is_named_whatever_the_output(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Predictor, "compute", lambda self, batches, number, **_: {
        row: RawPrediction(first=(float("nan"),) * 2, after=None, explanation=None, truncated=False)
        for row in batches.rows[number]
    })  # fmt: skip
    (tmp_path / "rows.csv").write_text("text\none\n")
    for name in ("out.jsonl", "out.csv"):
        with pytest.raises(ModelError, match="1 of 1 rows"):
            predict_file(folder, str(tmp_path / "rows.csv"), tmp_path / name)
        assert not (tmp_path / name).exists()


def test_several_ranks_have_no_standard_streams(folder, rows, monkeypatch):
    monkeypatch.setattr(module, "predicting_ranks", lambda: contextlib.nullcontext(Ranks(0, 2)))
    for data, output in (("-", "out.jsonl"), (str(rows), "-")):
        with pytest.raises(DataError, match="is - with 2 ranks"):
            predict_file(folder, data, output)


def test_other_readings_and_label_spaces_are_flat_too(tmp_path):
    folder = hand_made_export(tmp_path / "model", ["low", "mid", "high"], "multilabel")
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n')
    predict_file(folder, str(tmp_path / "rows.jsonl"), tmp_path / "out.csv", explain=False)
    [row] = csv.DictReader((tmp_path / "out.csv").open(newline=""))
    assert list(row) == ["id", "text", "label", "p_low", "p_mid", "p_high"]
    assert isinstance(json.loads(row["label"]), list) and row["id"] == "rows.jsonl:1"


@pytest.mark.parametrize(
    "text",
    [
        '{"text": "one", "id": 7}\n',
        "id,text\n7,one\n",
        '\ufeff{"text": "one", "id": 7}\n',
        '\n\n{"text": "one", "id": 7}',
    ],
)
def test_standard_input_and_output(text, folder, monkeypatch, capfdbinary):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    written = predict_file(folder, "-", "-", explain=False)
    line = json.loads(capfdbinary.readouterr().out.splitlines()[-1])
    assert written.rows == 1 and line["id"] == "7" and line["text"] == "one" and line["label"] in ("no", "yes")


def test_what_cannot_be_written_or_read_is_refused_at_once(folder, rows, tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match=r"out.xlsx ends in '.xlsx', expected .jsonl, .csv, .parquet"):
        predict_file(folder, str(rows), tmp_path / "out.xlsx")
    with pytest.raises(DataError, match="1 of 4 rows are bad"):
        predict_file(folder, str(rows), tmp_path / "out.jsonl", max_bad_fraction=0.1)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(DataError, match="has no rows"):
        predict_file(folder, "-", tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="no text column 'words'"):
        predict_file(folder, str(_csv(tmp_path)), tmp_path / "out.jsonl", Columns(text="words"))


def _csv(tmp_path: Path) -> Path:
    (tmp_path / "other.csv").write_text("id,text\n7,one\n")
    return tmp_path / "other.csv"


MEASURE = """
import json, resource, sys
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.predict_file import predict_file
from clsgen_dist.inference.raw_predictions import RawPrediction

folder, count, output = sys.argv[1], int(sys.argv[2]), sys.argv[3]
answer = RawPrediction(first=(0.1, 0.2), after=None, explanation="because so", truncated=False)
Predictor.compute = lambda self, batches, number, **_: dict.fromkeys(batches.rows[number], answer)
with open(output + ".rows.jsonl", "w") as file:
    for n in range(count):
        file.write(json.dumps({"id": n, "text": f"row {n} of many", "age": n % 90}) + "\\n")
written = predict_file(folder, output + ".rows.jsonl", output, batch_size=64)
assert written.rows == count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_ten_times_the_rows_take_the_same_memory(kind, folder, tmp_path):
    """All but the model itself, which computes nothing here."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'kernels'}", "OMP_NUM_THREADS": "1"}
    peaks = []
    for count in (20_000, 200_000):
        command = [sys.executable, "-c", MEASURE, str(folder), str(count), str(tmp_path / f"{count}{kind}")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 40, f"{peaks} MB"


def test_a_row_whose_explanation_cannot_be_written_has_an_error_and_the_others_an_answer(folder, tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": n, "text": f"text {n}"}) + "\n" for n in range(5)))
    chosen = Draft._chosen

    def failing(self, logits_V):
        if self.sampling.seed and len(self.tokens) == 3 and not failed:
            failed.append(self)
            raise RuntimeError("no token")
        return chosen(self, logits_V)

    failed: list[Draft] = []
    monkeypatch.setattr(Draft, "_chosen", failing)
    written = predict_file(
        folder, str(rows), tmp_path / "out.jsonl", decoding=DecodingSettings(temperature=1.0, seed=7)
    )
    found = lines(tmp_path / "out.jsonl")
    assert written.bad == 1 and [row.code for row in written.rejected] == ["not-explained"]
    assert (
        sum("explanation" in row for row in found) == 4 and [row.get("error") for row in found].count("no token") == 1
    )


def test_where_no_row_can_be_explained_the_command_fails_and_says_why(folder, tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": n, "text": f"text {n}"}) + "\n" for n in range(3)))

    def failing(self, logits_V):
        raise RuntimeError("no token")

    monkeypatch.setattr(Draft, "_chosen", failing)
    sampled = DecodingSettings(temperature=1.0, seed=7)
    with pytest.raises(ModelError, match="no row could be explained; the first that failed: no token"):
        predict_file(folder, str(rows), tmp_path / "out.jsonl", decoding=sampled)
    assert not (tmp_path / "out.jsonl").exists()
