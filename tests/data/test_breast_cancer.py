"""The demo's rows: disjoint splits, and explanations that are true to their notes."""

from __future__ import annotations

import numpy as np
import pytest

from clsgen_dist.data.demos import breast_cancer
from clsgen_dist.data.reading.records import find_source
from clsgen_dist.errors import DataError


@pytest.fixture(scope="module")
def splits():
    return breast_cancer.load_splits(seed=3)


def test_splits_share_no_row_and_keep_the_base_rate(splits):
    ids = [row["id"] for part in splits.values() for row in part.rows]
    assert len(ids) == len(set(ids)) == 569
    rates = [part.is_malignant.mean() for part in splits.values()]
    assert max(rates) - min(rates) < 0.02


def test_every_explanation_names_its_label_and_states_only_what_the_note_says(splits):
    for part in splits.values():
        for row in part.rows:
            assert len(set(row["explanations"])) == 3
            for explanation in row["explanations"]:
                assert explanation.lower().startswith(row["label"])
                assert len(breast_cancer.stated_findings(explanation)) == 2
                assert breast_cancer.evidence_is_true(row["text"], explanation)


def test_a_false_or_empty_explanation_is_detected(splits):
    note = splits["train"].rows[0]["text"]
    (finding, level), *_ = breast_cancer.stated_findings(note)
    other = next(word for word in breast_cancer.LEVELS if word != level)
    assert breast_cancer.evidence_is_true(note, f"Benign: {finding} {level}.")
    assert not breast_cancer.evidence_is_true(note, f"Benign: {finding} {other}.")
    assert not breast_cancer.evidence_is_true(note, "Benign, I think.")


def test_words_and_evidence_come_from_the_training_split_alone(monkeypatch):
    from sklearn import datasets

    raw = datasets.load_breast_cancer()
    before = breast_cancer.load_splits(seed=0)["train"].rows
    test_ids = [int(str(r["id"]).split("-")[1]) for r in breast_cancer.load_splits(seed=0)["test"].rows]
    raw.data[test_ids] = np.random.default_rng(0).permutation(raw.data[test_ids]) * 100
    monkeypatch.setattr(datasets, "load_breast_cancer", lambda: raw)
    assert breast_cancer.load_splits(seed=0)["train"].rows == before


def test_unknown_demo_sets_and_splits_are_refused():
    with pytest.raises(DataError, match="not a demo dataset"):
        find_source("demo:breast-cancre/train")
    with pytest.raises(DataError, match="train, dev, test"):
        find_source("demo:breast-cancer/trian")
