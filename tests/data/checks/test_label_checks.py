"""Labels: one class, look-alike names, missing and misspelt ones, imbalance, two labels for one text."""

from __future__ import annotations

import time

import pytest

from clsgen_dist.data.checks.label_checks import class_counts
from clsgen_dist.data.checks.report import to_text
from clsgen_dist.training.check_files import check_files
from tests.data.checks.planted import findings_of, lines_of, make_rows


def test_one_class_is_an_error_in_training_rows_and_a_warning_in_others(train, test):
    found = check_files([train(make_rows(100, labels=["yes"])), test(make_rows(40, seed=1, labels=["yes"]))]).findings
    assert [(f.code, f.severity, f.splits) for f in found] == [
        ("one-class", "error", ("train",)),
        ("one-class", "warning", ("test",)),
    ]


def test_rows_without_any_label_are_an_error(train):
    rows = [{k: v for k, v in row.items() if k != "label"} for row in make_rows(100)]
    found = findings_of(train(rows))
    assert {code: f.severity for code, f in found.items()} == {"one-class": "error"}
    assert "no row has a label" in found["one-class"].what


def test_labels_that_look_alike_are_found_with_their_rows(train):
    """Case, full-width letters, a letter of another alphabet; a trailing space does not make a class."""
    rows = make_rows(200, labels=["benign", "malignant"])
    rows[10]["label"] = "Benign "
    rows[12]["label"] = "ｂenign"
    rows[14]["label"] = "b\u0435nign"
    found = findings_of(train(rows))
    assert list(found) == ["label-names"]  # and not also a class of one row
    finding = found["label-names"]
    assert (finding.severity, lines_of(finding)) == ("warning", [11, 13, 15])
    assert "'benign' (97)" in finding.what and "'Benign' (1)" in finding.what
    assert "write 'benign'" in finding.remedy


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"label": "None"}, "missing-label", "'None' (2)"),
        ({"explanation": "nan"}, "missing-explanation", "'nan' (2)"),
        ({"explanation": "['since', 'so']"}, "list-text", "its items are read as explanations"),
        ({"explanation": "[since, so]"}, "bracketed", "may be a list without quotes"),
        ({"label": "yes\u200b"}, "hidden-characters", "'yes\\u200b' (2)"),
        ({"label": "ye\u0301s"}, "hidden-characters", "it is read without them"),
        ({"label": "none"}, "missing-class", "'none' (2) may stand for a missing label"),
    ],
)
def test_cells_that_are_not_read_literally_are_found_with_their_rows(change, code, message, train):
    rows = make_rows(200)
    for row in (rows[20], rows[50]):
        row.update(change)
    finding = findings_of(train(rows))[code]
    assert (finding.severity, lines_of(finding), message in finding.what) == ("warning", [21, 51], True)
    assert finding.remedy


def test_labels_like_floats_and_placeholder_texts_are_found(train):
    rows = make_rows(200, labels=["0.0", "1.0"])
    rows[7]["text"] = "null"
    found = findings_of(train(rows))
    assert set(found) == {"respelt-label", "placeholder-text"}
    assert found["respelt-label"].count == 200 and lines_of(found["placeholder-text"]) == [8]


def test_a_list_that_cannot_be_read_is_unusable(train):
    rows = make_rows(200)
    rows[20]["explanation"] = "['it's', 'so']"
    finding = findings_of(train(rows))["unusable-rows"]
    assert lines_of(finding) == [21] and "1 unreadable list" in finding.what


def test_a_rare_label_close_to_a_common_one_may_be_misspelt(train):
    rows = make_rows(200, labels=["benign", "malignant"])
    rows[11]["label"] = "maligant"
    finding = findings_of(train(rows))["label-names"]
    assert lines_of(finding) == [12]
    assert "misspelt" in finding.what


def test_classes_with_similar_names_are_not_called_misspelt(train):
    found = findings_of(train(make_rows(300, labels=["hateful", "non-hateful", "level 1", "level 2"])))
    assert found == {}


def test_labels_that_differ_only_in_case_are_one_class(train):
    found = findings_of(train(make_rows(100, labels=["yes", "Yes"])))
    assert found["one-class"].severity == "error"


def test_a_label_column_of_free_text_is_one_finding_and_fast(train):
    rows = [{**row, "label": f"verdict {row['text']}"} for row in make_rows(3000)]
    start = time.monotonic()
    checked = check_files([train(rows)])
    assert time.monotonic() - start < 30
    [finding] = checked.findings
    assert finding.code == "few-rows" and finding.what.endswith("and 2992 more")
    assert len(to_text(checked).splitlines()) < 70


def test_very_unbalanced_classes_are_a_warning_with_the_share_of_the_larger(train):
    rows = make_rows(600, labels=["no"])
    for row in rows[:30]:
        row["label"] = "yes"
    found = findings_of(train(rows))
    assert {code: f.severity for code, f in found.items()} == {"imbalance": "warning"}
    assert "570 rows of 'no' for 30 of 'yes' (19 to 1)" in found["imbalance"].what
    assert "95%" in found["imbalance"].what


def test_a_dataset_of_seven_rows_is_reported_as_small(train):
    found = findings_of(train(make_rows(7)))
    assert {code: f.severity for code, f in found.items()} == {"few-rows": "warning"}
    assert "'no' (4), 'yes' (3)" in found["few-rows"].what


def test_a_class_missing_from_training_is_an_error(train, test):
    found = findings_of(train(make_rows(100)), test(make_rows(60, seed=1, labels=["no", "yes", "unsure"])))
    assert (found["unseen-class"].severity, found["unseen-class"].count) == ("error", 20)
    assert "'unsure' (20)" in found["unseen-class"].what


def test_one_text_with_two_labels_is_an_error_that_names_all_its_rows(train, test):
    rows = make_rows(100)
    rows[50] = {**rows[0], "id": "x", "text": " " + rows[0]["text"].lower(), "label": "yes"}
    other = make_rows(60, seed=1)
    other[3] = {**rows[10], "id": "y", "label": "yes"}
    finding = findings_of(train(rows), test(other))["label-conflict"]
    assert finding.severity == "error"
    assert [(p.split, p.line, p.label) for p in finding.rows] == [
        ("train", 1, "no"),
        ("train", 51, "yes"),
        ("train", 11, "no"),
        ("test", 4, "yes"),
    ]
    assert "2 texts" in finding.what and "1 of them across files" in finding.what
    assert all(place.like and place.like.label != place.label for place in finding.rows)


def test_sets_of_classes_are_counted_class_by_class(train, test):
    rows = [{"text": f"number {n} of many words", "label": ["red", "blue"] if n % 2 else ["red"]} for n in range(40)]
    rows += [{"text": "nothing here at all", "label": []}, {"text": "number 1 of many words", "label": ["blue"]}]
    rows += [{"text": f"rare text {n} here", "label": {"Red": True, "blue": None}} for n in range(3)]
    report = check_files([train(rows), test([{"text": "an unseen text", "label": ["green", "red"]}])])
    found = {finding.code: finding for finding in report.findings}
    assert class_counts(report.statistics.splits[0], report.statistics) == {"red": 40, "blue": 21, "Red": 3}
    assert "'green' (1)" in found["unseen-class"].what and found["unseen-class"].count == 1
    assert found["label-conflict"].count == 2
    assert {ref.label for ref in found["label-conflict"].rows} == {"blue", "blue + red"}
    assert "look alike" in found["label-names"].what and found["label-names"].count == 3
    assert "one-class" not in found and "40 (88.9%)" in to_text(report)
