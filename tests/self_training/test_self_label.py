"""A round of labels by a small model: what is kept, what is refused, kills, label spaces, the way back to training."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clsgen_dist.cli import main
from clsgen_dist.curation.settings import CurationSettings
from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.ingest import Ingested, read_examples
from clsgen_dist.errors import DataError, GuardError, ModelError, SettingsError
from clsgen_dist.hf_export.artifact import HEAD_FILE, ModelCard, head_fingerprint
from clsgen_dist.inference.calibrate import calibrate
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.self_training import unlabelled_rows
from clsgen_dist.self_training.report import to_text
from clsgen_dist.self_training.self_label import SelfLabelReport, SelfLabelSettings, self_label
from clsgen_dist.teacher.candidates import explanation_checks
from tests.inference.conftest import hand_made_export, write_head
from tests.self_training.conftest import texts, write


def label(
    lab: Any,
    pool: str,
    output: Path,
    guard: str,
    *,
    model: Path | None = None,
    previous: str | None = None,
    **options: Any,
) -> SelfLabelReport:
    settings = SelfLabelSettings(**{"number": 1, "explain": False, **options})
    checks = explanation_checks(CurationSettings())
    return self_label(str(model or lab.model), pool, output, guard, settings, checks, previous=previous)


def read_back(path: Path, labels: list[str], space: Any) -> Ingested:
    return read_examples(str(path), columns=Columns(), labels=labels, max_bad_fraction=0, quarantine=None, space=space)


def copy_of(lab: Any, folder: Path, **changes: Any) -> Path:
    shutil.copytree(lab.model, folder)
    dataclasses.replace(ModelCard.read(folder), **changes).write(folder)
    return folder


@pytest.fixture
def guard(lab, tmp_path):
    return write(tmp_path / "guard.jsonl", lab.rows("guard", 200))


def test_kept_rows_are_those_the_model_is_sure_of(lab, pool, guard, tmp_path, read):
    output = tmp_path / "out.jsonl"
    report = label(lab, pool, output, guard, class_shares="none")
    expected = Predictor(lab.model).predict(texts("pool", 64), explain=False)
    sure = [n for n, p in enumerate(expected) if p.probabilities[str(p.label)] >= 0.95]
    rows = read(output)
    assert 30 < len(sure) < 60 and [row["text"] for row in rows] == [texts("pool", 64)[n] for n in sure]
    assert [row["label"] for row in rows] == [expected[n].label for n in sure]
    assert {row["provenance"] for row in rows} == {"self:1"} and all(row["site"] == {"x": [1.5]} for row in rows)
    assert rows[sure.index(3)]["id"] == "own" and rows[0]["id"] == f"pool.jsonl:{sure[0] + 1}"
    counts = report.counts
    assert (counts.rows, counts.labelled, counts.explained, counts.bad, counts.unlabelled) == (68, 2, 1, 1, 64)
    assert report.unsure + report.above_share + report.no_answer + report.kept.total() == 64
    assert report.kept.total() == len(sure) and not output.with_name("out.jsonl.parts").exists()


def test_classes_keep_the_shares_of_the_guard(lab, pool, guard, tmp_path):
    as_they_come = label(lab, pool, tmp_path / "a.jsonl", guard, class_shares="none").kept
    kept = label(lab, pool, tmp_path / "b.jsonl", guard).kept
    labels = [json.loads(line)["label"] for line in Path(guard).read_text().splitlines()]
    share = labels.count("benign") / len(labels)
    assert kept["benign"] == as_they_come["benign"], "the scarcer one decides"
    assert kept["malignant"] == int(kept["benign"] / share * (1 - share)) < as_they_come["malignant"]
    few = label(lab, pool, tmp_path / "c.jsonl", guard, class_shares="none", max_per_class=3).kept
    assert few == {"benign": 3, "malignant": 3}


def test_soft_labels_are_probabilities_that_the_reader_takes(lab, pool, guard, tmp_path, read):
    output = tmp_path / "out.jsonl"
    label(lab, pool, output, guard, soft=True)
    found = read_back(output, ["benign", "malignant"], "single")
    expected = Predictor(lab.model).predict([row.text for row in found.examples], explain=False)
    for row, prediction in zip(found.examples, expected, strict=True):
        assert row.label == prediction.label
        if row.answers:
            assert row.answers == pytest.approx(prediction.probabilities, abs=2e-3)
    assert sum(row.answers is not None for row in found.examples) >= 4


def test_explanations_must_state_the_decided_class(lab, pool, guard, tmp_path, read):
    stated = {"regex": r"It is a benign mass\."}
    model = copy_of(lab, tmp_path / "model", decoding=stated, max_explanation_length=40)
    report = label(lab, pool, tmp_path / "out.jsonl", guard, model=model, explain=True)
    for row in read(tmp_path / "out.jsonl"):
        assert row.get("explanation") == ("It is a benign mass." if row["label"] == "benign" else None)
    assert report.explained == report.kept["benign"] > 0
    assert report.dropped == {"other-class": report.kept["malignant"]}
    silent = copy_of(lab, tmp_path / "silent", decoding={"regex": r"It has a mass\."}, max_explanation_length=40)
    report = label(lab, pool, tmp_path / "out.jsonl", guard, model=silent, explain=True)
    assert report.explained == 0 and report.dropped == {"no-class": report.kept.total()}
    assert not any("explanation" in row for row in read(tmp_path / "out.jsonl"))


def test_a_model_that_decides_after_its_explanation_labels_too(lab, pool, tmp_path, read):
    decoding = {"regex": r"It is a (benign|malignant) mass\."}
    model = copy_of(lab, tmp_path / "model", decide="after", decoding=decoding, max_explanation_length=40)
    rows = lab.rows("guard", 80)
    decided = Predictor(model).predict([row["text"] for row in rows])
    middle = np.median([p.logits[1] - p.logits[0] for p in decided])
    for row, p in zip(rows, decided, strict=True):
        row["label"] = "malignant" if p.logits[1] - p.logits[0] > middle else "benign"
    held_out = write(tmp_path / "guard.jsonl", rows[:40])
    calibrate(model, write(tmp_path / "calibration.jsonl", rows[40:]))
    options = {"precision": 0.5, "class_shares": "none", "confidence": 0.8}
    report = label(lab, pool, tmp_path / "out.jsonl", held_out, model=model, explain=True, **options)
    written = read(tmp_path / "out.jsonl")
    assert report.kept.total() == len(written) > 10
    assert report.explained == sum("explanation" in row for row in written)
    assert all(row["label"] in row["explanation"] for row in written if "explanation" in row)


def test_a_guard_that_is_often_wrong_refuses(lab, pool, tmp_path, capsys):
    rows = lab.rows("guard", 200)
    for row in rows[::4]:
        row["label"] = {"benign": "malignant", "malignant": "benign"}[row["label"]]
    held_out, output = write(tmp_path / "guard.jsonl", rows), tmp_path / "out.jsonl"
    words = ["data", "self-label", pool, "--model", str(lab.model), "--output", str(output), "--guard", held_out]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--round", "2", "--class_shares", "none"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 1 and not output.exists() and not output.with_name("out.jsonl.parts").exists()
    assert "wanted is 90.0% or more" in error and "Raise --confidence" in error and "Nothing is written" in error
    main([*words, "--round", "2", "--class_shares", "none", "--precision", "0.6", "--explain", "false"])
    assert "self:2" in output.read_text() and f"written: {output}" in capsys.readouterr().out


def test_a_round_that_did_harm_ends_them(lab, pool, guard, tmp_path):
    worse = copy_of(lab, tmp_path / "worse")
    head = load_file(worse / HEAD_FILE)
    noise = torch.randn(head["weight"].shape, generator=torch.Generator().manual_seed(0))
    head["weight"] = head["weight"] + 1.5 * noise
    write_head(worse, head)
    fingerprint = head_fingerprint(head["weight"], head["bias"])
    dataclasses.replace(ModelCard.read(worse), head_sha256=fingerprint).write(worse)
    calibrate(worse, lab.calibration)
    options = {"precision": 0.3, "confidence": 0.55, "class_shares": "none"}
    with pytest.raises(GuardError, match=f"go on from {lab.model}"):
        label(lab, pool, tmp_path / "out.jsonl", guard, model=worse, previous=str(lab.model), **options)
    assert not (tmp_path / "out.jsonl").exists()
    report = label(lab, pool, tmp_path / "out.jsonl", guard, previous=str(worse), **options)
    assert report.comparison and report.comparison.worse == [] and report.comparison.differences["nll"].value < 0


def test_a_guard_that_the_model_has_seen_is_refused(lab, pool, guard, tmp_path):
    with pytest.raises(SettingsError, match=r"150 of 150 guard rows .* are among .*calibration.jsonl"):
        label(lab, pool, tmp_path / "out.jsonl", lab.calibration)
    seen = tmp_path / "seen.jsonl"
    seen.write_text(Path(guard).read_text() + Path(lab.calibration).read_text().splitlines()[7] + "\n")
    with pytest.raises(SettingsError, match="1 of 201 guard rows"):
        label(lab, pool, tmp_path / "out.jsonl", str(seen))
    text = json.loads(Path(guard).read_text().splitlines()[5])["text"]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(Path(pool).read_text() + json.dumps({"text": f"  {text.upper()}\n"}) + "\n")
    with pytest.raises(DataError, match=r"mixed.jsonl:69 has the text of a guard row"):
        label(lab, str(mixed), tmp_path / "out.jsonl", guard)
    assert not (tmp_path / "out.jsonl").exists()


def test_what_cannot_be_judged_is_refused_before_it_is_loaded(lab, pool, guard, tmp_path):
    raw = copy_of(lab, tmp_path / "raw", calibrated_on=None, calibration=None)
    with pytest.raises(ModelError, match=r"is not calibrated.*run clsgen calibrate"):
        label(lab, pool, tmp_path / "out.jsonl", guard, model=raw)
    with pytest.raises(ModelError, match="raw is not calibrated"):
        label(lab, pool, tmp_path / "out.jsonl", guard, previous=str(raw))
    several = copy_of(lab, tmp_path / "several", label_space="multilabel")
    with pytest.raises(SettingsError, match=r"multi-label.*one class a row"):
        label(lab, pool, tmp_path / "out.jsonl", guard, model=several)
    other = copy_of(lab, tmp_path / "other", labels=["a", "b"], positive_label="b")
    with pytest.raises(SettingsError, match=r"--previous is .*name its predecessor"):
        label(lab, pool, tmp_path / "out.jsonl", guard, previous=str(other))
    with pytest.raises(SettingsError, match="rows that are read"):
        label(lab, pool, Path(guard), guard)
    with pytest.raises(SettingsError, match=r"ends in .jsonl"):
        label(lab, pool, tmp_path / "out.csv", guard)
    labelled = write(tmp_path / "labelled.jsonl", lab.rows("labelled", 3))
    with pytest.raises(DataError, match="no row to label: 3 have a label"):
        label(lab, labelled, tmp_path / "out.jsonl", guard)


def test_a_killed_round_goes_on_and_writes_the_same(lab, pool, guard, tmp_path, monkeypatch):
    monkeypatch.setattr(unlabelled_rows, "_WINDOW", 20)
    options: dict[str, Any] = {"batch_size": 4, "explain": True}
    label(lab, pool, tmp_path / "whole.jsonl", guard, **options)
    computed: list[bool] = []
    compute = Predictor.compute

    def counted(self: Predictor, *args: Any, **given: Any) -> Any:
        computed.append(given["explain"])
        if len(computed) in kills:
            raise KeyboardInterrupt
        return compute(self, *args, **given)

    monkeypatch.setattr(Predictor, "compute", counted)
    on_guard = 50
    kills = {on_guard + 6, 2 * on_guard + 6 + 13}  # in the first pass over the rows; in that over the explanations
    for _ in kills:
        with pytest.raises(KeyboardInterrupt):
            label(lab, pool, tmp_path / "out.jsonl", guard, **options)
        assert not (tmp_path / "out.jsonl").exists()
    label(lab, pool, tmp_path / "out.jsonl", guard, **options)
    assert (tmp_path / "out.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    decided = computed.count(False) - 3 * on_guard
    assert decided == 16 + 1 and computed.count(True) >= 2, "16 batches, one of which was killed"
    assert not (tmp_path / "out.jsonl.parts").exists()


@pytest.mark.parametrize(("kind", "names"), [("ordinal", ["low", "middle", "high"]), ("single", ["a", "b", "c"])])
def test_ordered_and_several_classes(lab, tmp_path, read, kind, names):
    model = hand_made_export(tmp_path / "model", names, kind)
    raw = Predictor(model).predict(of := texts("several", 260), explain=False)
    logits = np.array([p.logits for p in raw])
    logits = (logits - logits.mean(axis=0)) / logits.std(axis=0)
    level = np.searchsorted(np.quantile(logits[:, 0], [1 / 3, 2 / 3]), logits[:, 0])
    decided = level if kind == "ordinal" else logits.argmax(axis=1)
    rows = [{"text": t, "label": names[c]} for t, c in zip(of, decided.tolist(), strict=True)]
    calibrate(model, write(tmp_path / "calibration.jsonl", rows[:100]))
    held_out = write(tmp_path / "guard.jsonl", rows[100:200])
    pool = write(tmp_path / "pool.jsonl", [{"text": row["text"]} for row in rows[200:]])
    options: dict[str, Any] = {"confidence": 0.7, "precision": 0.5, "class_shares": "none"}
    label(lab, pool, tmp_path / "out.jsonl", held_out, model=model, **options)
    expected = zip(of[200:], Predictor(model).predict(of[200:], explain=False), strict=True)
    sure = {text: p.label for text, p in expected if p.probabilities[str(p.label)] >= 0.7}
    assert {row["text"]: row["label"] for row in read(tmp_path / "out.jsonl")} == sure and set(sure.values()) == set(
        names
    )
    report = label(lab, pool, tmp_path / "soft.jsonl", held_out, model=model, soft=True, **options)
    assert {row.text: row.label for row in read_back(tmp_path / "soft.jsonl", names, kind).examples} == sure
    assert f"--data.label_space {kind}" in to_text(report, SelfLabelSettings(number=1, soft=True), "soft.jsonl")


def test_the_rows_train_the_next_round(lab, pool, guard, tmp_path, train):
    label(lab, pool, tmp_path / "self1.jsonl", guard)
    joined = tmp_path / "round1.jsonl"
    joined.write_text(Path(lab.calibration).read_text() + (tmp_path / "self1.jsonl").read_text())
    options = {"data__train": joined, "objectives__generation__weight": 0, "train__max_steps": 1}
    done = train(tmp_path / "run", ranks=1, **options)
    kept = len((tmp_path / "self1.jsonl").read_text().splitlines())
    assert f"{150 + kept} rows" in done.stdout and kept > 5
