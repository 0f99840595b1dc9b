"""Cells: how values are read, whatever program wrote them, and the notices for those not read literally."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from clsgen_dist.data.reading.cells import ClassNames, Notice, clean_name, explanations_of, list_in_text
from clsgen_dist.data.reading.rejection import Fault

REASONS = [
    "Nobody does that.",
    "It isn't usual.",
    'He said "no", twice.',
    "two\nlines",
    "100 % [sic], yes",
    "a \\d é",
]


def _label(value, names=None):
    """The class of a cell, and the notices."""
    notices = []
    return ClassNames(names).read(value, notices), [notice for notice, _ in notices]


def _explained(*cells):
    notices = []
    return explanations_of(cells, notices), [notice for notice, _ in notices]


# --- lists in text


@pytest.mark.parametrize("seed", range(20))
def test_lists_printed_by_json_python_or_numpy_are_read_as_lists(seed):
    rng = random.Random(seed)
    items = rng.choices(REASONS, k=rng.randint(1, 4))
    import json

    printed = [json.dumps(items), json.dumps(items, ensure_ascii=False), json.dumps(items, indent=1), str(items)]
    printed += [str(tuple(items)), str(np.array(items, dtype=object)), repr(np.array(items, dtype=object))]
    printed += [str([np.str_(item) for item in items]), json.dumps(json.dumps(items)), f" {items}\n"]
    for text in printed:
        assert list_in_text(text) == items, text


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("[]", []),
        ("()", []),
        ("['']", [""]),
        ("[None, nan, 'a']", [None, None, "a"]),
        ("['a',]", ["a"]),
        ("['a', 'b'],", ["a", "b"]),
        ("[u'a', u'b']", ["a", "b"]),
        ("{'a', 'b'}", ["a", "b"]),
        ("[“a”, “it’s”]", ["a", "it’s"]),
        ("[ 'a'\n  'b' ]", ["a", "b"]),
    ],
)
def test_other_list_notations_are_read_as_lists(text, items):
    assert list_in_text(text) == items


@pytest.mark.parametrize(
    "text",
    [
        "[Note] The cat cannot drive.",
        "[1] says so, and so does [2]",
        "[sic]",
        "['Tis the season] as they say",
        '["Odd", "strange"] are the words for it',
        "(see page 3)",
        "('sic')",
        "(1, 2)",
        '{"verdict": "odd", "why": "nobody does"}',
        "'a', 'b'",
        "array of reasons",
        "[[wiki link]]",
        "[link](http://example.org)",
        "[",
        "",
    ],
)
def test_prose_that_begins_like_a_list_stays_text(text):
    assert list_in_text(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "['a' 'b' ... 'y' 'z']",
        "['a', 'b', ...]",
        "['a', 'b",
        "['a', 'b'",
        "['it's', 'b']",
        "['a' 'b', 'c']",
        "['a''b']",
        "['a'; 'b']",
        "[['a' 'b']\n ['c' 'd']]",
    ],
)
def test_an_ambiguous_list_rejects_its_row(text):
    with pytest.raises(Fault, match=r"unreadable list: .*write the (complete )?list as JSON"):
        list_in_text(text)


@pytest.mark.parametrize("cell", ["[['a'], ['b']]", [["a"], ["b"]], "[1, 2]", [1], "[{'text': 'a'}]", 5, {"a": 1}])
def test_items_that_are_not_strings_reject_their_row(cell):
    with pytest.raises(Fault, match="explanation has a wrong type"):
        _explained(cell)


def test_both_explanation_columns_accept_text_lists_and_lists_in_text():
    for cell in (["a", "b"], "['a' 'b']", '["a", "b"]', ["['a', 'b']"], ("a", "b", "a", None, " ")):
        assert _explained(cell, None)[0] == _explained(None, cell)[0] == ("a", "b")
    assert _explained("a", ["b", "a"])[0] == ("a", "b")


# --- missing values


@pytest.mark.parametrize("nothing", [None, math.nan, "", " ", "\u200b", "\ufeff\u00a0"])
def test_an_empty_cell_is_neither_label_nor_explanation_and_gives_no_notice(nothing):
    assert _label(nothing) == (None, [])
    assert _explained(nothing, [nothing]) == ((), [])


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "null", "NULL", "N/A", "n/a", "NA", "<NA>", "#N/A", "-", "NaT"])
def test_a_word_for_a_missing_value_is_read_as_none_with_a_notice(word):
    assert _label(f" {word}\u200b") == (None, [Notice.MISSING_LABEL])
    assert _label(word, ["no", "yes"]) == (None, [Notice.MISSING_LABEL])
    assert _explained(word, [word.upper()]) == ((), [Notice.MISSING_EXPLANATION] * 2)
    assert _label(word, ["no", word]) == (word, [])  # unless it is a class


@pytest.mark.parametrize("word", ["none", "neither", "No", "Nan Goldin", "n", "0"])
def test_a_word_that_pandas_keeps_is_a_class(word):
    assert _label(word) == (word, [])


def test_an_explanation_of_punctuation_only_is_missing():
    assert _explained(["--", "…", "?", "[...]", "n/a", "none"])[0] == ()
    assert _explained("No.")[0] == ("No.",)


# --- class names


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("0", [0, 0.0, -0.0, "0", "0.0", " 0.00", "-0.0", "0.000000000000000000e+00", np.float64(0)]),
        ("12", [12, 12.0, "12", "12.0"]),
        ("-1", [-1, -1.0, "-1", "-1.0"]),
        ("true", [True, "true", "True", "TRUE"]),
        ("odd", ["odd", " odd\n", "o\u200bdd", "\ufeffodd", "od\u00add", "\u202aodd\u202c", "odd\u200d", "odd\ufe0f"]),
        (
            "caf\u00e9 noir",
            ["caf\u00e9 noir", "cafe\u0301 noir", "caf\u00e9\u00a0noir", "caf\u00e9  noir", "caf\u00e9\tnoir"],
        ),
    ],
)
def test_cells_that_mean_the_same_are_one_class(name, cells):
    assert {_label(cell)[0] for cell in cells} == {name}
    assert {_label(cell, [name, "other"])[0] for cell in cells} == {name}


@pytest.mark.parametrize("name", ["007", "1.", "1e3", "1,5", "Odd", "ｏdd", "می\u200cخواهم", "👨\u200d👩"])
def test_names_that_look_different_are_different_classes(name):
    assert _label(name) == (name, [])


def test_listed_names_match_cells_spelt_differently():
    """Names of an older run may differ from how they would be read today."""
    assert _label(0.0, ["0.0", "1.0"])[0] == _label("0", ["0.0", "1.0"])[0] == "0.0"
    assert _label(True, ["False", "True"])[0] == "True"
    assert [_label(name, ["1", "1.0", "odd "]) for name in ("1", "1.0", "odd ")] == [
        ("1", []),
        ("1.0", []),
        ("odd ", []),
    ]


@pytest.mark.parametrize("value", [0.5, "0.5", "-1.25", np.float64(2.5)])
def test_a_fraction_is_a_class_only_if_listed(value):
    with pytest.raises(Fault, match=r"with a fraction: .* list it in data.labels"):
        _label(value)
    assert _label(value, [str(value), "1"])[0] == str(value)


@pytest.mark.parametrize("value", [["odd"], "['odd', 'fine']", "['odd']", '["odd"]', "['odd' 'fine']"])
def test_a_list_is_not_a_label(value):
    with pytest.raises(Fault, match="label is a list"):
        _label(value)


@pytest.mark.parametrize("value", [b"odd", math.inf])
def test_other_types_are_not_labels(value):
    with pytest.raises(Fault, match="label has a wrong type"):
        _label(value)


@pytest.mark.parametrize(
    ("value", "notice"),
    [
        ("0.0", Notice.RESPELT_LABEL),
        (1.0, Notice.RESPELT_LABEL),
        ("True", Notice.RESPELT_LABEL),
        ("odd\u200b", Notice.HIDDEN_CHARACTERS),
        ("o\u0308dd", Notice.HIDDEN_CHARACTERS),
        ("not\u00a0odd", Notice.HIDDEN_CHARACTERS),
    ],
)
def test_a_label_that_is_not_read_literally_gives_a_notice(value, notice):
    assert _label(value)[1] == [notice]


def test_clean_name_is_idempotent():
    rng = random.Random(0)
    pool = "ab é\u0301\u200b\u200c\u200d\ufeff\u00a0\t عمन्👨1.-"
    for _ in range(500):
        name = clean_name("".join(rng.choices(pool, k=rng.randint(0, 8))))
        assert clean_name(name) == name
