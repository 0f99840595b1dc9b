"""Explanations from templates: which rows, which template, hostile evidence, wrong placeholders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clsgen_dist.cli import main
from clsgen_dist.curation.settings import CurationSettings
from clsgen_dist.data.example import Columns
from clsgen_dist.errors import SettingsError
from clsgen_dist.teacher.candidates import explanation_checks
from clsgen_dist.teacher.rows_to_explain import RowsToExplain
from clsgen_dist.teacher.templates import Template, TemplateReport, explain_by_templates

FINDING = "{label}: the decisive finding is {evidence}."
DESPITE = "It is {label}, since the text says {evidence}, although {counter_evidence}."


def fill(tmp_path: Path, rows: list[dict[str, Any]], *templates: str) -> tuple[TemplateReport, list[dict[str, Any]]]:
    source, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    known = RowsToExplain(str(source), Columns(), None, "auto")
    report = explain_by_templates(known, templates, output, explanation_checks(CurationSettings()))
    return report, [json.loads(line) for line in output.read_text().splitlines()]


def told(tmp_path: Path, text: str, evidence: Any, *templates: str, **row: Any) -> list[str] | None:
    [written] = fill(
        tmp_path, [{"text": text, "label": "cat", "evidence": evidence, **row}], *(templates or [FINDING])
    )[1]
    assert written.get("provenance") == ("template" if "explanations" in written else None)
    return written.get("explanations")


def test_quotes_are_merged_in_the_order_of_the_text(tmp_path: Path) -> None:
    text = "It purrs loudly and\n\n  naps. It has soft paws."
    assert told(tmp_path, text, ["soft paws", "purrs loudly and", "loudly and naps."]) == [
        "cat: the decisive finding is purrs loudly and naps, soft paws."
    ]
    assert told(tmp_path, text, [[3, 8], [5, 15]]) == ["cat: the decisive finding is purrs loudly."]


@pytest.mark.parametrize(
    "text", ["it has {evidence} and {0} {{", "%s {label.__class__} $x", "a \\n {counter_evidence}"]
)
def test_braces_in_a_text_mean_nothing(tmp_path: Path, text: str) -> None:
    assert told(tmp_path, f"Yesterday we saw that {text}", [text]) == [f"cat: the decisive finding is {text}."]


def test_braces_and_marks_of_a_template_stay(tmp_path: Path) -> None:
    template = "{{The class}} is {label}; see {evidence}!"
    assert told(tmp_path, "it purrs...", ["purrs..."], template) == ["{The class} is cat; see purrs!"]
    assert Template("{evidence}").filled(label="x", evidence="…", counter_evidence="") == "…"


def test_a_template_with_counter_evidence_is_for_rows_that_have_some(tmp_path: Path) -> None:
    row = {"text": "It purrs, but barks.", "label": "cat", "evidence": "purrs"}
    rows = [{**row, "id": n, "counter_evidence": "barks" if n % 2 else None} for n in range(40)]
    report, written = fill(tmp_path, rows, FINDING, DESPITE)
    assert report.explained == 40
    with_both = [r["explanations"][0] for r in written[1::2]]
    assert {r["explanations"][0] for r in written[::2]} == {"cat: the decisive finding is purrs."}
    despite = "It is cat, since the text says purrs, although barks."
    assert set(with_both) == {"cat: the decisive finding is purrs.", despite} and 4 <= with_both.count(despite) <= 16
    assert fill(tmp_path, rows, FINDING, DESPITE)[1] == written, "the same template each time"
    report, written = fill(tmp_path, rows, DESPITE)
    assert (report.explained, report.without_counter_evidence) == (20, 20)
    assert "explanations" not in written[0]


def test_rows_without_evidence_are_left_and_counted(tmp_path: Path) -> None:
    rows = [
        {"text": "it purrs", "label": "cat", "evidence": "purrs"},
        {"text": "it naps", "label": "cat"},
        {"text": "it naps", "label": "cat", "evidence": "barks", "x": [1.5]},
        {"text": "it naps", "label": "dog", "evidence": "naps", "explanation": "It does."},
        {"text": "it naps", "label": None, "evidence": "naps"},
        {"text": None, "label": "cat"},
    ]
    report, written = fill(tmp_path, rows, FINDING)
    assert (report.rows, report.to_explain, report.explained, report.without_evidence) == (6, 3, 1, 2)
    assert (report.passed_over, report.unlabelled, report.bad) == (1, 1, 1)
    assert written[1:] == rows[1:]


def test_explanations_pass_the_checks_of_a_teachers(tmp_path: Path) -> None:
    long = "it purrs and naps on the sofa the whole day and then it looks for its bowl in the kitchen"
    rows = [
        {"text": f"{long}.", "label": "cat", "evidence": long},
        {"text": "no dog: it purrs", "label": "dog", "evidence": "no dog"},
        {"text": "a cat, it barks", "label": "dog", "evidence": "a cat"},
    ]
    report, _ = fill(tmp_path, rows, "{evidence}: {label}")
    assert report.explained == 0 and report.dropped["copies-input"] == 1
    assert report.dropped["other-class"] == 1, "the cat comes first"


def test_several_classes_are_named_and_none_leaves_the_row(tmp_path: Path) -> None:
    rows = [
        {"text": "it purrs", "label": ["cat", "pet"], "evidence": "purrs"},
        {"text": "it roars", "label": [], "evidence": "roars"},
    ]
    report, written = fill(tmp_path, rows, FINDING)
    assert written[0]["explanations"] == ["cat, pet: the decisive finding is purrs."]
    assert report.without_class == 1 and written[1] == rows[1]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{label}: {evidnce}", r"placeholder {evidnce}; allowed are {label}, {evidence}, {counter_evidence}"),
        ("{label.__class__} {evidence}", "placeholder {label.__class__}"),
        ("{label!r} {evidence}", "placeholder {label!r}"),
        ("{evidence:>20}", "placeholder {evidence:>20}"),
        ("{} {evidence}", "placeholder {}"),
        ("{evidence", "cannot be read"),
        ("{label}.", "has no {evidence}"),
        ("{{evidence}}", "has no {evidence}"),
    ],
)
def test_wrong_placeholders_name_those_allowed(template: str, said: str) -> None:
    with pytest.raises(SettingsError) as error:
        Template(template)
    assert said in str(error.value) and "{counter_evidence}" in str(error.value) and "\n" not in str(error.value)


def test_the_command_needs_no_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"id": 1, "text": "[1] null it purrs", "label": "cat", "evidence": "purrs"}\n')
    common = ["data", "explain", str(source), "--output", str(output), "--teacher", "template"]
    main([*common, "--template", "[{label}]: {evidence}, null.", "--template", "[{label}]: {evidence}, null."])
    assert "1 of them are explained, by templates" in capsys.readouterr().out
    assert json.loads(output.read_text())["explanations"] == ["[cat]: purrs, null."]
    for wrong, said in (
        ([], "--template is missing"),
        (["--template", "{x}"], "placeholder {x}"),
        (["--template", "{evidence}", "--url", "http://localhost:1"], "asks no server"),
        (["--teacher", "model", "--template", "{evidence}"], "--template is for --teacher template"),
        (["--teacher", "model"], "--url is missing"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*common, *wrong])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and said in error and error.count("\n") == 1
