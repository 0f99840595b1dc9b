"""Which class an explanation states, and how that agrees with the head."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clsgen_dist.errors import DataError
from clsgen_dist.evaluation.metrics import class_metrics
from clsgen_dist.explanations.stated_class import (
    NOT_STATED,
    ClassNames,
    alignment,
    cohen_kappa,
    contradictions,
    names_decided_class,
    stated_classes,
    stated_decided_kappa,
    stated_sets,
)

LABELS = ["benign", "malignant", "non-benign"]


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("Benign, as it is small.", 0),
        ("This is not malignant but benign.", 0),
        ("Malignant rather than benign.", 1),
        ("Non benign tissue.", 2),
        ("non_benign", 2),
        ("It isn't a malignant mass.", NOT_STATED),
        ("benignity of malignantly named things", NOT_STATED),
        ("", NOT_STATED),
    ],
)
def test_the_first_class_named_as_a_word_and_not_negated_is_stated(text, stated):
    assert stated_classes([text], LABELS).tolist() == [stated]


def test_names_in_scripts_without_spaces_are_found_inside_a_run_of_characters():
    assert stated_classes(["この腫瘍は悪性と判断される", "良性"], ["良性", "悪性"]).tolist() == [1, 0]


def test_names_with_special_characters_and_empty_names_do_no_harm():
    labels = ["a+b (c)", "", "_", "İ", "x.y"]
    assert stated_classes(["it is A+B (C)!", "xzy", "x.y", "_"], labels).tolist() == [0, NOT_STATED, 4, 2]
    assert ClassNames(["refer"]).masked("Refer, or do not refer: referral") == " , or do not  : referral"


def test_substrings_name_the_decided_class_as_in_earlier_reports():
    assert names_decided_class(["Malignantly benign", "benign", "", "non-benign"], ["malignant"] * 4, LABELS) == 0.25
    assert names_decided_class(["a and b", "b"], [["b", "a"], ["a"]], ["a", "b"]) == 0.5
    assert names_decided_class([], [], LABELS) == 0


def test_contradictions_count_another_class_and_not_a_missing_one():
    found = contradictions(["benign", "malignant", "who knows"], np.array([0, 0, 0]), LABELS)
    assert found.values_N.tolist() == [0, 1, 0] and found.mean == pytest.approx(1 / 3)
    sets = contradictions(["a", "a, b", ""], np.array([[1, 0], [1, 0], [0, 0]]), ["a", "b"])
    assert sets.values_N.tolist() == [0, 1, 0]


@pytest.mark.parametrize("quadratic", [False, True])
def test_kappa_equals_scikit_learn_s(quadratic):
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, 101), rng.integers(0, 4, 101)
    second[:50] = first[:50]
    expected = cohen_kappa_score(first, second, weights="quadratic" if quadratic else None)
    assert cohen_kappa(first, second, 4, quadratic=quadratic) == pytest.approx(expected, abs=1e-12)


def test_kappa_is_over_the_rows_that_state_a_class_and_uses_the_order_of_ordered_classes():
    labels = ["low", "medium", "high"]
    texts, decided = ["low", "medium", "high", "unclear"], np.array([0, 1, 1, 2])
    plain, ordered = (stated_decided_kappa(texts, decided, labels, kind) for kind in ("single", "ordinal"))
    assert plain.rows == 3 and plain.value == pytest.approx(0.5) and ordered.value == pytest.approx(2 / 3)
    again = stated_decided_kappa(3 * texts, np.tile(decided, 3), labels)
    assert again.interval.low < again.value < again.interval.high and np.isnan(plain.interval.low)


@pytest.mark.parametrize(("kind", "classes"), [("single", 2), ("single", 4), ("ordinal", 4), ("multilabel", 3)])
def test_alignment_is_the_auroc_of_the_metrics_with_the_stated_class_as_truth(kind, classes):
    rng = np.random.default_rng(1)
    labels = ["red", "green", "blue", "black"][:classes]
    p_NC = rng.dirichlet(np.ones(classes), 53).round(1)  # with ties
    if kind == "multilabel":
        stated = rng.random((53, classes)) < 0.4
        texts = [" ".join(name for name, is_there in zip(labels, row, strict=True) if is_there) for row in stated]
        assert (stated_sets(texts, labels) == stated).all()
    else:
        stated = rng.integers(0, classes, 53)
        texts = [labels[index] for index in stated]
    expected = class_metrics(p_NC, stated.astype(float) if kind == "multilabel" else stated, kind, names=["auroc"])
    assert alignment(texts, p_NC, labels, kind).value == pytest.approx(expected["auroc"], abs=1e-12)


def test_alignment_and_kappa_are_undefined_where_all_rows_state_one_class_or_none():
    p_NC, decided = np.full((3, 2), 0.5), np.zeros(3, dtype=int)
    for texts, rows in ((["a", "a", "a"], 3), (["", "", ""], 0)):
        aligned, kappa = alignment(texts, p_NC, ["a", "b"]), stated_decided_kappa(texts, decided, ["a", "b"])
        assert np.isnan([aligned.value, kappa.value, aligned.interval.low]).all()
        assert aligned.rows == kappa.rows == rows


def test_columns_of_different_rows_are_refused():
    with pytest.raises(DataError, match="2 explanations, 1 decisions"):
        contradictions(["a", "b"], np.array([0]), ["a", "b"])


def _spans_one_name_at_a_time(labels, text):
    """Where the names are, by an expression that looks for the beginning of a word before each of them."""
    patterns = []
    for name in sorted((label.strip() for label in labels), key=len, reverse=True):
        inner = r"[\s_-]+".join(map(re.escape, re.split(r"[\s_-]+", name)))
        begins, ends = (c.isalnum() and c < "\u3040" for c in (name[0], name[-1]))
        letter = r"[^\W\u3040-\u9fff]"
        patterns.append(f"(?<!{letter})" * begins + inner + f"(?!{letter})" * ends)
    return [match.span() for match in re.finditer("|".join(patterns), text, re.IGNORECASE)]


@given(
    st.lists(st.sampled_from(["no", "non benign", "benign", "benign tumour", "(x)", "1", "腫瘍", "ß"]), unique=True),
    st.lists(st.sampled_from(["No", "non", "-", "_", " ", "BENIGN", "tumour", "(x)", "1", "腫瘍", "ẞ"])).map("".join),
)
@settings(max_examples=200, deadline=None)
def test_names_are_found_together_where_they_are_found_alone(labels, text):
    found = [(mention.start, mention.end) for mention in ClassNames(labels).mentions(text)]
    assert found == (_spans_one_name_at_a_time(labels, text) if labels else [])
