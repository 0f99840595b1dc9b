"""Where explanations came from: cells to one name for each explanation; what means something else costs no row."""

from __future__ import annotations

import csv
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet
import pytest

from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.cells import Notice
from clsgen_dist.data.reading.ingest import read_examples
from clsgen_dist.data.reading.provenance_cells import (
    MAX_COUNTED,
    OTHERS,
    add_counts,
    provenance_cell,
    provenance_of,
    reported_names,
)


def read(path, columns=None):
    found = read_examples(
        str(path), columns=columns or Columns(), labels=None, max_bad_fraction=0, quarantine=None, require_target=False
    )
    return found.examples


def row(tmp_path, columns=None, **cells):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "t", "label": "yes", **cells}) + "\n")
    (example,) = read(path, columns)
    return example


@pytest.mark.parametrize(
    ("cells", "explanations", "provenance"),
    [
        ({"explanation": "a", "provenance": "human"}, ("a",), ("human",)),
        ({"explanations": ["a", "b"], "provenance": " teacher:big\u200b "}, ("a", "b"), ("teacher:big",) * 2),
        ({"explanations": ["a", "b"], "provenance": ["human", "teacher:big"]}, ("a", "b"), ("human", "teacher:big")),
        ({"explanations": ["a", "b"], "provenance": '["human", null]'}, ("a", "b"), ("human", None)),
        ({"explanation": "h", "explanations": ["a"], "provenance": ["human", "x"]}, ("h", "a"), ("human", "x")),
        # Missing, placeholder and repeated explanations have an entry too.
        ({"explanations": ["a", None, "n/a", "b"], "provenance": ["w", "x", "y", "z"]}, ("a", "b"), ("w", "z")),
        ({"explanations": ["a", "a", "b"], "provenance": ["1st", "2nd", "3rd"]}, ("a", "b"), ("1st", "3rd")),
        ({"explanation": "a"}, ("a",), (None,)),
        ({"explanation": "a", "provenance": "N/A"}, ("a",), (None,)),
        ({"provenance": "human"}, (), ()),
        ({"provenance": {"crawl": 3}}, (), ()),
    ],
)  # fmt: skip
def test_each_explanation_has_its_provenance(cells, explanations, provenance, tmp_path):
    example = row(tmp_path, **cells)
    assert (example.explanations, example.provenance) == (explanations, provenance)
    assert Notice.UNREAD_PROVENANCE not in dict(example.notices)


@pytest.mark.parametrize(
    "cell",
    [
        7,
        True,
        {"crawl": "A"},
        ["human"],
        ["human", "human", "human"],
        ["human", 3],
        "x" * 101,
        "\ud800",
        "['a' ... 'z']",
    ],
)
def test_a_cell_that_means_something_else_is_noticed_and_the_row_stays(cell, tmp_path):
    example = row(tmp_path, explanations=["a", "b"], provenance=cell)
    assert example.provenance == (None, None) and example.explanations == ("a", "b")
    assert [notice for notice, _ in example.notices] == [Notice.UNREAD_PROVENANCE]


def test_another_column_may_be_named(tmp_path):
    cells = {"explanation": "a", "provenance": {"crawl": 3}, "by": "human"}
    example = row(tmp_path, Columns(provenance="by"), **cells)
    assert example.provenance == ("human",) and not example.notices


def test_reviews_take_explanations_away_and_add_chosen_ones(tmp_path):
    columns = Columns(verdict="verdict", chosen="chosen", rejected="rejected")
    cells = {"explanations": ["a", "b"], "chosen": ["b", "c"], "rejected": "a"}
    told = row(tmp_path, columns, **cells, verdict="accepted", provenance=["human", "teacher:big"])
    # An explanation that is rejected elsewhere too counts as accepted; one of `chosen` alone has no entry.
    assert (told.explanations, told.provenance) == (("a", "b", "c"), ("human", "teacher:big", None))
    told = row(tmp_path, columns, **cells, verdict="rejected", provenance="human")
    assert (told.explanations, told.provenance) == (("b", "c"), ("human", "human"))


def test_every_format_gives_the_same(tmp_path):
    rows = [(["a", "b"], ["human", "teacher:big"]), (["c"], ["human"]), (["d", "e"], None)]
    table = {"text": ["s", "t", "u"], "explanations": [r[0] for r in rows], "provenance": [r[1] for r in rows]}
    pyarrow.parquet.write_table(pa.table(table), tmp_path / "rows.parquet")
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        for text, (explanations, provenance) in zip(table["text"], rows, strict=True):
            writer.writerow([text, json.dumps(explanations), provenance and json.dumps(provenance)])
    expected = [("human", "teacher:big"), ("human",), (None, None)]
    for name in ("rows.parquet", "rows.csv"):
        assert [example.provenance for example in read(tmp_path / name)] == expected


@pytest.mark.parametrize(
    "names", [("human",), ("human", "human"), ("human", "teacher:big"), ("human", None), (None, None)]
)
def test_what_is_written_is_read_back(names):
    texts = [f"explanation {n}" for n in range(len(names))]
    notices = []
    assert provenance_of(provenance_cell(names), texts, texts, notices) == names
    assert not notices
    assert isinstance(provenance_cell(names), list) == (len(set(names)) > 1)


def test_a_different_name_in_each_row_is_counted_in_bounded_memory():
    counts: Counter[str | None] = Counter()
    add_counts(counts, (f"page {n}" for n in range(5000)))
    add_counts(counts, ["human", "page 7", "page 8", "page 8", None])
    assert len(counts) == MAX_COUNTED + 2 and counts.total() == 5005
    assert (counts["page 7"], counts["human"], counts[None], counts[OTHERS]) == (2, 0, 1, 4001)
    names = reported_names(counts)
    assert len(names) == 20 and names == sorted(names) and {"page 7", "page 8"} <= set(names)
