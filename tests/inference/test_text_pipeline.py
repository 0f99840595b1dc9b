"""A model as transformers' pipelines are used: a text, a list, any iterable."""

from __future__ import annotations

import pytest

from clsgen_dist import pipeline
from clsgen_dist.errors import DataError
from tests.inference.conftest import hand_made_export

TEXTS = ["one", "two words", "three more words", "4"]


def test_texts_lists_and_iterables_get_the_predictors_answers(folder):
    pipe = pipeline(folder, batch_size=2)
    expected = pipe.predictor.predict(TEXTS, batch_size=2)
    found = pipe(TEXTS)
    assert [(a["label"], a["explanation"]) for a in found] == [(p.label, p.explanation) for p in expected]
    assert [a["score"] for a in found] == [p.probabilities[p.label] for p in expected]
    assert pipe("one", batch_size=1) == pipe(["one"], batch_size=1) and len(pipe("one")) == 1
    pulled = []

    def stream():
        for text in TEXTS * 20:
            pulled.append(text)
            yield text

    answers = pipe(stream(), explain=False, batch_size=2)
    first = next(answers)
    assert len(pulled) == 16 and "explanation" not in first
    assert len(list(answers)) == 79


def test_multi_label_scores_and_inputs_that_are_no_text(tmp_path):
    pipe = pipeline(hand_made_export(tmp_path, ["a", "b", "c"], "multilabel"), explain=False)
    for answer in pipe(TEXTS):
        assert answer["score"] == {
            name: pytest.approx(answer["probabilities"][name], abs=1e-6) for name in answer["label"]
        }
    for bad in ([None], ["one", " "], [5]):
        with pytest.raises(DataError, match="expected a text"):
            pipe(bad)
