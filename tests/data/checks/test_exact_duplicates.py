"""Repeated texts within a file and between files, exact and nearly the same."""

from __future__ import annotations

import time

import pytest

from clsgen_dist.training.check_files import check_files
from tests.data.checks.planted import findings_of, lines_of, make_rows, write_rows


def test_copies_that_differ_in_case_and_space_are_found_with_their_originals(train):
    rows = make_rows(100)
    rows[20]["text"] = rows[0]["text"].upper().replace(" ", "  ")
    rows[30]["text"] = f"\t{rows[0]['text']}\n"
    found = findings_of(train(rows))
    assert {code: f.severity for code, f in found.items()} == {"exact-duplicates": "warning"}
    assert [(p.line, p.like.line) for p in found["exact-duplicates"].rows] == [(21, 1), (31, 1)]
    assert "98 different texts" in found["exact-duplicates"].what


def test_near_copies_are_reported_in_groups(train):
    rows = make_rows(100)
    rows[21]["text"] = rows[1]["text"].replace("The", "A", 1)
    rows[31]["text"] = rows[1]["text"] + " Indeed."
    found = findings_of(train(rows))
    assert {code: f.severity for code, f in found.items()} == {"near-duplicates": "warning"}
    assert lines_of(found["near-duplicates"]) == [2, 22, 32]
    assert "in 1 group, the largest of 3" in found["near-duplicates"].what


def test_the_same_text_in_two_files_is_an_error_and_nearly_the_same_a_warning(tmp_path, train, test):
    rows, held_out, dev = make_rows(200), make_rows(60, seed=1), make_rows(60, seed=2)
    held_out[5]["text"], held_out[5]["label"] = rows[10]["text"].title(), rows[10]["label"]
    held_out[7]["text"] = rows[12]["text"].replace(" and ", " & ", 1)
    dev[9]["text"], dev[9]["label"] = held_out[0]["text"], held_out[0]["label"]
    dev_file = write_rows(tmp_path / "dev.jsonl", dev)
    findings = check_files([train(rows), dev_file, test(held_out)]).findings
    assert [(f.code, f.severity, f.splits, f.count) for f in findings] == [
        ("leakage", "error", ("train", "test"), 1),
        ("leakage", "error", ("dev", "test"), 1),
        ("near-leakage", "warning", ("train", "test"), 1),
    ]
    leaked = [(p.split, p.line, p.like.split, p.like.line) for f in findings for p in f.rows]
    assert leaked == [("test", 6, "train", 11), ("test", 1, "dev", 10), ("test", 8, "train", 13)]


def test_rows_that_differ_only_in_a_counter_are_found(train):
    text = "the courier left the parcel with a neighbour and rang twice before leaving " * 2
    rows = [{**row, "text": f"{text} {i}"} for i, row in enumerate(make_rows(200))]
    found = findings_of(train(rows))
    assert found["shared-template"].severity == "warning"


def test_a_shared_instruction_is_reported_and_hides_no_copies(train, test):
    rows, held_out = make_rows(200), make_rows(60, seed=1)
    held_out[7]["text"] = rows[12]["text"].replace(" and ", " & ", 1)
    for row in rows + held_out:
        row["text"] = (
            "You are a careful reviewer of short statements. Read what is written below twice, ask yourself who could "
            "have output so, weigh each word, do not guess at facts you cannot know, then decide. " + row["text"]
        )
    found = findings_of(train(rows), test(held_out))
    assert {code: f.severity for code, f in found.items()} == {"shared-template": "info", "near-leakage": "warning"}
    assert [(p.line, p.like.line) for p in found["near-leakage"].rows] == [(8, 13)]


def test_copies_with_the_same_id_are_refused_as_training_refuses_them(train):
    rows = make_rows(100)
    finding = findings_of(train([*rows, rows[0], rows[1]]))["unusable-rows"]
    assert (finding.severity, lines_of(finding)) == ("error", [101, 102])
    assert "a unique id" in finding.remedy


def test_many_identical_rows_are_all_counted_quickly(train):
    rows = [{"text": "all rows say this", "label": "yes" if i % 2 else "no"} for i in range(20_000)]
    start = time.monotonic()
    found = findings_of(train(rows))
    assert time.monotonic() - start < 60
    assert found["exact-duplicates"].count == 19_999
    assert found["label-conflict"].count == 20_000


@pytest.mark.long
def test_the_real_sets_raise_no_false_alarm(shared_data):
    errors = {}
    for name in ("comve", "pubmedqa", "hatecheck", "contractnli"):
        files = [str(shared_data / name / f"{split}.jsonl") for split in ("train", "dev", "test")]
        found = check_files(files).findings
        errors[name] = [(f.code, f.splits, lines_of(f)) for f in found if f.severity == "error"]
        shares = [f.count / f.of for f in found if f.code == "near-leakage"]
        assert all(share < 0.1 for share in shares)
    # Row 628 of ComVE's dev split is identical to row 3544 of its training split.
    assert errors == {
        "comve": [("leakage", ("train", "dev"), [628])],
        "pubmedqa": [],
        "hatecheck": [],
        "contractnli": [],
    }
