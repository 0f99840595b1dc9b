"""Label cells of every label space, in the forms that people write."""

from __future__ import annotations

from decimal import Decimal

import pytest

from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.cells import Notice
from clsgen_dist.data.reading.ingest import unique_rows
from clsgen_dist.data.reading.label_cells import OTHERS, LabelReader, detect_space
from clsgen_dist.data.reading.rejection import Fault, Rejection


def _read(cell, space, names=None):
    notices = []
    return (*LabelReader(names, space).read(cell, notices), [notice for notice, _ in notices])


@pytest.mark.parametrize("space", ["auto", "single", "ordinal"])
@pytest.mark.parametrize("cell", [1, "1", 1.0, "1.0", " 1 "])
def test_one_name_in_any_form(cell, space):
    label, answers, _ = _read(cell, space)
    assert (label, answers) == ("1", None)


@pytest.mark.parametrize(
    ("cell", "name"), [(True, "true"), ("Yes ", "Yes"), ("TRUE", "true"), (None, None), ("", None)]
)
def test_truth_values_words_and_missing_cells(cell, name):
    assert _read(cell, "single")[:2] == (name, None)
    assert _read(cell, "multilabel")[:2] == (None, name and {name: 1.0, OTHERS: 0.0})


@pytest.mark.parametrize(
    ("cell", "answers"),
    [
        (["a", "b"], {"a": 1.0, "b": 1.0, OTHERS: 0.0}),
        (["a", "a", None], {"a": 1.0, OTHERS: 0.0}),
        ([], {OTHERS: 0.0}),
        ("[]", {OTHERS: 0.0}),
        ('["a", "b"]', {"a": 1.0, "b": 1.0, OTHERS: 0.0}),
        ("['a' 'b']", {"a": 1.0, "b": 1.0, OTHERS: 0.0}),
        ([1, 2.0, True], {"1": 1.0, "2": 1.0, "true": 1.0, OTHERS: 0.0}),
        ({"a": True, "b": 0.25, "c": None, "d": 0}, {"a": 1.0, "b": 0.25, "d": 0.0}),
        ('{"a": true, "c": null}', {"a": 1.0}),
        ({"a": None}, None),
    ],
)
def test_a_set_of_classes(cell, answers):
    assert _read(cell, "multilabel")[:2] == (None, answers)


@pytest.mark.parametrize(
    ("cell", "label", "shares", "notices"),
    [
        (["no", "yes", "yes"], "yes", {"no": 1 / 3, "yes": 2 / 3}, []),
        (["yes", "yes"], "yes", None, []),
        (["b", "a"], "a", {"a": 0.5, "b": 0.5}, []),  # of equal shares, the first name
        ([], None, None, []),
        ({"yes": 3, "no": 1}, "yes", {"no": 0.25, "yes": 0.75}, []),
        ({"yes": 0.7, "no": 0.3}, "yes", {"no": 0.3, "yes": 0.7}, []),
        ({"yes": 0.333, "no": 0.667}, "no", {"no": 0.667, "yes": 0.333}, []),
        ({"yes": 0.6, "no": 0.6}, "no", {"no": 0.5, "yes": 0.5}, [Notice.SCALED_PROBABILITIES]),
        ({"yes": 1.0, "no": 0.0}, "yes", None, []),
        ({"yes": True, "no": False}, "yes", None, []),
        ('{"yes": 0.7, "no": 0.3}', "yes", {"no": 0.3, "yes": 0.7}, []),
    ],
)
@pytest.mark.parametrize("space", ["single", "ordinal"])
def test_votes_and_probabilities(cell, label, shares, notices, space):
    found, answers, noticed = _read(cell, space)
    assert found == label and noticed == notices
    assert answers == (shares and pytest.approx(shares))


@pytest.mark.parametrize(
    ("cell", "space", "message"),
    [
        ({"a": 1.5}, "multilabel", "'a' is 1.5 in .*expected true, false, null or a probability from 0 to 1"),
        ({"a": -0.1, "b": 1}, "single", "expected votes or probabilities of 0 or more"),
        ({"a": 0, "b": 0}, "single", "not all 0, whose sum a float can hold; leave the cell empty"),
        ({"a": 1e308, "b": 1e308}, "single", "whose sum a float can hold"),
        ({"a": 10**400}, "single", "expected a number, true, false or null"),
        ({"a": "much"}, "multilabel", "'a' is 'much', expected a number, true, false or null"),
        ({"a": 0.5, " a": 0.5}, "single", "names a class twice"),
        ({"": 1.0}, "multilabel", "'' is no class name"),
    ],
)
def test_answers_that_make_no_sense_are_rejected(cell, space, message):
    with pytest.raises(Fault, match=message) as fault:
        _read(cell, space)
    assert fault.value.code == Rejection.WRONG_ANSWERS


def test_names_that_are_not_in_the_label_space_are_rejected_in_lists_too():
    with pytest.raises(Fault, match=r"'c' is not in the label space \['a', 'b'\]") as fault:
        _read(["a", "c"], "multilabel", ["a", "b"])
    assert fault.value.code == Rejection.UNKNOWN_LABEL


def test_without_a_label_space_a_list_names_the_ones_that_read_it():
    for cell in (["a", "b"], '["a", "b"]', {"a": 1}):
        with pytest.raises(Fault, match=r"data\.label_space") as fault:
            _read(cell, "auto")
        assert fault.value.code == Rejection.LABEL_LIST


def test_auto_is_decided_by_lists_and_objects():
    assert detect_space(["a", None, 1]) == ("single", None)
    assert detect_space(["a", ["b"], {"c": 1.0}]) == ("multilabel", ["b"])
    assert detect_space(["[]"]) == ("multilabel", "[]")
    assert detect_space([{"a": 0.7, "b": 0.3}, {"a": 1.0, "b": 0.0}])[0] == "single"
    assert detect_space([{"a": 0.7, "b": 0.3, "c": None}])[0] == "single"  # how Parquet writes what JSON leaves out
    assert detect_space([{"a": True, "b": False}])[0] == "multilabel"
    assert detect_space([{"a": 0.7, "b": 0.6}])[0] == "multilabel"
    assert detect_space([{"a": 10**400, "b": -(10**400) + 1}])[0] == "multilabel"  # no float holds them
    assert detect_space([{"a": Decimal("0.7"), "b": 0.3}])[0] == "single"
    assert detect_space([{"a": Decimal("sNaN")}])[0] == "multilabel"
    assert detect_space([{"a": 1, "b": 0}, {"a": 1, "b": 1}])[0] == "multilabel"
    assert detect_space([{"a": 1, "b": 0}, {"a": 0, "b": 1}])[0] == "multilabel"  # a multi-hot object
    assert detect_space(["['a', 'b", ["a"]])[0] == "multilabel"  # a cell that was cut off is rejected later


@pytest.mark.parametrize("space", ["single", "ordinal", "multilabel"])
def test_an_object_of_nulls_is_no_label(space):
    assert _read({"a": None, "b": float("nan")}, space) == (None, None, [])


def test_objects_as_python_and_arrow_write_them():
    assert _read("{'a': True, 'b': False}", "multilabel")[1] == {"a": 1.0, "b": 0.0}
    assert _read([("a", 0.25), ("b", Decimal("0.75"))], "single")[1] == {"a": 0.25, "b": 0.75}
    with pytest.raises(Fault, match=r"cannot be read as an object; write it as JSON"):
        _read("{a: yes, b}", "auto")


def test_a_multi_hot_vector_needs_the_classes_in_its_order():
    names = ["red", "green", "blue"]
    assert _read([1.0, 0.0, 1.0], "multilabel", names)[1] == {"red": 1.0, "green": 0.0, "blue": 1.0}
    assert _read([0, 0, 0], "multilabel", names)[1] == {"red": 0.0, "green": 0.0, "blue": 0.0}
    with pytest.raises(Fault, match=r"looks like a multi-hot vector of 3 classes; list them in data.labels"):
        _read([0, 1, 0], "multilabel")
    assert _read([1, 0], "multilabel", ["0", "1"])[1] == {"1": 1.0, "0": 1.0, OTHERS: 0.0}  # classes called so


def test_lists_of_class_numbers_get_the_names_that_datasets_kept(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["joy", "fear", "calm"])
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.Sequence(names)})
    rows = datasets.Dataset.from_dict({"text": ["one text", "two texts"], "label": [[0, 2], [1]]}, features=features)
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.save_to_disk(tmp_path / "saved")
    for source in (tmp_path / "rows.parquet", tmp_path / "saved"):
        read = [row.answers for row in unique_rows(str(source), columns=Columns(), labels=None, space="multilabel")]
        assert read == [{"joy": 1.0, "calm": 1.0, OTHERS: 0.0}, {"fear": 1.0, OTHERS: 0.0}], source
