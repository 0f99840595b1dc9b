"""Claims of an explanation, and where the input has them."""

from __future__ import annotations

import time

import numpy as np
import pytest

from clsgen_dist.explanations.grounding import ClaimKind, copied_share, ground, grounding, named_phrases
from clsgen_dist.explanations.richness import richness
from clsgen_dist.explanations.stated_class import ClassNames
from clsgen_dist.explanations.text_units import merged, numbers, quoted_spans, replaced, statements, stem, words

NAMES = ClassNames(["benign", "malignant"])


def share(kind, text, explanation):
    return ground(text, explanation, NAMES).share(kind)


@pytest.mark.parametrize(
    ("written", "in_the_input", "is_found"),
    [
        ("1,000", "1000", True),
        ("3.50", "3.5", True),
        ("12 %", "12 percent", True),
        ("12%", "0.12", True),
        ("0.12", "12 per cent", True),
        ("12%", "0.12%", False),
        ("12%", "12", True),
        ("-3", "- 3", False),
        ("a -3", "b -3.0", True),
        ("3", "range 1-3", True),
        ("17", "17.99", False),
        ("17", "117", False),
        ("2", "T2", False),
        ("5", "5mg", True),
        ("７", "7", True),
    ],
)
def test_numbers_are_found_by_value(written, in_the_input, is_found):
    assert share(ClaimKind.NUMBER, f"It was {in_the_input}.", f"Since {written}.") == float(is_found)


def test_a_long_text_of_one_character_takes_no_time():
    """A run of blank lines took minutes, in which a server answered nobody: each line looked through all others."""
    begun = time.process_time()
    for text in ("\n" * 200_000 + "7", " " * 200_000 + "7", "\n 7." * 20_000, "1" * 200_000, '"' * 200_000):
        ground(text, 'Malignant: 7 mm, "irregular".', NAMES)
    assert time.process_time() - begun < 10


def test_points_of_a_list_are_no_numbers():
    assert [str(n.value) for n in numbers("1. Age 61\n2) Pulse 3.\n4")] == ["61", "3", "4"]


def test_spans_point_to_every_place_of_the_input():
    text = "Ferritin 12.0, later 12; bleeding present."
    row = ground(text, 'Malignant: ferritin was 12, with "bleeding  Present".', NAMES)
    assert [text[start:end] for start, end in row.evidence] == ["Ferritin", "12.0", "12", "bleeding present"]
    number = next(claim for claim in row.claims if claim.kind == ClaimKind.NUMBER)
    assert [text[start:end] for start, end in number.evidence] == ["12.0", "12"]
    assert row.share(ClaimKind.QUOTE) == row.share(ClaimKind.NUMBER) == 1


@pytest.mark.parametrize("marks", ['"{}"', "“{}”", "'{}'", "‘{}’", "«{}»"])
def test_quotes_must_follow_one_another_in_the_input(marks):
    text = "The patient's skin is very pale."
    assert share(ClaimKind.QUOTE, text, f"It says {marks.format('skin is very pale')}.") == 1
    assert share(ClaimKind.QUOTE, text, f"It says {marks.format('pale is the skin')}.") == 0


def test_apostrophes_are_no_quotes():
    assert quoted_spans("the patient's and the nurses' view isn't one") == []


def test_statements_are_found_by_half_of_their_stemmed_content_words():
    text = "Irregular borders were measured; the cell is elongated."
    assert share(ClaimKind.STATEMENT, text, "Malignant because the border measures irregular.") == 1
    assert share(ClaimKind.STATEMENT, text, "Malignant, as clumps of calcium border vessels.") == 0
    assert share(ClaimKind.STATEMENT, text, "Elongated cells. Bright purple spots.") == 0.5
    assert np.isnan(share(ClaimKind.STATEMENT, text, "It is benign."))  # a verdict is no claim


def test_statements_divide_at_clauses_but_not_in_numbers():
    text = "It is 3.5 cm, because a: b; c. D at 10:30"
    assert [text[s:e].strip() for s, e in statements(text)] == ["It is 3.5 cm,", "a", "b", "c", "D at 10:30"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("borders", "border"), ("measured", "measuring"), ("stopped", "stops"), ("boxes", "box"), ("biopsies", "biopsy"),
     ("raised", "raise"), ("quickly", "quick"), ("patient's", "patient")],
)  # fmt: skip
def test_stems_of_one_word_are_equal(one, other):
    assert stem(one) == stem(other)


def test_stems_of_different_words_differ():
    others = ["mass", "mas", "virus", "viral", "sing", "single", "red", "reed", "cell", "cel", "analysis", "analyst"]
    assert len({stem(word) for word in others}) == len(others)


def test_characters_are_words_where_none_are_separated():
    assert words("腫瘍は 3.5 cm") == ["腫", "瘍", "は", "3.5", "cm"]
    assert share(ClaimKind.QUOTE, "この腫瘍は大きい。", "「腫瘍は大きい」") == 1


def test_overlapping_spans_are_replaced_once():
    assert merged([(4, 6), (0, 2), (1, 3)]) == [(0, 3), (4, 6)]
    assert replaced("abcdefg", [(4, 6), (0, 2), (1, 3)], "_") == "_d_g"


def test_shares_are_undefined_without_claims_and_counted():
    scores = grounding(["age 61", "age 50"], ["61 and 62", "nothing"], ["a", "b"])
    assert scores.numbers.mean == 0.5 and scores.numbers.defined == 1 and np.isnan(scores.numbers.values_N[1])
    assert scores.quotes.defined == 0 and np.isnan(scores.quotes.mean)
    assert scores.evidence == [[(4, 6)], []]


def test_the_copied_share_counts_runs_of_four_words():
    copied = copied_share(["a b c d e f"] * 3, ["x a b c d e", "a b c", "f e d c b a"])
    np.testing.assert_array_equal(copied.values_N, [2 / 3, np.nan, 0])


def test_richness_tells_evidence_confidence_and_doubt():
    found = richness(["Clearly so, because it is.", "It may be.", "Not certain.", "It is 3.", ""])
    assert found.evidence.values_N.tolist() == [1, 0, 0, 1, 0]
    assert found.confidence.values_N.tolist() == [1, 0, 0, 0, 0]
    assert found.hedges.values_N.tolist() == [0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("text", "explanation", "expected"),
    [
        ("Size very high, texture high, pits very high.", "malignant: pits very high, size very high.",
         ["Size very high", "pits very high"]),
        ("An irregular mass with spiculated edges, 12 mm.", "The edges are spiculated (12 mm).",
         ["spiculated", "edges", "12 mm"]),
        ("Fever and cough. Fever again.", "Fever.", ["Fever", "Fever"]),
        ("It is what it is.", "It is what it is.", []),
        ("malignant cells", "malignant", []),
        ("🙂 The mass is rough.", "A rough mass.", ["mass", "rough"]),
    ],
)  # fmt: skip
def test_what_an_explanation_names_is_shown_as_phrases(text, explanation, expected):
    spans = named_phrases(text, explanation, ClassNames(["benign", "malignant"]))
    assert [text[start:end] for start, end in spans] == expected
