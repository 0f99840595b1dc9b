"""Claims of an explanation, and where the input has them."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clsgen_dist.explanations.grounding import Claim, ClaimKind, copied_share, ground, grounding, named_phrases
from clsgen_dist.explanations.richness import richness
from clsgen_dist.explanations.stated_class import ClassNames
from clsgen_dist.explanations.text_units import (
    is_content,
    merged,
    numbers,
    quoted_spans,
    replaced,
    statements,
    stem,
    word_offsets,
    words,
)
from tests.work import instructions

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


def _is_same_number(one, other):
    if one.is_percent == other.is_percent:
        return one.value == other.value
    percent, plain = (one.value, other.value) if one.is_percent else (other.value, one.value)
    return plain in (percent, percent / 100)


def _claims_by_comparing_everything(text, explanation):
    """Each number, quote and clause of the explanation beside each place of the text."""
    claims = []
    for named in numbers(explanation):
        evidence = tuple((number.start, number.end) for number in numbers(text) if _is_same_number(number, named))
        claims.append(Claim(ClaimKind.NUMBER, named.start, named.end, bool(evidence), evidence))
    there, places = words(text), word_offsets(text)
    for start, end in quoted_spans(explanation):
        if quoted := words(explanation[start:end]):
            firsts = [at for at in range(len(there)) if there[at : at + len(quoted)] == quoted]
            evidence = tuple((places[at][0], places[at + len(quoted) - 1][1]) for at in firsts)
            claims.append(Claim(ClaimKind.QUOTE, start, end, bool(evidence), evidence))
    of_classes = [(mention.start, mention.end) for mention in NAMES.mentions(explanation)]
    for start, end in statements(explanation):
        said = {
            stem(word)
            for first, last in word_offsets(explanation[start:end])
            if is_content(word := explanation[start + first : start + last].casefold())
            and not any(begin <= start + first < stop for begin, stop in of_classes)
        }
        if said:
            evidence = tuple(span for span, word in zip(places, there, strict=True) if stem(word) in said)
            found = len(said & set(map(stem, there)))
            claims.append(Claim(ClaimKind.STATEMENT, start, end, 2 * found >= len(said), evidence))
    return tuple(sorted(claims, key=lambda claim: (claim.start, claim.end)))


_PIECES = (
    "12", "12 %", "12%", "0.12", "1,200", "0", "0 %", "-3", "7.0", "7", "7 percent", "1" * 31, "1" * 31 + " %",
    "1" * 29 + ".11", "fever", "fevers", "Fever", "no", "a", "benign", "malignant", "because", '"', "“", "”", ".", ";",
    "\n", "腫瘍",
)  # fmt: skip
_TEXTS = st.lists(st.sampled_from(_PIECES), max_size=30).map(" ".join)


@given(_TEXTS, _TEXTS)
@settings(max_examples=300, deadline=None)
def test_claims_are_those_of_comparing_everything_with_everything(text, explanation):
    assert ground(text, explanation, NAMES).claims == _claims_by_comparing_everything(text, explanation)


@pytest.mark.parametrize(
    "piece",
    ["7 and {} mm; ", "7 mm; ", "{} % or {}; ", 'it "says {} so"; ', 'it "says so"; ', '"so {}"; ', "fever; ",
     "benign; ", "fever {}; "],
)  # fmt: skip
def test_the_work_grows_like_the_text_and_the_explanation(piece):
    """Each number was compared with each number, and each quote with each place: 2,000 numbers took 7 s."""
    texts = ["".join(piece.replace("{}", str(n)) for n in range(count)) for count in (100, 400)]
    few, many = (instructions(lambda text=text: ground(text, text, NAMES).evidence) for text in texts)
    assert many < 6 * few, "four times the text and explanation: 4 times the work if linear, 16 times if quadratic"


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
