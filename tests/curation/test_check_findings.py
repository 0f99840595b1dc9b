"""Issues of rows in `clsgen data check`: findings with rows, and how different the explanations of each class are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from clsgen_dist.cli import main
from clsgen_dist.config import load_settings
from clsgen_dist.data.checks.page import page
from clsgen_dist.data.checks.report import to_json, to_text
from clsgen_dist.training.check_files import check_files
from tests.curation.planted_rows import LABELS, good_rows
from tests.data.checks.planted import write_rows


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """100 rows, of which rows 3 and 8 have numbers that are not in the text; one class from one template."""
    rows = good_rows(100)
    rows[2]["explanation"] = "A mass of 999 mm."
    rows[7]["explanation"] = "By 888 readings it is so."
    for row in rows:
        if row["label"] == LABELS[0] and row not in (rows[2], rows[7]):
            row["explanation"] = f"I see a {row['evidence'][0]} there, clearly."
    return write_rows(tmp_path_factory.mktemp("faulty") / "train.jsonl", rows)


@pytest.fixture(scope="module")
def report(faulty):
    """What is found in these rows."""
    return check_files([faulty], issues=True)


def test_issues_are_findings_with_their_rows(report):
    [finding] = [finding for finding in report.findings if finding.code == "ungrounded-number"]
    assert (finding.severity, finding.splits, finding.count, finding.of) == ("warning", ("train",), 2, 100)
    assert [(row.line, row.id, row.label, row.detail) for row in finding.rows] == [
        (3, "r2", LABELS[0], "999"),
        (8, "r7", LABELS[1], "888"),
    ]
    assert finding.what == "in 2 of 100 rows the explanation has a number that is not in the text"
    assert "where: train.jsonl:3 (r2, 999); train.jsonl:8 (r7, 888)" in to_text(report)


def test_the_recipe_decides_on_severities_and_thresholds(faulty, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {{train: {faulty}}}\nmodel: {{backbone: demo:smollm2-135m}}\n"
        "curation: {min_words: 7, severity: {ungrounded_number: note, too_short: review, label_error: off}}\n"
    )
    assert load_settings(recipe).curation.severity.label_error == "off"
    found = {f.code: f for f in check_files([], config=str(recipe), issues=True).findings}
    assert found["ungrounded-number"].severity == "info"
    assert found["too-short"].severity == "warning" and 3 in [row.line for row in found["too-short"].rows]


def test_the_diversity_of_each_class_is_measured_in_text_json_and_html(report):
    by_class = {row.label: row for row in report.diversity}
    alike, free = by_class[LABELS[0]], by_class[LABELS[1]]
    assert (alike.split, alike.explanations, alike.sampled) == ("train", 50, 50)
    assert alike.template_share == free.template_share == 0.98  # all but the two planted rows
    assert alike.distinct_2 < free.distinct_2 and alike.self_bleu > free.self_bleu
    assert f"| train | '{LABELS[0]}'" in to_text(report) and "self-BLEU" in to_text(report)
    written = json.loads(to_json(report))["diversity"]
    assert written[0]["explanations"] == 50 and 0 < written[0]["distinct_1"] < 1
    assert '<h2 id="diversity">Explanations</h2>' in page(report) and "self-BLEU" in page(report)
    for written in (to_text(report), page(report)):
        assert "`clsgen data thin` removes" in written and "`clsgen data explain --paraphrase 2`" in written
    assert 'id="diversity"' not in page(replace(report, diversity=[]))


def test_the_command_looks_for_issues_unless_told_not_to(faulty, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["data", "check", faulty, "--report", "null", "--json", "found.json"])
    assert "ungrounded-number" in capsys.readouterr().out and "ungrounded-number" in Path("found.json").read_text()
    main(["data", "check", faulty, "--report", "null", "--issues", "false"])
    assert "ungrounded-number" not in capsys.readouterr().out


def test_the_gate_command_writes_restores_and_takes_settings(faulty, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["data", "gate", faulty, "--output", "gated", "--curation.severity.boilerplate", "off"])
    out = capsys.readouterr().out
    assert "| kept " in out and "| ungrounded-number | review " in out and "gated/reasons.jsonl" in out
    assert (tmp_path / "gated/review.jsonl").read_bytes().count(b"\n") >= 2
    main(["data", "gate", "--output", "gated", "--restore", "again.jsonl"])
    assert (tmp_path / "again.jsonl").read_bytes() == Path(faulty).read_bytes()
    with pytest.raises(SystemExit) as stop:
        main(["data", "gate", faulty, "--output", "gated"])
    assert stop.value.code == 2 and "with other settings; name another folder" in capsys.readouterr().err
