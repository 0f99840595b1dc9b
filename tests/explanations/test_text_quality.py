"""References, readability and variety, against hand-worked and plain reference values."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from clsgen_dist.explanations.references import common_subsequence, reference_scores, rouge_l, rouge_n
from clsgen_dist.explanations.text_quality import (
    distinct,
    lengths,
    reading_ease,
    self_bleu,
    template_repeats,
    vendi_score,
)


def test_bleu_and_chrf_are_sacrebleu_s_with_any_number_of_references():
    import sacrebleu

    texts = ["the mass is large and irregular .", "no fever at all", "left out"]
    references = [["the mass is large", "a large and irregular mass"], ["no fever"], []]
    found = reference_scores(texts, references)
    assert np.isnan(found.bleu.values_N).tolist() == [False, False, True] and found.bleu.defined == 2
    expected = sacrebleu.sentence_bleu(texts[0], references[0], use_effective_order=True).score
    assert found.bleu.values_N[0] == pytest.approx(expected, abs=1e-9)
    assert found.chrf.values_N[1] == pytest.approx(sacrebleu.sentence_chrf(texts[1], references[1]).score, abs=1e-9)
    streams = [["the mass is large", "no fever"], ["a large and irregular mass", None]]
    assert found.corpus_bleu == pytest.approx(sacrebleu.corpus_bleu(texts[:2], streams).score, abs=1e-9)
    assert found.corpus_chrf == pytest.approx(sacrebleu.corpus_chrf(texts[:2], streams).score, abs=1e-9)
    assert "nrefs:var" in found.signature


def test_a_row_has_one_reference_several_or_none():
    found = reference_scores(["a b c d"] * 5, ["a b c d", ["x", "a b c d"], None, [], " "])
    np.testing.assert_allclose(found.rouge_l.values_N, [1, 1, np.nan, np.nan, np.nan])
    assert found.bleu.mean == pytest.approx(100) and found.corpus_bleu == pytest.approx(100)


def test_rouge_by_hand():
    text, reference = "the cat sat on the mat", "the cat is on a mat"
    assert rouge_n(text, reference, 1) == pytest.approx(2 * 4 / 12)
    assert rouge_n(text, reference, 2) == pytest.approx(2 * 1 / 10)
    assert rouge_l(text, reference) == pytest.approx(2 * 4 / 12)
    assert rouge_n("a", "a", 2) == rouge_l("", "a") == rouge_l("", "") == 0
    best = reference_scores([text], [[reference, text.upper()]])
    assert best.rouge_l.mean == best.rouge_2.mean == 1


def test_the_common_subsequence_equals_the_plain_table():
    rng = np.random.default_rng(0)
    for first_length, second_length in [(0, 5), (1, 1), (63, 65), (64, 64), (130, 7), (101, 203)]:
        first, second = (list(map(str, rng.integers(0, 9, n))) for n in (first_length, second_length))
        table = np.zeros((first_length + 1, second_length + 1), dtype=int)
        for i, one in enumerate(first):
            for j, other in enumerate(second):
                longer = max(table[i, j + 1], table[i + 1, j])
                table[i + 1, j + 1] = table[i, j] + 1 if one == other else longer
        assert common_subsequence(first, second) == table[-1, -1]


def test_reading_ease_by_hand():
    ease = reading_ease(["The cat sat on the mat.", "It is 3.5 cm. It is so!", "", "Malignancy necessitates referral."])
    assert ease.values_N[0] == pytest.approx(206.835 - 1.015 * 6 - 84.6)
    assert ease.values_N[1] == pytest.approx(206.835 - 1.015 * 7 / 2 - 84.6)
    assert np.isnan(ease.values_N[2]) and ease.defined == 3
    assert ease.values_N[3] < 0


@pytest.mark.parametrize(
    ("word", "syllables"),
    [("cat", 1), ("made", 1), ("table", 2), ("tree", 1), ("stopped", 1), ("needed", 2), ("ferritin", 3), ("the", 1),
     ("tumour", 2), ("radius", 2), ("names", 1), ("files", 1), ("tables", 2), ("masses", 2), ("17", 1)],
)  # fmt: skip
def test_syllables(word, syllables):
    assert reading_ease([word]).mean == pytest.approx(206.835 - 1.015 - 84.6 * syllables)


def test_distinct_counts_ngrams_of_all_texts_together():
    assert distinct(["a b", "a b", "c"], 1) == 3 / 5
    assert distinct(["a b", "a b", "c"], 2) == 1 / 2
    assert np.isnan(distinct(["c"], 2))
    assert lengths(["a b, c", ""]).values_N.tolist() == [3, 0]


@pytest.mark.parametrize("count", [1, 3, 17])
def test_the_vendi_score_counts_different_texts(count):
    different = [f"alpha{i} beta{i} gamma{i}" for i in range(count)]
    assert vendi_score(different) == pytest.approx(count)
    assert vendi_score(different * 3) == pytest.approx(count)
    assert vendi_score(["", *different]) == pytest.approx(count + 1)


def test_the_vendi_score_of_two_texts_by_hand():
    # Cosines: words 1/2, pairs 0, so K = [[1, 1/4], [1/4, 1]] and the eigenvalues of K/2 are 5/8 and 3/8.
    shares = np.array([5 / 8, 3 / 8])
    assert vendi_score(["a b", "b c"]) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_self_bleu_is_high_for_alike_and_low_for_different_texts():
    assert self_bleu(["it is a large mass"] * 5) == pytest.approx(100)
    assert self_bleu(["one two three four", "five six seven eight"]) < 20
    assert np.isnan(self_bleu(["alone"]))
    texts = [f"text {i} of {i * 7 % 11} and more" for i in range(40)]
    assert self_bleu(texts, sample=10) == self_bleu(texts, sample=10) != self_bleu(texts, sample=10, seed=1)


def test_templates_are_equal_but_for_numbers_classes_and_the_input_s_words():
    texts = ["mean radius 17, smooth", "area 5, rough borders", "pulse 3"]
    explanations = ["Since mean radius is 17: malignant", "since area is 5: benign", "Since heart is 3: benign"]
    repeats = template_repeats(texts, explanations, ["benign", "malignant"])
    assert repeats.values_N.tolist() == [1, 1, 0] and Counter(repeats.values_N)[1] == 2
