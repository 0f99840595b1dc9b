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
from huggingface_hub import ModelCard as Readme
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clsgen_dist.commands.evaluate import run as evaluate_command
from clsgen_dist.data.example import Columns
from clsgen_dist.errors import CapabilityLostError, SettingsError
from clsgen_dist.evaluation import baselines
from clsgen_dist.evaluation.metrics import class_metrics
from clsgen_dist.hf_export.artifact import ModelCard
from clsgen_dist.hf_export.readme import write_readme
from clsgen_dist.inference import evaluate as module
from clsgen_dist.inference.calibrate import calibrate
from clsgen_dist.inference.evaluate import evaluate
from clsgen_dist.inference.measures import spread_sample
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.report_sections import document

pytestmark = pytest.mark.usefixtures("few_resamples")


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
    assert all(d.value == 0 for d in found.comparison.differences.values())
    assert found.comparison.differences["accuracy"].p_value == 1
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


def test_texts_of_training_are_counted(folder, rows, tmp_path):
    some = tmp_path / "train.jsonl"
    lines = [json.loads(line) for line in rows.read_text().splitlines()[:30]]
    new = [{**line, "text": f"another {n}"} for n, line in enumerate(lines[5:])]
    some.write_text("".join(json.dumps(line | {"text": f" {line['text']}  "}) + "\n" for line in lines[:5] + new))
    found = evaluate(folder, str(rows), str(some), explain=False)
    assert found.report.notes == ["5 of the 80 texts also occur in the training rows: new texts may fare worse"]
    assert evaluate(folder, str(rows), explain=False).report.notes == []


def test_metrics_and_figures_are_on_tensorboard(folder, rows, columns, tmp_path):
    dataclasses.replace(ModelCard.read(folder), trained={"step": 30}).write(folder)
    for _ in range(2):  # the second takes the place of the first
        found = evaluate(folder, str(rows), None, columns, output=tmp_path / "report", explain=False)
    log = EventAccumulator(str(tmp_path / "report/tensorboard"))
    log.Reload()
    [point] = log.Scalars("test/auroc")
    assert (point.step, point.value) == (30, pytest.approx(found.decisions.metrics["auroc"].value))
    assert log.Scalars("test/auroc/low")[0].value < point.value < log.Scalars("test/auroc/high")[0].value
    assert {"test/reliability", "test/net_benefit", "test/auroc_by_site"} <= set(log.Tags()["images"])
    picture = log.Images("test/reliability")[0]
    assert picture.encoded_image_string.startswith(b"\x89PNG") and picture.width > 300
    assert "test/yes" in log.Tags()["tensors"], "the precision-recall curve"


def test_the_model_card_is_filled_without_any_rows_text(folder, rows, tmp_path, caplog):
    write_readme(folder, dataclasses.replace(ModelCard.read(folder), trained={"backbone": "org/base"}))
    found = evaluate(folder, str(rows), str(rows), output=tmp_path / "report")
    readme = Readme.load(folder / "README.md")
    told = {result.metric_type: result.metric_value for result in readme.data.eval_results}
    assert told["roc_auc"] == pytest.approx(found.decisions.metrics["auroc"].value, abs=1e-4)
    assert document(found).summary[0].split(" [")[0] in readme.text.replace("\\", "")
    assert "### Decisions" in readme.text and "TF-IDF logistic regression" in readme.text
    assert "glioblastoma" not in readme.text and str(tmp_path) not in readme.text
    before = (folder / "README.md").read_text()
    evaluate(folder, str(rows), output=tmp_path / "other", explain=False, model_card=False)
    assert (folder / "README.md").read_text() == before
    (folder / "README.md").unlink()
    evaluate(folder, str(rows), output=tmp_path / "other", explain=False)
    assert "has no README.md with a part for the evaluation" in caplog.text and not (folder / "README.md").exists()


def test_the_report_says_what_thresholds_sets_and_handing_over_achieve(folder, rows, tmp_path):
    calibrate(folder, str(rows), threshold="recall=0.9", coverage=0.8, hand_over="workload=0.2")
    found = evaluate(folder, str(rows), output=tmp_path / "report", explain=False)
    rules = json.loads((tmp_path / "report/report.json").read_text())["decisions"]["rules"]
    truth = ["no" if label == 0 else "yes" for label in found.labels]
    answered = [(p, y) for p, y in zip(found.predictions, truth, strict=True) if not p.hand_over]
    held = np.mean([y in p.prediction_set for p, y in zip(found.predictions, truth, strict=True)])
    assert rules["sets"]["coverage"][0]["covered"]["value"] == pytest.approx(held)
    assert rules["hand_over"]["answered"]["value"] == pytest.approx(len(answered) / 80)
    assert rules["hand_over"]["risk"]["value"] == pytest.approx(np.mean([p.label != y for p, y in answered]))
    found_yes = [p.label == "yes" for p, y in zip(found.predictions, truth, strict=True) if y == "yes"]
    assert rules["thresholds"][0]["recall"]["value"] == pytest.approx(np.mean(found_yes))
    text = (tmp_path / "report/report.md").read_text()
    assert "The rules it decides by" in text and "These are those very rows" in text


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
    # A file that was being written when the process died is left under a hidden name.
    killed, whole = ({path.name for path in (tmp_path / name).glob("[!.]*")} for name in ("killed", "whole"))
    assert killed == whole


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
    assert re.fullmatch(r"TF-IDF baseline: fitted on 2\d of 80 training rows, at random", notes[1])


@pytest.mark.parametrize("count", [7, 1])
def test_few_rows_of_one_class_are_reported_without_a_crash(count, folder, rows, tmp_path):
    few = tmp_path / "few.jsonl"
    lines = [line for line in rows.read_text().splitlines() if '"label": "yes"' in line][:count]
    few.write_text("\n".join(lines))
    found = evaluate(folder, str(few), output=tmp_path / "few", faithfulness_rows=3)
    assert math.isnan(found.decisions.metrics["auroc"].value)
    alike = "the only row is of one class" if count == 1 else f"the {count} rows are of one class"
    assert document(found).summary[0] == f"Whether it tells the classes apart cannot be said: {alike}."
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
