"""The report of an evaluation: figures, sections and files, on a hand-made export whose labels follow its own head."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import signal
import time

import numpy as np
import pytest

from clsgen_dist.commands.evaluate import run as evaluate_command
from clsgen_dist.data.example import Columns
from clsgen_dist.errors import CapabilityLostError, SettingsError
from clsgen_dist.evaluation import baselines
from clsgen_dist.evaluation.metrics import class_metrics
from clsgen_dist.hf_export.artifact import ModelCard
from clsgen_dist.inference import evaluate as module
from clsgen_dist.inference.evaluate import evaluate
from clsgen_dist.inference.measures import spread_sample
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.report_sections import document


@pytest.fixture
def rows(folder, tmp_path):
    """80 rows: labels are the head's decision, wrong in every fifth row; two sites, three rows a patient."""
    rng = np.random.default_rng(0)
    seen = ("absent", "seen", "seen")
    texts = [f"note {n}: size {rng.integers(1, 90)} mm, glioblastoma {seen[n % 3]}" for n in range(80)]
    predictions = Predictor(folder).predict(texts, explain=False)
    margin = np.array([p.logits[1] - p.logits[0] for p in predictions])
    yes = (margin > np.median(margin)) ^ (np.arange(80) % 5 == 0)
    path = tmp_path / "rows" / "test.jsonl"
    path.parent.mkdir()
    label = np.where(yes, "yes", "no").tolist()
    cells = [
        {"id": f"r{n}", "text": text, "label": label[n], "explanation": f"{label[n]}, size", "site": "AB"[n % 2],
         "patient": n // 3}
        for n, text in enumerate(texts)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    return path


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """A tenth of the bootstrap draws, for time."""
    from clsgen_dist.evaluation import bootstrap

    for function in (bootstrap.bootstrap_intervals, bootstrap.paired_difference):
        monkeypatch.setattr(function, "__kwdefaults__", {**function.__kwdefaults__, "resamples": 60})


@pytest.fixture
def columns():
    return Columns(groups=("site",), cluster="patient")


def test_a_report_has_every_section_and_its_figures_are_those_of_the_arrays(folder, rows, columns, tmp_path):
    dataclasses.replace(ModelCard.read(folder), trained={"backbone": str(folder)}).write(folder)
    found = evaluate(
        folder, str(rows), str(rows), columns, output=tmp_path / "report", compare=folder, faithfulness_rows=6,
        capability_tokens=2100,
    )  # fmt: skip
    p = np.array([[q.probabilities[name] for name in ("no", "yes")] for q in found.predictions])
    expected = class_metrics(p, found.labels, "single", 1)
    assert {name: m.value for name, m in found.decisions.metrics.items() if name in expected} == pytest.approx(expected)
    assert found.decisions.confusion_CC.sum() == 80
    assert [g.name for g in found.decisions.groups["site"].measured] == ["A", "B"]
    assert found.comparison.differences["auroc"].value == 0
    assert "accuracy" not in found.comparison.differences, "McNemar's test needs independent rows"
    written = json.loads((tmp_path / "report/report.json").read_text(), parse_constant=pytest.fail)
    assert written["decisions"]["metrics"]["auroc"]["value"] == pytest.approx(expected["auroc"])
    assert written["capability"]["drop_percent"]["interval"]["high"] is not None
    assert len(written["faithfulness"]["rows"]) == 6
    sections = [section.name for section in document(found).sections]
    assert sections == ["data", "decisions", "calibration", "groups", "hand-over", "explanations", "faithfulness",
                        "examples", "comparison", "capability", "provenance"]  # fmt: skip
    page = (tmp_path / "report/index.html").read_text()
    assert all(f'<section id="{name}"' in page for name in sections)
    assert not re.search(r"\bnan\b", re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL), re.IGNORECASE)


def test_a_killed_evaluation_goes_on_and_gives_the_same_report(folder, rows, tmp_path, monkeypatch):
    whole = evaluate(folder, str(rows), output=tmp_path / "whole", batch_size=8)
    compute, done = Predictor.compute, []

    def killed(*args, **options):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(1)
        return compute(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Predictor, "compute", killed)
        evaluate(folder, str(rows), output=tmp_path / "killed", batch_size=8)
    resumed = evaluate(folder, str(rows), output=tmp_path / "killed", batch_size=8)
    assert (whole.computed_batches, resumed.computed_batches) == (10, 6)
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "killed"))
    for written in (one, two):
        written.pop("cost")
        written["provenance"].pop("date")
    assert one == two


@pytest.mark.slow
def test_a_command_killed_again_and_again_gives_the_same_report(folder, rows, tmp_path, run_command):
    """SIGKILL at moments all over the run, while rows are predicted, evidence is masked, or the report is written."""

    def run(name: str, seconds: float = 300) -> int:
        options = ("--output", str(tmp_path / name), "--batch_size", "8", "--faithfulness_rows", "6")
        command = ("clsgen", "evaluate", "--model", str(folder), "--data", str(rows), *options)
        return run_command(*command, check=False, timeout=seconds).returncode

    def figures(name: str) -> dict:
        written = json.loads((tmp_path / name / "report.json").read_text())
        return {**written, "cost": None, "provenance": {**written["provenance"], "date": None}}

    start = time.monotonic()
    assert run("whole") == 0
    took = time.monotonic() - start
    ends = [run("killed", took * share) for share in (0.1, 0.3, 0.6, 0.9)]
    assert set(ends) <= {0, -signal.SIGKILL} and ends[0] == -signal.SIGKILL, ends
    assert run("killed") == 0
    assert figures("killed") == figures("whole")
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }


def test_explanations_of_a_sample_are_spread_over_the_decisions(folder, rows, tmp_path):
    found = evaluate(folder, str(rows), explain_sample=10)
    assert len(found.explained) == 10
    decided = found.decided[found.explained]
    assert abs(int((decided == 0).sum()) - 5) <= max(0, 5 - int(min(np.bincount(found.decided, minlength=2))))
    assert [p.explanation is not None for p in found.predictions].count(True) == 10
    assert evaluate(folder, str(rows), explain=False).explanations is None


def test_the_summary_says_when_probabilities_are_not_to_be_trusted(folder, rows, tmp_path):
    card = ModelCard.read(folder)
    sharp = {"method": "affine", "scale": 8.0, "bias": [0.0, 0.0]}
    dataclasses.replace(card, calibration=sharp, calibrated_on={"source": "x", "rows": 1}).write(folder)
    _, probabilities, explanations = document(evaluate(folder, str(rows), explain=False)).summary
    assert (
        probabilities.startswith("Do not take its probabilities literally")
        and "calibrate on rows like" in probabilities
    )
    assert explanations == "Its explanations were not measured."


def test_a_baseline_fitted_on_a_part_of_the_training_rows_is_noted(folder, rows, monkeypatch):
    monkeypatch.setattr(baselines, "_MOST_CHARACTERS", 1000)
    notes = evaluate(folder, str(rows), str(rows), explain=False).report.notes
    assert re.fullmatch(r"TF-IDF baseline: fitted on 2\d of 80 training rows, at random", notes[0])


@pytest.mark.parametrize("count", [7, 1])
def test_few_rows_of_one_class_are_reported_without_a_crash(count, folder, rows, tmp_path):
    few = tmp_path / "few.jsonl"
    lines = [line for line in rows.read_text().splitlines() if '"label": "yes"' in line][:count]
    few.write_text("\n".join(lines))
    found = evaluate(folder, str(few), output=tmp_path / "few", faithfulness_rows=3)
    assert math.isnan(found.decisions.metrics["auroc"].value)
    assert (
        document(found).summary[0]
        == f"Whether it tells the classes apart cannot be said: the {count} rows are of one class."
    )
    assert json.loads((tmp_path / "few/report.json").read_text())["decisions"]["metrics"]["auroc"]["value"] is None


def test_max_drop_fails_the_command_by_the_upper_end_of_the_interval(folder, rows, monkeypatch, capsys):
    from clsgen_dist.evaluation.interval import Estimate, Interval

    def kept(value: float, high: float):
        return lambda *args: dataclasses.make_dataclass("Kept", ["drop_percent"])(Estimate(value, Interval(0.0, high)))

    def run():
        evaluate_command(str(folder), str(rows), explain=False, max_drop=5.0)

    monkeypatch.setattr(module, "_capability", kept(4.0, 4.9))
    run()
    monkeypatch.setattr(module, "_capability", kept(4.0, 5.1))
    with pytest.raises(CapabilityLostError, match=r"4\.0 % above the backbone's, up to 5\.1 % .* at most 5 "):
        run()


def test_wrong_outputs_models_and_columns_are_errors(folder, rows, tmp_path):
    with pytest.raises(SettingsError, match="expected a folder"):
        evaluate(folder, str(rows), output=tmp_path / "report.json")
    with pytest.raises(ValueError, match="no value in the group column 'ward'"):
        evaluate(folder, str(rows), columns=Columns(groups=("ward",)))


def test_a_spread_sample_takes_equally_from_each_decision():
    decided = np.array([0] * 90 + [1] * 6 + [2] * 4)
    chosen = spread_sample(decided, 15)
    assert np.bincount(decided[chosen]).tolist() == [5, 5, 4] or np.bincount(decided[chosen]).tolist() == [6, 5, 4]
    assert chosen == sorted(set(chosen)) and len(chosen) == 15
    assert len(spread_sample(decided, 1000)) == 100
