"""Settings that do not go together, and decisions in words."""

from __future__ import annotations

import pytest

from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.decoding.verbal_probability import likelihood_words, told
from clsgen_dist.errors import SettingsError
from clsgen_dist.inference.batch_decoder import require_usable


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regex": "a", "grammar": "start: /a/"}, "decoding has regex and grammar, expected one of them"),
        ({"regex": "a", "state_decision": True}, "decoding.regex prescribes the whole text"),
        ({"json_schema": "{}", "length": "short"}, "decoding.length cannot change it"),
        ({"candidates": 3}, "all would be equal; set the temperature"),
        ({"top_p": 0.9}, "decoding.top_p is 0.9 with decoding.temperature 0"),
        ({"top_p": 0.0, "temperature": 1.0}, "decoding.top_p is 0, which leaves no token"),
        ({"forbidden": [" "]}, "an empty phrase, which forbids every text"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(SettingsError, match=message):
        require_usable(DecodingSettings(**changes), "before")


@pytest.mark.parametrize(("decide", "name"), [("after", "tell"), ("after", "state_decision"), ("both", "tell")])
def test_a_decision_that_is_not_there_yet_cannot_be_told(decide, name):
    value = "decision" if name == "tell" else True
    with pytest.raises(SettingsError, match=f"decoding.{name}"):
        require_usable(DecodingSettings(**{name: value}), decide)
    assert require_usable(DecodingSettings(), "after").redraws == 0


def test_presets_bound_the_sentences():
    assert DecodingSettings(length="short").sentences == (0, 1)
    assert DecodingSettings(length="standard", max_sentences=2).sentences == (0, 2)
    assert DecodingSettings(length="short", max_sentences=2).sentences == (0, 1)
    assert DecodingSettings(length="detailed").sentences == (3, None)
    assert DecodingSettings(max_sentences=4).sentences == (0, 4)


def test_probabilities_in_the_words_of_the_ipcc():
    words = {0.995: "virtually certain", 0.9: "very likely", 0.78: "likely", 0.5: "more likely than not"}
    words |= {0.4: "about as likely as not", 0.33: "unlikely", 0.1: "very unlikely", 0.005: "exceptionally unlikely"}
    assert {p: likelihood_words(p) for p in words} == words


def test_what_the_model_is_told():
    p = {"benign": 0.22, "malignant": 0.78, "calcified": 0.999}
    assert told("nothing", "malignant", p) == ""
    assert told("decision", "malignant", p) == "Decision: malignant.\n"
    assert told("probability", "malignant", p) == "Decision: malignant (likely, 78 %).\n"
    assert told("probability", ["benign", "calcified"], p) == (
        "Decision: benign (unlikely, 22 %), calcified (virtually certain, over 99 %).\n"
    )
    assert told("decision", [], p) == "Decision: none.\n"
