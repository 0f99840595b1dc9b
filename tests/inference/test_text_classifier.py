"""An exported model as a scikit-learn classifier: shapes, order of the classes, texts in odd containers, real tools."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from clsgen_dist import TextClassifier
from clsgen_dist.errors import DataError, ModelError
from clsgen_dist.hf_export.artifact import ModelCard
from tests.inference.conftest import hand_made_export

TEXTS = ["one", "two words", "three more words", "one"]


def test_probabilities_are_the_predictors_with_the_positive_class_in_column_1(folder):
    card = ModelCard.read(folder)
    first = TextClassifier(folder)
    assert list(first.classes_) == ["no", "yes"]
    card = ModelCard(**{**vars(card), "positive_label": "no", "thresholds": [0.999]})
    card.write(folder)
    model = TextClassifier(folder)
    assert list(model.classes_) == ["yes", "no"]  # the model's order of its logits stays
    answers = model.predictor.predict(TEXTS, explain=False)
    p_NC = model.predict_proba(TEXTS)
    assert p_NC.shape == (4, 2) and p_NC.sum(axis=1) == pytest.approx(np.ones(4))
    # Each text is computed once, so another batch, and on some processors another last digit.
    assert p_NC[:, 1] == pytest.approx([answer.probabilities["no"] for answer in answers], rel=1e-6)
    np.testing.assert_array_equal(first.predict_proba(TEXTS), p_NC[:, ::-1])
    assert model.predict(TEXTS).tolist() == [answer.label for answer in answers]
    by_argmax = TextClassifier(folder, rule="argmax").predict(TEXTS)
    assert by_argmax.tolist() == [["yes", "no"][int(p > 0.5)] for p in p_NC[:, 1]]


@pytest.mark.parametrize(("kind", "shape"), [("multilabel", (4, 3)), ("ordinal", (4,))])
def test_other_label_spaces(tmp_path, kind, shape):
    labels = ["low", "mid", "high"]
    model = TextClassifier(hand_made_export(tmp_path, labels, kind))
    answers = model.predictor.predict(TEXTS, explain=False)
    p_NC = model.predict_proba(TEXTS)
    expected = [[answer.probabilities[name] for name in labels] for answer in answers]
    np.testing.assert_allclose(p_NC, expected, rtol=1e-6)
    decided = model.predict(TEXTS)
    assert decided.shape == shape
    if kind == "multilabel":
        assert decided.tolist() == [[int(name in answer.label) for name in labels] for answer in answers]
        assert TextClassifier(model.folder, rule="argmax").predict(TEXTS).tolist() == (p_NC >= 0.5).astype(int).tolist()
    else:
        assert decided.tolist() == [answer.label for answer in answers]
        assert TextClassifier(model.folder, rule="argmax").predict(TEXTS).tolist() == [
            labels[i] for i in p_NC.argmax(axis=1)
        ]


def test_texts_come_in_any_container_and_are_computed_once(folder, monkeypatch):
    model = TextClassifier(folder, batch_size=2)
    expected, asked = model.predict_proba(TEXTS), []
    compute = model.predictor.predict
    monkeypatch.setattr(model.predictor, "predict", lambda texts, **k: asked.extend(texts) or compute(texts, **k))
    column = pd.Series(TEXTS)
    for texts in (
        np.array(TEXTS),
        column,
        pd.DataFrame({"text": TEXTS}),
        column.to_numpy().reshape(-1, 1),
        tuple(TEXTS),
    ):
        np.testing.assert_array_equal(model.predict_proba(texts), expected)
    assert asked == []
    model.predict([*TEXTS, "new", "new"])
    assert asked == ["new"]
    assert model.predict_proba([]).shape == (0, 2) and model.predict([]).shape == (0,)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ("a text", "single text"),
        ([["a", "b"]], r"shape \(1, 2\)"),
        (["a", None], "None in row 1"),
        (["a", " "], "' ' in row 1"),
        ([3], "3 in row 0"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(folder, texts, words):
    with pytest.raises(DataError, match=words):
        TextClassifier(folder).predict_proba(texts)


def test_it_is_fitted_and_copies_without_its_weights(folder, tmp_path):
    model = TextClassifier(folder, rule="argmax")
    check_is_fitted(model)
    expected = model.predict_proba(TEXTS)
    assert clone(model).get_params() == model.get_params()
    saved = pickle.dumps(model)
    assert len(saved) < 2000
    np.testing.assert_array_equal(pickle.loads(saved).predict_proba(TEXTS), expected)
    with pytest.raises(NotImplementedError, match="prefit=True"):
        model.fit(TEXTS, ["no"] * 4)
    with pytest.raises(ValueError, match="rule is 'best', expected 'threshold' or 'argmax'"):
        TextClassifier(folder, rule="best").predict(TEXTS)
    with pytest.raises(ValueError, match="rule is 'best'"):
        model.set_params(rule="best").predict(TEXTS)
    other = hand_made_export(tmp_path / "other", ["calm", "urgent"])
    assert list(model.set_params(rule="argmax", folder=other).classes_) == ["calm", "urgent"]
    with pytest.raises(ModelError, match="is not an exported dual-head model"):
        TextClassifier(tmp_path / "nothing").predict(TEXTS)


def test_scikit_learn_scores_and_calibrates_it(folder):
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from sklearn.metrics import roc_auc_score

    model = TextClassifier(folder)
    texts = [f"text {n} " + "so " * (n % 7) for n in range(40)]
    p_yes_N = model.predict_proba(texts)[:, 1]
    labels = np.where(p_yes_N > np.median(p_yes_N), "yes", "no")
    assert roc_auc_score(labels == "yes", p_yes_N) == 1.0
    assert model.score(texts, model.predict(texts)) == 1.0
    outer = CalibratedClassifierCV(FrozenEstimator(model), method="sigmoid", cv=2).fit(texts, labels)
    assert (outer.predict(texts) == labels).mean() > 0.75
