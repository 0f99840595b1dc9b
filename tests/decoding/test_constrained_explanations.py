"""Constraints on a model of random weights, which wants to write none of what is asked for."""

from __future__ import annotations

import json
import re

import pytest

from clsgen_dist.decoding.candidates import ranked
from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.errors import SettingsError
from clsgen_dist.explanations.stated_class import ClassNames
from clsgen_dist.explanations.text_units import quoted_spans
from clsgen_dist.inference.predict import Predictor
from tests.inference.conftest import hand_made_export

TEXTS = [
    "irregular mass with spiculated edges",
    'The report says "no fever".\nA smooth round mass, 12 mm.',
    "smooth",
    "mass: (a+b)*[c] \\ / end",
    "ein Knoten von 3,5 cm – größer",
]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor(hand_made_export(tmp_path_factory.mktemp("constrained") / "m", ["benign", "malignant"]))


def explanations(predictor, texts=TEXTS, tokens=90, **settings):
    decoding = DecodingSettings(**{"redraws": 0, **settings})
    return predictor.predict(texts, decoding=decoding, max_new_tokens=tokens)


def test_the_decided_class_is_stated(predictor):
    found = explanations(predictor, state_decision=True)
    assert {prediction.label for prediction in found} == {"benign", "malignant"}, "both are tried"
    for prediction in found:
        assert ClassNames(["benign", "malignant"]).stated(prediction.explanation)[:1] == [
            predictor.card.labels.index(prediction.label)
        ]
        assert not prediction.contradicts


@pytest.mark.parametrize(("state", "texts"), [(False, TEXTS), (True, TEXTS[:1])])
def test_a_phrase_of_the_text_is_quoted(predictor, state, texts):
    found = explanations(predictor, texts, quote_evidence=True, state_decision=state)
    for text, prediction in zip(texts, found, strict=True):
        quotes = [prediction.explanation[slice(*span)] for span in quoted_spans(prediction.explanation)]
        assert quotes and any(quote in text for quote in quotes), (text, prediction.explanation)


def test_forbidden_phrases_are_never_written(predictor):
    free = explanations(predictor, tokens=40)
    often = [character for character in "!cIM" if any(character in p.explanation for p in free)]
    assert len(often) >= 3, "they would be written"
    for prediction in explanations(predictor, tokens=40, forbidden=often):
        assert not [c for c in often if c.lower() in prediction.explanation.lower()]


def test_a_json_schema_is_followed(predictor):
    schema = {
        "type": "object",
        "properties": {"finding": {"enum": ["mass", "cyst"]}, "size": {"type": "integer", "maximum": 99}},
        "required": ["finding", "size"],
        "additionalProperties": False,
    }
    for prediction in explanations(predictor, json_schema=json.dumps(schema)):
        found = json.loads(prediction.explanation)
        assert found["finding"] in ("mass", "cyst") and found["size"] <= 99 and not prediction.explanation_cut


def test_regex_and_grammar(predictor):
    for prediction in explanations(predictor, regex=r"(mass|cyst) of [0-9]{1,2} mm\."):
        assert re.fullmatch(r"(mass|cyst) of [0-9]{1,2} mm\.", prediction.explanation)
    grammar = 'start: "because " WORD ("," WORD)~2\nWORD: /[a-z]{2,5}/'
    for prediction in explanations(predictor, grammar=grammar):
        assert re.fullmatch(r"because [a-z]{2,5}(,[a-z]{2,5}){2}", prediction.explanation)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regex": "(["}, "decoding.regex cannot be used"),
        ({"grammar": "nothing"}, "decoding.grammar cannot be used"),
        ({"json_schema": "{'a'"}, "decoding.json_schema is not valid JSON"),
        ({"json_schema": '{"type": "no such"}'}, "decoding.json_schema cannot be used"),
    ],
)
def test_what_cannot_be_followed_is_refused(predictor, settings, message):
    with pytest.raises(SettingsError, match=message):
        explanations(predictor, **settings)


def test_a_contradiction_is_drawn_anew_and_then_marked(predictor):
    found = explanations(predictor, regex="malignant|benign", redraws=30, temperature=9.0)
    assert not any(prediction.contradicts for prediction in found)
    assert any(prediction.redraws for prediction in found), "some contradicted at first"
    wrong = {"malignant": "benign", "benign": "malignant"}
    text = TEXTS[0]
    [first] = explanations(predictor, [text])
    [never] = explanations(predictor, [text], regex=wrong[first.label], redraws=2)
    assert never.contradicts and never.redraws == 2 and never.to_json()["contradicts"] is True
    assert never.explanation == wrong[first.label] and never.label == first.label


def test_the_best_of_several_candidates_is_given_and_others_beside_it(predictor):
    settings = {"regex": "(it is )?(malignant|benign)", "candidates": 6, "temperature": 2.0, "seed": 5}
    found = explanations(predictor, **settings)
    assert found == explanations(predictor, **settings), "the same seed gives the same"
    for prediction in found:
        given = [prediction.explanation, *prediction.others]
        assert len(set(given)) == len(given)
        if any(prediction.label in text for text in given):
            assert prediction.label in prediction.explanation and not prediction.contradicts
    assert any(prediction.others for prediction in found)


def test_candidates_are_ranked_by_agreement_then_grounding_then_likelihood():
    names = ClassNames(["benign", "malignant"])
    texts = ["malignant: spiculated edges", "benign: spiculated edges", "malignant: green apples", "malignant: rough"]
    order = ranked("spiculated edges", texts, [-2.0, -0.1, -1.0, -0.5], [False, True, False, False], names)
    assert order[0] == 0 and order[-1] == 1 and order.index(3) < order.index(2)
    assert ranked("x", ["a b c d e", "a b c d e", "q"], [-1, -2, -3], [False] * 3, names) == [0, 2], "one of two equals"


def test_told_tokens_are_read_and_not_given(predictor):
    plain, told = explanations(predictor), explanations(predictor, tell="probability")
    assert [p.explanation for p in plain] != [p.explanation for p in told]
    for text, prediction in zip(TEXTS, told, strict=True):
        p = prediction.probabilities[prediction.label]
        assert 0.5 <= p <= 1 and "Decision" not in prediction.explanation
        prompt = predictor.encoder.prompt(text)[0].tolist()
        assert prompt  # the prefix below is what the model went on from
    from clsgen_dist.decoding.verbal_probability import told as told_text

    [one] = explanations(predictor, TEXTS[:1], tell="decision", tokens=5)
    ids = predictor.encoder.prompt(TEXTS[0])[0].tolist()
    ids += predictor.tokenizer.encode(told_text("decision", one.label, one.probabilities), add_special_tokens=False)
    import torch

    start = len(ids)
    while len(ids) < start + 5:
        ids.append(int(predictor.lm(torch.tensor([ids])).logits[0, -1].argmax()))
    assert one.explanation == predictor.tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    "text", ["病理 " + "不规则肿块边缘毛刺" * 8, "a " + "x" * 100, "p < 0.05 and >99 % <b>", "قطر الكتلة ١٢ مم", "?"]
)
def test_any_text_can_be_quoted_or_has_nothing_to_quote(predictor, text):
    [found] = explanations(predictor, [text], quote_evidence=True)
    quotes = [found.explanation[slice(*span)] for span in quoted_spans(found.explanation)]
    assert any(quote in text and quote == quote.strip() for quote in quotes) or text == "?"


def test_a_quotation_comes_before_a_budget_ends_the_text(predictor):
    for length in ("short", "standard"):
        for text, found in zip(
            TEXTS[:1], explanations(predictor, TEXTS[:1], quote_evidence=True, length=length), strict=True
        ):
            quotes = [found.explanation[slice(*span)] for span in quoted_spans(found.explanation)]
            assert any(quote in text for quote in quotes), found.explanation


def test_the_statement_keeps_to_what_is_forbidden(predictor):
    forbidden = ["the", "this is", "probably", "likely", "<b>", "p < 0.05"]
    for found in explanations(predictor, tokens=30, state_decision=True, forbidden=forbidden):
        assert not [phrase for phrase in forbidden if phrase in found.explanation.lower()]
        assert found.label in found.explanation.lower()


def test_class_names_of_any_characters_are_stated(tmp_path):
    labels = ["<=50K", ">50K", 'a "b" (c)/[d]\\n']
    model = Predictor(hand_made_export(tmp_path / "m", labels))
    for found in explanations(model, tokens=40, state_decision=True):
        assert found.label.lower() in found.explanation.lower()
