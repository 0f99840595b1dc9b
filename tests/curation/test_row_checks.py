"""What only the rows together show: boilerplate, names that give labels away, label errors; planted and counted."""

from __future__ import annotations

import random

import pytest

from clsgen_dist.curation.count_sketch import CountSketch
from clsgen_dist.curation.issues import IssueCode
from clsgen_dist.curation.label_errors import LabelSample
from clsgen_dist.curation.row_checks import checked_rows, survey_rows
from clsgen_dist.curation.row_source import row_source
from clsgen_dist.curation.settings import CurationSettings
from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.rejection import RejectedRow
from tests.curation.planted_rows import LABELS, good_rows
from tests.data.checks.planted import make_rows, write_rows


@pytest.fixture
def issues_of(tmp_path):
    """``issues_of(rows)``: the codes of the issues of each row, and of its rejection."""

    def check(rows, settings=None, labels=None, space="auto"):
        settings = settings or CurationSettings()
        source = row_source(write_rows(tmp_path / "rows.jsonl", rows), Columns(), labels, space)
        return [
            {row.code} if isinstance(row, RejectedRow) else {issue.code for issue in issues}
            for row, issues in checked_rows(survey_rows(source, settings), settings)
        ]

    return check


def planted(rows, share, seed=1):
    """The rows in which a fault is planted, by number."""
    return random.Random(seed).sample(range(len(rows)), int(len(rows) * share))


def numbers(found, code):
    """The numbers of the rows with an issue."""
    return {number for number, codes in enumerate(found) if code in codes}


def test_good_rows_have_no_issues(issues_of):
    assert issues_of(good_rows(300)) == [set()] * 300
    assert issues_of(make_rows(200)) == [set()] * 200


def test_label_errors_are_found_and_right_labels_left_alone(issues_of):
    rows = good_rows(300)
    wrong = set(planted(rows, 0.07))
    for number in wrong:
        rows[number]["label"] = LABELS[rows[number]["label"] == LABELS[0]]
    found = numbers(issues_of(rows), IssueCode.LABEL_ERROR)
    assert len(found & wrong) >= 0.75 * len(wrong)
    assert len(found - wrong) <= 1


def test_a_class_of_few_rows_is_left_out_and_the_others_are_judged(issues_of):
    rows = good_rows(300)
    wrong = planted(rows, 0.04)
    for number in wrong:
        rows[number]["label"] = LABELS[rows[number]["label"] == LABELS[0]]
    rows += [{"text": row["text"], "label": "rare"} for row in good_rows(8, seed=9)]
    found = numbers(issues_of(rows), IssueCode.LABEL_ERROR)
    assert found <= set(wrong) and len(found) >= 0.6 * len(wrong)


def test_labels_that_cannot_be_learnt_are_not_questioned(issues_of):
    rng = random.Random(0)
    rows = [{**row, "label": rng.choice(LABELS), "explanation": None} for row in good_rows(200)]
    assert numbers(issues_of(rows), IssueCode.LABEL_ERROR) == set()


def test_the_sample_of_the_label_model_has_the_share_asked_for_whatever_the_order():
    texts = [row["text"] for row in good_rows(400)]
    kept = []
    for order in (texts, texts[::-1]):
        sample = LabelSample(0.25)
        for text in order:
            sample.add(text, 0)
        kept.append(len(sample.labels))
    assert kept[0] == kept[1] and 60 < kept[0] < 140


def test_boilerplate_is_found_whatever_its_numbers_and_class_names(issues_of):
    rows = good_rows(200)
    same = planted(rows, 0.05)
    for number in same:
        rows[number]["explanation"] = f"The overall picture suggests {rows[number]['label']}, as experience teaches."
    assert numbers(issues_of(rows), IssueCode.BOILERPLATE) == set(same)
    few = CurationSettings(boilerplate_rows=len(same) + 1)
    assert numbers(issues_of(rows, few), IssueCode.BOILERPLATE) == set()


def test_a_frame_filled_with_words_of_the_text_is_no_boilerplate(issues_of):
    rows = [{**row, "explanation": f"I see the {row['evidence'][0]}, clearly."} for row in good_rows(100)]
    assert numbers(issues_of(rows), IssueCode.BOILERPLATE) == set()


@pytest.mark.parametrize("leak", ["{text} ({label})", "{label}: {text}", "{text} It was said to be {label} before."])
def test_names_in_texts_that_are_nearly_always_the_label_are_found(issues_of, leak):
    rows = good_rows(200)
    leaked = planted(rows, 0.1)
    for number in leaked:
        rows[number]["text"] = leak.format(**rows[number])
    assert numbers(issues_of(rows), IssueCode.LABEL_IN_TEXT) == set(leaked)


def test_names_that_come_with_every_label_give_nothing_away(issues_of):
    rows = good_rows(200)
    for number in planted(rows, 0.3):
        rows[number]["text"] += f" Some called it {LABELS[number // 2 % 2]}, others did not say."
    assert numbers(issues_of(rows), IssueCode.LABEL_IN_TEXT) == set()


def test_repeated_ids_and_unreadable_rows_are_rejected(issues_of):
    rows = good_rows(20)
    rows[5]["id"] = rows[9]["id"] = rows[2]["id"]
    rows[7]["text"] = ""
    found = issues_of(rows)
    assert {n for n, codes in enumerate(found) if codes} == {5, 7, 9}
    assert found[5] == found[9] == {"duplicate-id"} and found[7] == {"empty-text"}


def test_rows_of_several_classes_or_without_a_label_are_checked_too(issues_of):
    rows = good_rows(60)
    for row in rows:
        row["label"] = [row["label"]]
    rows[3]["explanation"] = "Too short"
    rows[4] = {**rows[4], "label": None, "explanation": "By 99 mm."}
    found = issues_of(rows, space="multilabel")
    assert found[3] == {IssueCode.TOO_SHORT} and found[4] == {IssueCode.UNGROUNDED_NUMBER}
    assert all(not codes for number, codes in enumerate(found) if number not in (3, 4))


def test_names_that_are_nearly_always_one_of_several_labels_are_found(issues_of):
    rows = [
        {**row, "label": [row["label"], "seen"] if n % 2 else [row["label"]]} for n, row in enumerate(good_rows(200))
    ]
    leaked = [number for number in planted(rows, 0.1) if rows[number]["label"][0] == LABELS[0]]
    for number in leaked:
        rows[number]["text"] += f" ({LABELS[0]})"
    for number in planted(rows, 0.3, seed=2):
        rows[number]["text"] += " It was seen twice."
    assert len(leaked) >= 5
    assert numbers(issues_of(rows, space="multilabel"), IssueCode.LABEL_IN_TEXT) == set(leaked)


def test_counts_are_never_too_low_and_exact_for_few_strings():
    sketch = CountSketch()
    for number in range(2000):
        for _ in range(number % 3):
            sketch.add(f"text {number}")
    assert [sketch.count(f"text {number}") for number in range(2000)] == [number % 3 for number in range(2000)]
