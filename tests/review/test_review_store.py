"""The store of a review: order, leases, undo, second reading; processes that write at once, and one that is killed."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clsgen_dist.data.example import Columns
from clsgen_dist.errors import DataError
from clsgen_dist.review.decision import Answer, Issue, ReviewError, ReviewFault, Verdict, merged_spans
from clsgen_dist.review.import_rows import import_rows, is_read_twice, issues_of
from clsgen_dist.review.overview import issue_codes, listed, pace, progress
from clsgen_dist.review.store import LEASE_SECONDS, Filter, State, Store, checked_name
from tests.review.review_rows import Clock, plain_rows, review_store, written

ACCEPT, REJECT = Answer(), Answer(is_rejected=True)


def test_the_most_doubtful_rows_come_first_then_those_with_more_issues_then_the_files_order(tmp_path):
    rows = plain_rows(6)
    rows[4]["doubt"] = 0.2
    rows[5]["doubt"] = 0.9
    rows[2]["issues"] = [{"code": "copied", "detail": "12 words"}, {"code": "short"}]
    rows[3]["issues"] = [{"code": "short"}]
    store = review_store(tmp_path, rows)
    order = []
    while row := store.claim("ada"):
        order.append(row.id)
        store.decide("ada", row.number, ACCEPT)
    assert order == ["r6", "r5", "r3", "r4", "r1", "r2"]
    assert store.row(3).issues == (Issue("copied", "12 words"), Issue("short"))
    assert issue_codes(store) == [("short", 2), ("copied", 1)]


def test_a_row_is_leased_to_one_reviewer_until_the_lease_ends(tmp_path):
    clock = Clock()
    store = review_store(tmp_path, plain_rows(2), clock=clock)
    first = store.claim("ada")
    assert store.claim("ada") == first, "a second window has the same row"
    assert store.claim("bea").id == "r2" and store.claim("carl") is None
    assert not store.claim_row("bea", first.number)
    clock.now += LEASE_SECONDS + 1
    assert store.claim("carl") == first
    with pytest.raises(ReviewError, match="r1 was given to another reviewer") as refused:
        store.decide("ada", first.number, ACCEPT)
    assert refused.value.code == ReviewFault.TAKEN and store.log() == []
    store.decide("bea", 2, ACCEPT)  # her lease has ended too, but nobody else has the row


def test_two_browsers_with_the_same_name_are_two_people_to_the_queue(tmp_path):
    store = review_store(tmp_path, plain_rows(3))
    first, second = (store.claim("ada", browser=browser) for browser in ("a", "b"))
    assert (first.id, second.id) == ("r1", "r2") and store.claim("ada", browser="a") == first
    assert not store.claim_row("ada", 1, "b")
    with pytest.raises(ReviewError, match="r1 was given to another"):
        store.decide("ada", 1, ACCEPT, browser="b")
    store.decide("ada", 1, ACCEPT, browser="a")
    store.release("b")
    assert store.claim("bea", browser="a").id == "r2"
    twice = review_store(tmp_path / "twice", plain_rows(2), second_reading=1.0)
    assert [twice.claim("ada", browser=browser).id for browser in ("a", "b")] == ["r1", "r2"]
    assert [twice.claim("bea", browser=browser).id for browser in ("c", "d")] == ["r1", "r2"]


def test_who_looks_at_their_own_decision_does_not_keep_the_second_reader_away(tmp_path):
    store = review_store(tmp_path, plain_rows(1), second_reading=1.0)
    store.decide("ada", 1, ACCEPT)
    store.decide("ada", 1, REJECT)
    assert store.claim_row("ada", 1)
    store.undo("ada")
    assert store.standing(1, "ada").verdict == Verdict.ACCEPT
    assert store.claim("bea").id == "r1" and store.claim("carl") is None
    assert progress(store, "bea").left_for_me == 1 and progress(store, "ada").left_for_me == 0


def test_decisions_say_what_was_changed(tmp_path):
    store = review_store(tmp_path, plain_rows(1))

    def decide(**fields):
        made = store.decide("ada", 1, Answer(**fields))
        assert store.standing(1, "ada") == made
        return made.verdict, made.changed

    assert decide() == (Verdict.ACCEPT, ())
    assert decide(label="malignant", explanations=("Margins 1 are irregular.",)) == (Verdict.ACCEPT, ())
    assert decide(evidence=((15, 24), (4, 8), (8, 10))) == (Verdict.ACCEPT, ("evidence",))
    assert store.standing(1, "ada").evidence == ((4, 10), (15, 24))
    assert decide(explanations=(" They are spiculated. ", "")) == (Verdict.MEND, ("explanations",))
    assert store.standing(1, "ada").explanations == ("They are spiculated.",)
    assert decide(explanations=("",)) == (Verdict.MEND, ("explanations",))
    assert decide(explanations=(None, "And another.")) == (Verdict.MEND, ("explanations",))
    assert len(store.standing(1, "ada").explanations) == 2
    assert decide(label="unclear") == (Verdict.RELABEL, ("label",))
    assert decide(is_rejected=True) == (Verdict.REJECT, ())
    for fields, code in (
        ({"label": "round"}, ReviewFault.UNKNOWN_LABEL),
        ({"evidence": ((3, 400),)}, ReviewFault.WRONG_EVIDENCE),
        ({"evidence": ((3, 3),)}, ReviewFault.WRONG_EVIDENCE),
        ({"explanations": ("x" * 20_001,)}, ReviewFault.WRONG_EXPLANATION),
        ({"explanations": ("\0",)}, ReviewFault.WRONG_EXPLANATION),
    ):
        with pytest.raises(ReviewError) as refused:
            decide(**fields)
        assert refused.value.code == code
    assert store.standing(1, "ada").verdict == Verdict.REJECT and len(store.log()) == 8


def test_undo_adds_an_entry_and_brings_back_what_was_decided_before(tmp_path):
    store = review_store(tmp_path, plain_rows(3))
    store.decide("ada", 1, ACCEPT)
    store.decide("ada", 2, ACCEPT)
    store.decide("ada", 1, REJECT)
    assert store.undo("ada").id == "r1" and store.standing(1, "ada").verdict == Verdict.ACCEPT
    assert store.undo("ada").id == "r2" and store.standing(2, "ada") is None
    assert store.claim("ada").id == "r2", "the row is the reviewer's again"
    assert store.undo("ada").id == "r1" and store.standing(1, "ada") is None
    with pytest.raises(ReviewError, match="no decision"):
        store.undo("ada")
    with pytest.raises(ReviewError):
        store.undo("bea")
    assert [entry["undoes"] for entry in store.log()] == [None, None, None, 3, 2, 1]
    assert progress(store, "ada").read == 0


def test_the_same_request_sent_twice_is_one_decision(tmp_path):
    store = review_store(tmp_path, plain_rows(1))
    made = store.decide("ada", 1, ACCEPT, key="k")
    assert store.decide("ada", 1, REJECT, key="k") == made and len(store.log()) == 1


def test_a_second_reading_goes_to_another_reviewer_and_is_blind(tmp_path):
    rows = plain_rows(40)
    store = review_store(tmp_path, rows, second_reading=0.5)
    twice = {row["id"] for row in rows if is_read_twice(row["id"], 0.5)}
    assert 10 <= len(twice) <= 30
    seen = {"ada": [], "bea": [], "carl": []}
    for name in seen:
        while row := store.claim(name):
            assert row == store.row(row.number) and store.standing(row.number, name) is None
            seen[name].append(row.id)
            store.decide(name, row.number, Answer(explanations=("Changed.",)))
    assert len(seen["ada"]) == 40 and set(seen["bea"]) == twice and seen["carl"] == []
    done = progress(store, "bea")
    assert (done.rows, done.readings, done.read) == (40, 40 + len(twice), 40 + len(twice))
    assert (done.by_me, done.left_for_me) == (len(twice), 0)


def test_filters_skips_and_lists(tmp_path):
    rows = plain_rows(5)
    rows[3]["issues"] = ["short"]
    store = review_store(tmp_path, rows)
    assert store.claim("ada", Filter(label="benign")).id == "r4"
    store.skip("ada", 4)
    assert store.claim("ada", Filter(label="benign")).id == "r2"
    assert store.claim("bea", Filter(issue="short")).id == "r4", "a skipped row is free for others"
    assert store.claim("carl", Filter(issue="short")) is None
    store.decide("ada", 2, REJECT)
    by_ada, count = listed(store, "bea", Filter(), decided_by="ada")
    assert count == 1 and by_ada[0].row.id == "r2" and by_ada[0].own is None and by_ada[0].decided_by == ("ada",)
    open_rows, count = listed(store, "ada", Filter(label="malignant", state=State.UNDECIDED), size=2)
    assert count == 3 and [one.row.id for one in open_rows] == ["r1", "r3"]
    for row in (1, 3, 5):
        store.decide("ada", row, ACCEPT)
    store.decide("bea", 4, ACCEPT)
    assert store.claim("ada") is None


def test_notes_are_each_reviewers_own(tmp_path):
    store = review_store(tmp_path, plain_rows(1))
    store.set_note("ada", 1, " see <b>above</b> ")
    assert store.note("ada", 1) == "see <b>above</b>" and store.note("bea", 1) == ""
    store.set_note("ada", 1, "")
    assert store.note("ada", 1) == ""
    with pytest.raises(ReviewError, match="5001 characters"):
        store.set_note("ada", 1, "x" * 5001)
    with pytest.raises(ReviewError, match="no row 9"):
        store.set_note("ada", 9, "x")


def test_a_second_import_adds_new_rows_and_keeps_decisions(tmp_path):
    store = review_store(tmp_path, plain_rows(2))
    store.decide("ada", 1, REJECT)
    more = written(tmp_path / "more.jsonl", [*plain_rows(3), {"id": "bad", "text": ""}])
    assert str(import_rows(store, str(more), Columns())) == "1 rows added, 2 known, 1 unreadable"
    assert store.standing(1, "ada").verdict == Verdict.REJECT
    quarantined = json.loads((tmp_path / "review.sqlite.unreadable.jsonl").read_text())
    assert (quarantined["line"], quarantined["code"]) == (4, "empty-text")
    written(more, [{"id": "r1", "text": "Another text."}])
    with pytest.raises(DataError, match="'r1' has another text"):
        import_rows(store, str(more), Columns())
    written(more, [{"id": "x", "text": ""}])
    with pytest.raises(DataError, match="no row to review"):
        import_rows(store, str(more), Columns())
    (tmp_path / "no.sqlite").write_text("not a database at all, but long enough to be looked at" * 20)
    with pytest.raises(DataError, match="cannot be used as a store"):
        Store(tmp_path / "no.sqlite")


WRITER = """
import sys, time
from pathlib import Path
from clsgen_dist.review.decision import Answer
from clsgen_dist.review.store import Store
store, name = Store(Path(sys.argv[1])), sys.argv[2]
while row := store.claim(name):
    made = store.decide(name, row.number, Answer(label="unclear"))
    print(row.number, made.entry, flush=True)
"""


def writer(store, name):
    command = [sys.executable, "-c", WRITER, str(store.path), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))


def test_processes_that_write_at_once_never_share_a_row(tmp_path):
    store = review_store(tmp_path, plain_rows(120))
    processes = [writer(store, f"reviewer {i}") for i in range(3)]
    printed = [process.communicate(timeout=60)[0].split() for process in processes]
    rows = [int(number) for words in printed for number in words[::2]]
    assert Counter(rows) == Counter(range(1, 121))
    assert len(store.log()) == 120


def test_a_killed_process_loses_nothing_that_it_had_acknowledged(tmp_path):
    store = review_store(tmp_path, plain_rows(2000))
    process = writer(store, "ada")
    lines = []
    begun = time.monotonic()
    for line in process.stdout:
        lines.append(line)
        if len(lines) == 40:
            process.send_signal(signal.SIGKILL)
            break
        assert time.monotonic() - begun < 60
    lines += process.stdout.read().splitlines(keepends=True)
    process.wait()
    acknowledged = [tuple(map(int, line.split())) for line in lines if line.endswith("\n")]
    kept = {(entry["row"], entry["entry"]) for entry in store.log()}
    assert len(acknowledged) >= 40 and set(acknowledged) <= kept and len(kept) - len(acknowledged) <= 1
    again = store.claim("ada")
    assert again.number not in {row for row, _ in kept}
    store.decide("ada", again.number, ACCEPT)


def test_pace_counts_time_at_work():
    assert pace([1000 - 10 * i for i in range(5)]) == 360
    assert pace([10_000.0, 9_990.0, 20.0, 10.0]) == 360, "a long gap is a break"
    assert pace([]) is None and pace([1.0]) is None and pace([5.0, 5.0]) is None


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (None, ()),
        ("", ()),
        ("short", (Issue("short"),)),
        ('[{"code": "short", "detail": 3}]', (Issue("short", "3"),)),
        (["a", {"code": "b"}, {"detail": "no code"}, None], (Issue("a"), Issue("b"))),
        (7, (Issue("7"),)),
    ],
)
def test_issues_are_read_however_they_are_written(cell, expected):
    assert issues_of(cell) == expected


def test_names_of_reviewers():
    assert checked_name("  Ada   L. ") == "Ada L."
    for name in ("", " ", "x" * 61, "a\u202eb", "a\0"):
        with pytest.raises(ReviewError):
            checked_name(name)


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(1, 20)).filter(lambda s: s[0] < s[1])))
def test_merged_spans_cover_the_same_characters_in_order(spans):
    merged = merged_spans(tuple(spans), 20)
    assert {i for s, e in merged for i in range(s, e)} == {i for s, e in spans for i in range(s, e)}
    assert all(first[1] < second[0] for first, second in itertools.pairwise(merged))
