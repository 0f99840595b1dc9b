"""Agreement of reviewers, on values that are known."""

from __future__ import annotations

import pytest

from clsgen_dist.review.agreement import agreement_on, agreements, nominal_alpha
from clsgen_dist.review.decision import Answer
from clsgen_dist.review.overview import Status, all_rows
from tests.review.review_rows import plain_rows, review_store

# Krippendorff (2011), example C: four observers, twelve units, values missing.
OBSERVERS = ("1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 .")


def test_alpha_of_krippendorffs_own_example():
    columns = zip(*(line.split() for line in OBSERVERS), strict=True)
    assert nominal_alpha([[v for v in column if v != "."] for column in columns]) == pytest.approx(0.743, abs=5e-4)


def test_alpha_of_binary_data_without_missing_values():
    """Krippendorff (2011), example A: two observers, ten units: 0.095."""
    first, second = "0100000000", "1110010010"
    assert nominal_alpha([list(pair) for pair in zip(first, second, strict=True)]) == pytest.approx(0.095, abs=5e-4)
    assert nominal_alpha([["a", "a"], ["b", "b"]]) == 1
    assert nominal_alpha([["a", "a"]]) is None and nominal_alpha([]) is None and nominal_alpha([["a"], ["b"]]) is None


def test_kappa_of_a_pair_by_hand():
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: κ = (0.7 - 0.5) / 0.5."""
    table = {("y", "y"): 20, ("y", "n"): 5, ("n", "y"): 10, ("n", "n"): 15}
    readings = [{"ada": a, "bea": b} for (a, b), count in table.items() for _ in range(count)]
    found = agreement_on("label", [*readings, {"carl": "y", "ada": "y"}])
    pair = found.pairs[0]
    assert (pair.first, pair.second, pair.rows, pair.same) == ("ada", "bea", 50, 35)
    assert pair.kappa == pytest.approx(0.4) and found.rows == 51 and found.same == 36
    assert found.pairs[1].kappa is None and len(found.pairs) == 2


def test_only_rows_that_were_read_completely_count(tmp_path):
    store = review_store(tmp_path, plain_rows(4), second_reading=1.0)
    for row in (1, 2, 3, 4):
        store.decide("ada", row, Answer())
    assert agreements(store)[0].rows == 0
    store.decide("bea", 1, Answer())
    store.decide("bea", 2, Answer(label="malignant"))
    store.decide("bea", 3, Answer(is_rejected=True))
    store.undo("bea")
    store.decide("bea", 3, Answer(is_rejected=True))
    label, rejected = agreements(store)
    assert (label.question, label.rows, label.same) == ("label", 3, 2)
    assert (rejected.question, rejected.rows, rejected.same) == ("rejected", 3, 2)


def test_what_is_changed_after_both_readings_settles_the_row_and_is_not_blind(tmp_path):
    store = review_store(tmp_path, plain_rows(1), second_reading=1.0)
    store.decide("ada", 1, Answer(label="unclear"))
    store.decide("ada", 1, Answer())
    store.decide("bea", 1, Answer(label="unclear"))
    assert agreements(store)[0].same == 0 and next(all_rows(store)).status == Status.DISPUTED
    store.decide("bea", 1, Answer())
    assert agreements(store)[0].same == 0 and next(all_rows(store)).status == Status.DECIDED
