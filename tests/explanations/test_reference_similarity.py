"""Similarity of explanations and references, by embeddings that can be computed in the head."""

from __future__ import annotations

import numpy as np
import pytest

from clsgen_dist.errors import DataError
from clsgen_dist.explanations.reference_similarity import reference_similarity

WORDS = ("iron", "blood", "age")


def counts_of_words(texts):
    """A text's words among three, scaled to length 1: the cosine of one word with another is 0."""
    counts = np.array([[text.split().count(word) for word in WORDS] for text in texts], dtype=np.float32)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_similarity_is_that_of_the_nearest_reference_and_the_control_that_of_the_other_rows():
    explanations = ["iron", "blood", "age iron"]
    references = [["iron", "age"], "blood blood", ["iron"]]
    found = reference_similarity(explanations, references, counts_of_words)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(found.similarity.values_N, [1, 1, half], atol=1e-6)
    np.testing.assert_allclose(found.control.values_N, [0.5, 0, half / 2], atol=1e-6)
    np.testing.assert_allclose(found.excess.values_N, found.similarity.values_N - found.control.values_N)
    assert found.similarity.mean == pytest.approx((2 + half) / 3)
    assert found.excess.mean == pytest.approx(found.excess.values_N.mean()) and np.isnan(found.excess.interval.low)


def test_explanations_that_fit_every_row_have_no_excess():
    found = reference_similarity(["iron"] * 5, ["iron"] * 5, counts_of_words)
    assert (found.similarity.mean, found.control.mean, found.excess.mean) == pytest.approx((1, 1, 0))


def test_many_rows_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    count = 300
    explained, referred = (rng.normal(size=(n, 8)) for n in (count, 2 * count))
    vectors = iter([explained, referred])
    found = reference_similarity(["x"] * count, [["x", "y"]] * count, lambda texts: next(vectors))
    nearest = (explained @ referred.T).reshape(count, count, 2).max(axis=2)
    np.testing.assert_allclose(found.similarity.values_N, np.diag(nearest))
    np.fill_diagonal(nearest, 0)
    np.testing.assert_allclose(found.control.values_N, nearest.sum(axis=1) / (count - 1))


def test_rows_without_explanation_or_reference_are_undefined():
    found = reference_similarity(["iron", " ", "age", "blood"], ["iron", "age", None, ["", "age"]], counts_of_words)
    np.testing.assert_allclose(found.similarity.values_N, [1, np.nan, np.nan, 0])
    np.testing.assert_allclose(found.control.values_N, [0, np.nan, np.nan, 0], err_msg="of rows 0 and 3 alone")
    assert found.similarity.defined == 2
    alone = reference_similarity(["iron", "age"], ["iron", None], counts_of_words)
    assert alone.similarity.mean == 1 and alone.control.defined == 0 and alone.excess.defined == 0
    assert reference_similarity(["iron"], [None], counts_of_words).similarity.defined == 0
    with pytest.raises(DataError, match="2 explanations, 1 references"):
        reference_similarity(["a", "b"], ["a"], counts_of_words)
