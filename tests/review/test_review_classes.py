"""Classes of rows in every label space: relabelled, exported in the form that the row reader takes, and read again."""

from __future__ import annotations

import json

import pytest

from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.ingest import resolve_space, unique_rows
from clsgen_dist.data.reading.label_cells import OTHERS
from clsgen_dist.review.classes import by_class, canonical, claimed, label_cell
from clsgen_dist.review.decision import Answer, ReviewError, ReviewFault, Verdict
from clsgen_dist.review.export import export
from clsgen_dist.review.overview import listed
from clsgen_dist.review.store import Filter
from clsgen_dist.review.views import class_choices, class_words
from tests.review.review_rows import review_store

CELLS = [["cough", "fever"], [], {"cough": True, "fever": 0.3, "rash": None}, None]


def rows_of(cells):
    return [{"id": f"r{i}", "text": f"Patient {i} coughs.", "label": cell, "explanation": f"Sign {i}."}
            for i, cell in enumerate(cells, start=1)]  # fmt: skip


def examples_of(path):
    """Label and answers by id, the label space found out."""
    columns, source = Columns(), str(path)
    space = resolve_space(source, columns, "auto")
    rows = unique_rows(source, columns=columns, labels=None, require_target=False, space=space)
    return {row.id: (row.label, row.answers) for row in rows}


@pytest.fixture
def several(tmp_path):
    return review_store(tmp_path, rows_of(CELLS), labels=["cough", "fever", "rash"])


def test_rows_of_several_labels_say_of_each_class_yes_no_a_probability_or_not_known(several):
    labels = several.labels()
    assert labels == ["cough", "fever", "rash"]
    assert [by_class(several.row(n).answers, labels) for n in (1, 2, 3, 4)] == [
        {"cough": 1, "fever": 1, "rash": 0},
        {"cough": 0, "fever": 0, "rash": 0},
        {"cough": 1, "fever": 0.3, "rash": None},
        {"cough": None, "fever": None, "rash": None},
    ]
    assert [class_words(several.row(n)) for n in (1, 2, 3, 4)] == [
        "cough, fever", "none of the classes", "cough", "no label",
    ]  # fmt: skip
    third = several.row(3)
    assert class_choices(third, third, labels)[1] == (
        "fever",
        [("1.0", "yes", False), ("0.0", "no", False), ("", "unknown", False), ("0.3", "30 %", True)],
    )
    assert {one.row.id for one in listed(several, "ada", Filter(label="fever"))[0]} == {"r1"}
    assert several.claim("ada", Filter(label="cough")).id == "r1"


@pytest.mark.parametrize(
    ("row", "answers", "verdict", "changed", "cell"),
    [
        (1, {"rash": 1, "fever": 0}, Verdict.RELABEL, ("label",), ["cough", "rash"]),
        (1, {"cough": 1, "fever": 1, "rash": 0}, Verdict.ACCEPT, (), ["cough", "fever"]),
        (1, {"fever": None}, Verdict.RELABEL, ("label",), {"cough": True, "fever": None, "rash": False}),
        (1, {"rash": None}, Verdict.ACCEPT, ("label",), {"cough": True, "fever": True, "rash": None}),
        (1, {"cough": 0, "fever": 0}, Verdict.RELABEL, ("label",), []),
        (2, {"rash": 1}, Verdict.RELABEL, ("label",), ["rash"]),
        (3, {"rash": 1}, Verdict.RELABEL, ("label",), {"cough": True, "fever": 0.3, "rash": True}),
        (3, {"fever": 0}, Verdict.ACCEPT, ("label",), {"cough": True, "fever": False, "rash": None}),
        (4, {"cough": 1, "rash": 0}, Verdict.RELABEL, ("label",), {"cough": True, "fever": None, "rash": False}),
        (4, {"cough": None, "fever": None, "rash": None}, Verdict.ACCEPT, (), None),
    ],
)
def test_answers_of_several_labels_are_changed_and_written_as_they_are_read(
    row, answers, verdict, changed, cell, several, tmp_path
):
    made = several.decide("ada", row, Answer(answers=answers))
    assert (made.verdict, made.changed, several.standing(row, "ada")) == (verdict, changed, made)
    export(several, tmp_path / "out.jsonl")
    written = [json.loads(line)["label"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written[row - 1] == cell and [*written[: row - 1], *written[row:]] == [*CELLS[: row - 1], *CELLS[row:]]
    again = examples_of(tmp_path / "out.jsonl")[f"r{row}"]
    read = by_class(canonical(again[1] or {}), several.labels())
    assert again[0] is None and read == by_class(made.answers, several.labels())


def test_an_explanation_is_rejected_where_the_classes_it_argues_for_are_others(several, tmp_path):
    several.decide("ada", 1, Answer(answers={"rash": 1}))
    several.decide("ada", 2, Answer(answers={"rash": 1}, explanations=("Red skin.",)))
    several.decide("ada", 3, Answer(answers={"fever": 0}))
    export(several, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["explanation"], row["chosen"], row["rejected"]) for row in rows[:3]] == [
        (None, [], ["Sign 1."]), ("Red skin.", ["Red skin."], ["Sign 2."]), ("Sign 3.", ["Sign 3."], []),
    ]  # fmt: skip
    assert rows[0]["review"]["readings"][0]["label"] == ["cough", "fever", "rash"]


@pytest.mark.parametrize("name", ["odd", OTHERS])
def test_classes_that_nobody_knows_are_refused(name, several):
    with pytest.raises(ReviewError, match="expected one of cough, fever, rash") as refused:
        several.decide("ada", 1, Answer(answers={name: 1}))
    assert refused.value.code == ReviewFault.UNKNOWN_LABEL and several.log() == []


def test_votes_stay_until_one_class_is_chosen_in_their_place(tmp_path):
    votes = {"cough": 0.7, "fever": 0.3}
    store = review_store(tmp_path, rows_of([votes, votes, votes, "rash"]))
    assert store.row(1).has_votes and not store.row(1).is_multilabel and not store.row(4).has_votes
    kept = store.decide("ada", 1, Answer())
    same = store.decide("ada", 2, Answer(label="cough"))
    other = store.decide("ada", 3, Answer(label="rash"))
    assert [(made.verdict, made.label, made.changed) for made in (kept, same, other)] == [
        (Verdict.ACCEPT, "cough", ()), (Verdict.ACCEPT, "cough", ("label",)), (Verdict.RELABEL, "rash", ("label",)),
    ]  # fmt: skip
    export(store, tmp_path / "out.jsonl")
    read = examples_of(tmp_path / "out.jsonl")
    assert read["r1"] == ("cough", votes) and read["r2"] == ("cough", None) and read["r3"] == ("rash", None)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["chosen"] for row in rows] == [["Sign 1."], ["Sign 2."], [], []]


def test_lists_are_votes_where_the_label_space_is_said_to_be_single(tmp_path):
    store = review_store(tmp_path, rows_of([["cough", "cough", "rash"]]), space="single")
    assert store.row(1).label == "cough" and dict(store.row(1).answers) == pytest.approx(
        {"cough": 2 / 3, "rash": 1 / 3}
    )


def test_a_class_with_a_probability_of_a_half_is_claimed():
    assert claimed(None, canonical({"a": 0.5, "b": 0.49, "c": None, OTHERS: 0.0})) == ("a",)
    assert label_cell(None, canonical({"a": 1.0, "b": 0.5, OTHERS: 0.0}), ["c"]) == {"c": False, "a": True, "b": 0.5}
