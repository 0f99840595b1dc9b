"""Explanations and lengths: missing, too long, truncated; limits come from the recipe."""

from __future__ import annotations

import time

import pytest

from clsgen_dist.training.check_files import check_files
from tests.data.checks.planted import findings_of, lines_of, make_rows, write_rows


def test_no_explanations_is_a_warning(train):
    found = findings_of(train([{k: v for k, v in row.items() if k != "explanation"} for row in make_rows(100)]))
    assert {code: f.severity for code, f in found.items()} == {"none-explained": "warning"}


def test_rows_without_explanation_are_reported_with_their_share(train):
    rows = make_rows(100)
    for row in rows[:25]:
        del row["explanation"]
    found = findings_of(train(rows))
    assert {code: f.severity for code, f in found.items()} == {"partly-explained": "info"}
    assert "75 of 100" in found["partly-explained"].what
    assert lines_of(found["partly-explained"]) == list(range(1, 26))


@pytest.mark.parametrize(("long", "severity"), [(1, "warning"), (5, "error")])
def test_explanations_that_are_too_long_are_reported_as_training_would_treat_them(long, severity, train):
    rows = make_rows(200)
    for row in rows[:long]:
        row["explanation"] = "because " * 300
    finding = findings_of(train(rows))["long-explanations"]
    assert (finding.severity, finding.count, lines_of(finding)) == (severity, long, list(range(1, long + 1)))
    assert "301" in finding.what and "data.max_explanation_length to 301" in finding.remedy


def test_reported_truncations_are_those_of_the_encoder(train, smollm2):
    from clsgen_dist.config import PromptSettings
    from clsgen_dist.data.encode import Encoder
    from clsgen_dist.model.backbone import load_tokenizer

    rows = make_rows(60)
    for extra in range(40):
        rows[extra]["text"] += " stone" * (660 + 4 * extra)
    finding = findings_of(train(rows))["truncation"]
    encoder = Encoder(
        load_tokenizer(str(smollm2)), system=None, question=PromptSettings().question, max_prompt_length=768
    )
    cut = [i + 1 for i, row in enumerate(rows) if encoder.prompt(row["text"])[1]]
    assert 0 < len(cut) < 40
    assert (finding.severity, lines_of(finding)) == ("warning", cut)


def test_a_row_of_200_000_characters_is_found_quickly(train):
    rows = make_rows(100)
    rows[40]["text"] = "word and stone " * 13_334
    start = time.monotonic()
    found = findings_of(train(rows))
    assert time.monotonic() - start < 20
    assert list(found) == ["truncation"]
    assert lines_of(found["truncation"]) == [41]


def test_lengths_labels_and_columns_come_from_the_recipe(tmp_path):
    rows = [{"body": row["text"], "label": row["label"], "explanation": row["explanation"]} for row in make_rows(100)]
    write_rows(tmp_path / "rows.jsonl", [*rows, {**rows[0], "body": "other words", "label": "unsure"}])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
data:
  train: {tmp_path / "rows.jsonl"}
  columns: {{text: body}}
  labels: ["no", "yes"]
  max_prompt_length: 64
model:
  backbone: demo:smollm2-135m
"""
    )
    checked = check_files([], config=str(recipe))
    found = {finding.code: finding for finding in checked.findings}
    assert found["truncation"].count > 50
    assert "unknown label" in found["unusable-rows"].what
    assert checked.statistics.label_names == ["no", "yes"]
