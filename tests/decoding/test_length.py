"""Sentence ends, and budgets that never cut a sentence."""

from __future__ import annotations

import pytest

from clsgen_dist.decoding.length import LengthBudget, whole_sentences
from clsgen_dist.explanations.text_units import sentence_ends


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", 3),
        ("Size is 17.99 mm. Edges are rough", 1),
        ("See e.g. Fig. 3, cf. Dr. Smith vs. others, i.e. all. Done.", 2),
        ('He said "stop." Then he left.', 2),
        ("1. first point\n2. second point.", 1),
        ("悪性です。辺縁が不整。", 2),
        ("What?! Really...", 2),
        ("no end at all", 0),
        ("The grade is A. It grows.", 2),
        ("J. Smith left Apple Inc. today.", 1),
        ("It is **bold.** And ends.", 2),
        ("هل هو خبيث؟ نعم.", 2),
        ("", 0),
    ],
)
def test_sentence_ends(text, sentences):
    assert len(sentence_ends(text)) == sentences


def test_a_text_ends_with_the_last_sentence_that_fits():
    two = LengthBudget(max_sentences=2)
    assert two.kept("One is here. Two is here.") is None, "17. may be the beginning of 17.99"
    assert two.kept("One is here. Two is here. T") == "One is here. Two is here."
    words = LengthBudget(max_words=5)
    assert words.kept("One is here. Two") is None
    assert words.kept("One is here. Two is here now") == "One is here."
    assert words.kept("A first sentence that is much too long goes on") is None
    assert (
        words.kept("A first sentence that is much too long ends. So") == "A first sentence that is much too long ends."
    )
    assert LengthBudget().kept("One. Two. Three. Four.") is None


def test_the_least_number_of_sentences():
    budget = LengthBudget(min_sentences=2)
    assert not budget.may_end("One is here.") and budget.may_end("One is here. Two is here.")
    assert LengthBudget().may_end("")


def test_whole_sentences():
    assert whole_sentences("One. Two. Thr") == "One. Two." and whole_sentences("no end") == "no end"
