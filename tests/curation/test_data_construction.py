"""From raw rows with planted faults to a trained model, by the commands alone; the review by keyboard in a browser."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import data_construction as steps
from planted_rows import CODES, Fault

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, run_command, ranks, recipe, browser):
    folder = tmp_path_factory.mktemp("construction")

    def train(flags):
        tiny = recipe(folder / "unused", train__max_steps=4, train__batch_size=8)
        assert ranks([*tiny, *flags], ranks=1, timeout=300).status == [0]

    tools = steps.Tools(lambda words, check=True: run_command("clsgen", *words, check=check), train, browser)
    return steps.construct(folder, tools, [], test_rows=24)


def test_the_check_of_the_file_names_each_kind_of_fault(outcome):
    assert outcome.findings >= {*CODES.values(), "partly-explained"}


def test_what_the_gate_found_of_each_planted_fault(outcome):
    found = {
        fault: sum(CODES[fault] in outcome.issues[one.good["id"]] for one in outcome.planted if one.fault == fault)
        for fault in CODES
    }
    assert found.pop(Fault.WRONG_LABEL) >= 12  # of rows that look like those of the other class, nobody can tell
    assert found == dict.fromkeys(found, 24)
    good = [one.good["id"] for one in outcome.planted if one.fault is None]
    assert sum(bool(outcome.issues[name]) for name in good) <= 4


def test_the_reviewer_decides_on_every_row_that_the_gate_doubts(outcome):
    doubted = sum(bool(outcome.issues[one.good["id"]]) for one in outcome.planted if one.fault != Fault.LEAK)
    assert outcome.decisions.total() == doubted
    assert outcome.decisions["mend"] == 24 and outcome.decisions["reject"] == 72
    relabelled = [one for one in outcome.planted if one.fault == Fault.WRONG_LABEL and outcome.issues[one.good["id"]]]
    assert outcome.decisions["relabel"] == len(relabelled)


def test_what_is_trained_on_in_the_end_has_no_fault_that_was_found(outcome):
    left = {fault: len(steps.remaining(outcome, fault)) for fault in CODES}
    missed = [one for one in outcome.planted if one.fault == Fault.WRONG_LABEL and not outcome.issues[one.good["id"]]]
    assert left == dict.fromkeys(left, 0) | {Fault.WRONG_LABEL: len(missed)}
    assert len(outcome.final) == 300 - 24  # the leaks
    for one in outcome.planted:
        row = outcome.final.get(one.good["id"])
        if one.fault is None:
            assert row == {**row, **one.good}
        if one.fault == Fault.OTHER_CLASS:
            assert row["explanation"] == one.good["explanation"]


def test_both_models_are_measured_on_the_same_held_out_rows(outcome):
    before, after = outcome.before, outcome.after
    assert [row.id for row in before.examples] == [row.id for row in after.examples] and len(after.examples) == 24
    assert after.comparison is not None and "auroc" in after.comparison.differences
    table = steps.models_table(outcome)
    assert table.count("\n") >= 9 and "| rows trained on" in table
    report = json.loads(
        steps.faults_table(outcome) and (Path(after.model).parent / "report-after/report.json").read_text()
    )
    assert report["rows"] == 24
