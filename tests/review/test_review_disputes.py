"""Two blind readings that disagree: a third person settles them, and what that leaves as it is."""

from __future__ import annotations

import json

import pytest
import requests

from clsgen_dist.review.agreement import agreements
from clsgen_dist.review.decision import Answer, ReviewError
from clsgen_dist.review.export import export
from clsgen_dist.review.overview import Status, all_rows, differing_rows, progress
from clsgen_dist.review.store import Filter, State
from tests.review.live_review import live_review
from tests.review.review_rows import Clock, plain_rows, review_store

DISPUTED = Filter(state=State.DISPUTED)


@pytest.fixture
def store(tmp_path):
    """Three rows read by ada and bea, who disagree on the first two: on the label, and on whether it is rejected."""
    store = review_store(tmp_path, plain_rows(4), second_reading=1.0, clock=Clock())
    for number, ada, bea in (
        (1, Answer(label="unclear", explanations=("Too blurred.",)), Answer(explanations=("Spiculated.",))),
        (2, Answer(is_rejected=True), Answer()),
        (3, Answer(), Answer(explanations=("Round.",))),
    ):
        store.decide("ada", number, ada)
        store.decide("bea", number, bea)
    return store


def statuses(store):
    return [read.status for read in all_rows(store)]


def test_only_a_third_person_gets_disputed_rows(store):
    assert statuses(store) == [Status.DISPUTED, Status.DISPUTED, Status.DECIDED, Status.UNDECIDED]
    assert store.claim("ada").id == "r4" and store.claim("ada", DISPUTED) is None
    assert store.claim("bea", DISPUTED) is None
    assert store.claim("carl", DISPUTED).id == "r1"
    assert store.claim("dora", DISPUTED).id == "r2", "one person settles a row"
    assert not store.claim_row("dora", 1) and not store.claim_row("carl", 3)
    with pytest.raises(ReviewError, match="r1 was given to another reviewer"):
        store.decide("dora", 1, Answer())


def test_what_the_third_person_decides_is_the_result_and_the_readings_stay_as_they_are(store, tmp_path):
    before = agreements(store)
    done = progress(store, "carl")
    assert (done.readings, done.read, done.disputed, done.left_for_me) == (8, 6, 2, 3)
    made = store.decide("carl", 1, Answer(label="benign", explanations=("Smooth.",)))
    assert made.settles and store.standing(1, "carl") == made and not store.standing(1, "ada").settles
    done = progress(store, "carl")
    assert (done.read, done.disputed, done.by_me, done.left_for_me) == (6, 1, 1, 2)
    assert agreements(store) == before and before[0].rows == 3 and before[0].same == 2
    assert export(store, tmp_path / "out.jsonl") == {"settled": 1, "disputed": 1, "decided": 1, "undecided": 1}
    first, second, *_ = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (first["label"], first["explanation"], first["chosen"]) == ("benign", "Smooth.", ["Smooth."])
    assert first["review"]["status"] == "settled" and first["review"]["reviewer"] == "carl"
    assert [(one["reviewer"], one["label"]) for one in first["review"]["readings"]] == [
        ("ada", "unclear"), ("bea", "malignant"),
    ]  # fmt: skip
    assert second["chosen"] == [] == second["rejected"] and second["label"] == "benign"
    assert [(row.id, row.settlement and row.settlement.reviewer) for row in differing_rows(store)] == [
        ("r1", "carl"), ("r2", None),
    ]  # fmt: skip


def test_a_settlement_can_be_changed_and_taken_back_by_who_made_it_alone(store):
    store.decide("carl", 1, Answer())
    assert store.decide("carl", 1, Answer(label="benign")).settles
    assert not store.claim_row("dora", 1)
    assert store.undo("carl").id == "r1" and store.standing(1, "carl").label == "malignant"
    store.undo("carl")
    assert statuses(store)[0] == Status.DISPUTED and store.claim("dora", DISPUTED).id == "r2"
    assert store.claim("carl", DISPUTED).id == "r1", "it is leased to carl again"


def test_readers_who_come_to_agree_need_nobody_else(store):
    assert store.claim("carl").id == "r1"
    store.decide("ada", 1, Answer())
    assert statuses(store)[0] == Status.DECIDED and agreements(store)[0].same == 2
    with pytest.raises(ReviewError, match="decided meanwhile"):
        store.decide("carl", 1, Answer())
    assert store.claim("carl").id == "r2", "the lease of a row that waits for nobody is no next row"


def test_a_reading_taken_back_after_the_settlement_changes_nothing(store):
    store.decide("carl", 2, Answer(is_rejected=True))
    store.undo("bea")
    store.undo("bea")
    assert store.standing(2, "bea") is None and statuses(store)[1] == Status.SETTLED
    assert store.claim("bea").id == "r3" and not store.claim_row("dora", 2)


def test_the_third_person_sees_both_readings_and_may_start_from_one(store, free_port):
    def session(name):
        client = requests.Session()
        client.post(f"{url}/reviewer", json={"name": name}, timeout=9)
        return client

    with live_review(store, free_port()) as url:
        ada, carl = session("ada"), session("carl")
        page = ada.get(f"{url}/row/1", timeout=9).text
        assert "a third person will settle it" in page and "Spiculated" not in page and "Start from" not in page
        assert "2 disputed rows to settle" in page
        page = carl.get(f"{url}/?state=disputed", timeout=9).text
        assert "Two readings disagree" in page and "Too blurred." in page and "Spiculated." in page
        assert "<textarea" in page and "Margins 1 are irregular.</textarea>" in page and "data-complete" not in page
        page = carl.get(f"{url}/row/1?from=ada", timeout=9).text
        assert "Too blurred.</textarea>" in page and 'value="unclear" checked' in page and "data-complete" in page
        sent = {"row": 1, "key": "k" * 8, "label": "unclear", "explanations": ["Too blurred."]}
        assert carl.post(f"{url}/decide", json=sent, timeout=9).ok
        assert carl.post(f"{url}/decide", json=sent | {"key": "l" * 8, "row": 2}, timeout=9).ok
        page = carl.get(f"{url}/agreement", timeout=9).text
        assert page.count("Settled: carl relabelled (<bdi>unclear</bdi>)") == 2 and "they agree on 2" in page
        page = session("dora").get(f"{url}/?state=disputed", timeout=9).text
        assert "No row that these filters choose" in page and "to settle" not in page
