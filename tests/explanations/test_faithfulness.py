"""Faithfulness measures, on models whose reasons are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from clsgen_dist.errors import DataError
from clsgen_dist.explanations.counterfactual import counterfactual
from clsgen_dist.explanations.erasure import erasure, probability_of_decided, random_spans
from clsgen_dist.explanations.reconstruction import reconstruction
from clsgen_dist.explanations.simulatability import simulatability
from clsgen_dist.explanations.text_edits import raised_and_lowered
from clsgen_dist.explanations.text_units import word_offsets

LABELS = ["no rain", "rain"]


def by_word(texts):
    """Rain if the text has the word "cloud"."""
    rain = np.array([0.9 if "cloud" in text else 0.1 for text in texts])
    return np.stack([1 - rain, rain], axis=1)


def by_number(texts):
    """Rain if the first number is above 50."""
    firsts = [next((float(w) for w in t.replace(",", " ").split() if w[0].isdigit()), 0.0) for t in texts]
    rain = np.array([0.9 if first > 50 else 0.2 for first in firsts])
    return np.stack([1 - rain, rain], axis=1)


def spans(texts, word):
    return [[(t.index(word), t.index(word) + len(word))] if word in t else [] for t in texts]


def test_masking_what_decides_moves_the_probability_and_random_words_rarely_do():
    texts = ["one two cloud four five six seven eight"] * 30
    decided = np.ones(30, dtype=int)
    true = erasure(texts, spans(texts, "cloud"), by_word, decided, draws=50)
    assert true.comprehensiveness.values_N == pytest.approx([0.8] * 30)
    assert true.sufficiency.values_N == pytest.approx([0] * 30)
    # One random word of eight is the cloud: p drops by 0.8/8 without it, and by 0.8·7/8 with it alone.
    assert true.comprehensiveness_excess.mean == pytest.approx(0.7, abs=0.03)
    assert true.sufficiency_excess.mean == pytest.approx(-0.7, abs=0.03)
    irrelevant = erasure(texts, spans(texts, "six"), by_word, decided, draws=50)
    assert irrelevant.comprehensiveness_excess.mean == pytest.approx(-0.1, abs=0.03)
    assert irrelevant.comprehensiveness.mean == 0


def test_rows_without_evidence_are_undefined_and_counted_and_never_scored():
    seen = []

    def probability(texts):
        seen.extend(texts)
        return by_word(texts)

    texts = ["a cloud", "nothing"]
    found = erasure(texts, spans(texts, "cloud"), probability, np.array([1, 0]), draws=1)
    assert found.rows_without_evidence == 1 and np.isnan(found.comprehensiveness.values_N).tolist() == [False, True]
    assert not any("nothing" in text for text in seen)
    none = erasure(texts, [[], []], probability, np.array([1, 0]))
    assert none.rows_without_evidence == 2 and np.isnan(none.sufficiency_excess.mean)


def test_the_model_sees_the_evidence_masked_or_alone():
    seen = []

    def probability(texts):
        seen.append(list(texts))
        return by_word(texts)

    erasure(["A big cloud, and wind"], [[(2, 5), (13, 16)]], probability, np.array([1]), mask="#", draws=1)
    assert seen[:3] == [["A big cloud, and wind"], ["A # cloud, # wind"], ["# big # and #"]]


def test_random_spans_have_the_same_number_and_length_and_are_spread_evenly():
    text, rng = "a b c d e f g", np.random.default_rng(0)
    starts = []
    for _ in range(2000):
        drawn = random_spans(text, [(0, 1), (4, 7)], rng)
        assert sorted(len(text[s:e].split()) for s, e in drawn) == [1, 2]
        assert all(e <= s for (_, e), (s, _) in itertools.pairwise(drawn))
        starts += [s // 2 for s, e in drawn if e - s == 1]
    # The single word's place among 2 pieces and 4 gaps, 30 arrangements.
    places = np.bincount(starts, minlength=7) / 2000
    assert places == pytest.approx(np.array([5, 4, 4, 4, 4, 4, 5]) / 30, abs=0.03)
    assert random_spans("a b", [(0, 3)], rng) == [(0, 3)] and random_spans("...", [(0, 1)], rng) == []


def test_the_probability_of_a_decided_set_is_the_mean_over_its_answers():
    p_NC = np.array([[0.9, 0.2, 0.5]])
    assert probability_of_decided(p_NC, np.array([[1, 0, 1]])) == pytest.approx([(0.9 + 0.8 + 0.5) / 3])
    assert probability_of_decided(p_NC, np.array([1])) == [0.2]


def test_erasure_needs_a_draw():
    with pytest.raises(DataError, match="0 draws of random words"):
        erasure(["a"], [[]], by_word, np.array([0]), draws=0)


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        ("is 17.9 cm", ["is 35.8 cm", "is 9.0 cm"]),
        ("is 1,000", ["is 2000", "is 500"]),
        ("is 0", ["is 1", "is -1"]),
        ("is 1", ["is 2", "is 0.5"]),
        ("is 12 %", ["is 24 %", "is 6 %"]),
        ("High fever", ["Low fever"]),
        ("no fever", ["fever"]),
        ("without bleeding", ["bleeding"]),
        ("is smooth", ["is rough"]),
        ("is visible", ["is not visible"]),
        ("is not high, 4", ["is high, 8", "is high, 2"]),
        ("a fever", []),
        ("", []),
    ],
)
def test_edits_state_the_opposite(text, edited):
    assert raised_and_lowered(text, [(0, len(text))]) == edited


def test_edits_stay_inside_the_spans():
    text = "10 and 20, high and low"
    assert raised_and_lowered(text, [(7, 9), (20, 23)]) == ["10 and 40, high and high", "10 and 10, high and high"]


def test_editing_what_decides_flips_the_decision_and_the_explanation_follows():
    texts = ["80 percent of air, 7 birds", "60 drops, 9 birds", "70 drops and 8 birds"]
    true, false = [[(0, 2)]] * 3, spans(texts, "birds")
    found = counterfactual(
        texts, true, by_number, LABELS, explain=lambda t: [LABELS[c] for c in by_number(t).argmax(1)]
    )
    assert found.moved.values_N == pytest.approx([0.7] * 3) and found.flipped.mean == 1
    assert found.control_moved.mean == 0 and found.excess.mean == pytest.approx(0.7) and found.follows.mean == 1
    stubborn = counterfactual(texts, true, by_number, LABELS, explain=lambda t: ["rain"] * len(t))
    assert stubborn.follows.mean == 0
    untouched = counterfactual(texts, false, by_number, LABELS)
    assert untouched.rows_without_edit == 3 and np.isnan(untouched.excess.mean) and np.isnan(untouched.follows.mean)
    wrong = counterfactual(texts, [[(len(t) - 7, len(t) - 6)] for t in texts], by_number, LABELS)
    assert wrong.moved.mean == 0 and wrong.excess.mean == pytest.approx(-0.7) and wrong.flipped.mean == 0


def test_decided_sets_flip_and_are_followed_as_sets():
    def probability(texts):
        return np.stack([by_number(texts)[:, 1], np.full(len(texts), 0.9)], axis=1)

    found = counterfactual(
        ["60 drops"], [[(0, 2)]], probability, ["wet", "cold"], kind="multilabel", explain=lambda t: ["cold"] * len(t)
    )
    assert found.flipped.mean == found.follows.mean == 1 and found.moved.mean == pytest.approx(0.35)


def test_the_decision_is_recovered_from_explanations_and_leakage_is_seen():
    rng = np.random.default_rng(0)
    decided = rng.integers(0, 2, 60)
    texts = [f"alpha {rng.integers(100)} omega" for _ in decided]
    verdict_alone = simulatability(texts, [f"it is {LABELS[d]}" for d in decided], decided, LABELS)
    assert verdict_alone.explanation.mean == 1 and verdict_alone.masked.mean < 0.7
    assert verdict_alone.leakage.mean > 0.3 and verdict_alone.over_input.interval.low > 0
    reasons = [["blue sky", "dark clouds"][d] for d in decided]
    reasoned = simulatability(texts, reasons, decided, LABELS)
    assert reasoned.masked.mean == 1 and reasoned.leakage.mean == 0 and reasoned.majority.mean < 0.7
    assert (reasoned.masked_over_input.values_N == 1 - reasoned.input.values_N).all()


def test_simulatability_of_sets_is_the_share_of_answers_recovered():
    sets = np.array([[i % 2, i // 2 % 2] for i in range(40)])
    texts = [f"{'wet ' * a}{'cold ' * b}day" for a, b in sets]
    assert simulatability(texts, texts, sets, ["wet", "cold"]).explanation.mean == 1


def test_simulatability_uses_a_fixed_sample_of_large_sets():
    decided = np.arange(50) % 2
    texts = [f"{'ab'[d]}{'ab'[d]} word" for d in decided]
    first, again = (simulatability(texts, texts, decided, ["x", "y"], sample=20) for _ in range(2))
    assert first.explanation.defined == 20
    np.testing.assert_array_equal(first.explanation.values_N, again.explanation.values_N)


def test_own_words_retrieve_the_input_and_boilerplate_does_not():
    texts = [f"word{i} name{i} the patient" for i in range(40)]
    own = reconstruction(texts, [f"because of name{i}" for i in range(40)])
    assert own.top_1.mean == own.reciprocal_rank.mean == 1 and own.control_top_1.mean == 0
    same = reconstruction(texts, ["the patient"] * 40)
    # All inputs are as similar: everyone is in the middle.
    assert same.reciprocal_rank.mean == same.control_reciprocal_rank.mean == pytest.approx(2 / 41)


def test_ranks_equal_a_plain_sort_across_blocks(monkeypatch):
    from sklearn.feature_extraction.text import TfidfVectorizer

    from clsgen_dist.explanations import reconstruction as module

    monkeypatch.setattr(module, "_BLOCK", 7)
    rng = np.random.default_rng(3)
    texts = [" ".join(f"w{k}" for k in rng.integers(0, 60, 12)) for _ in range(31)]
    explanations = [" ".join(t.split()[:3]) + " w1" for t in texts]
    vectorizer = TfidfVectorizer(sublinear_tf=True).fit(texts)
    similar = (vectorizer.transform(explanations) @ vectorizer.transform(texts).T).toarray()
    ranks = [1 + (row > row[i] + 1e-9).sum() for i, row in enumerate(similar)]
    assert (reconstruction(texts, explanations).top_1.values_N == (np.array(ranks) == 1)).mean() > 0.95
    unique = [i for i, row in enumerate(similar) if (np.abs(row - row[i]) < 1e-9).sum() == 1]
    found = reconstruction(texts, explanations).reciprocal_rank.values_N
    assert len(unique) > 20 and found[unique] == pytest.approx(1 / np.array(ranks)[unique])


def test_a_sample_of_rows_is_ranked_among_itself():
    texts = [f"word{i} name{i} the patient" for i in range(40)]
    explanations = [f"because of name{i}" for i in range(20)] + ["the patient"] * 20
    found = reconstruction(texts, explanations, sample=10)
    used = np.flatnonzero(~np.isnan(found.reciprocal_rank.values_N))
    assert len(used) == found.reciprocal_rank.defined == found.control_reciprocal_rank.defined == 10
    assert 0 < (used < 20).sum() < 10
    # Ten inputs are ranked, as similar to boilerplate all of them.
    assert found.reciprocal_rank.values_N[used] == pytest.approx(np.where(used < 20, 1.0, 2 / 11))


def test_word_offsets_of_evidence_survive_any_script():
    text = "頭痛と fever 39.5°C"
    assert [text[s:e] for s, e in word_offsets(text)] == ["頭", "痛", "と", "fever", "39.5", "C"]
