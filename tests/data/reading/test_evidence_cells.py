"""Evidence cells: where quotes and spans are in their text, and what is not there."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clsgen_dist.data.checks import cell_checks
from clsgen_dist.data.encode import token_spans
from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading import evidence_cells, ingest
from clsgen_dist.data.reading.cells import Notice
from clsgen_dist.data.reading.evidence_cells import evidence_of
from clsgen_dist.data.reading.ingest import read_examples
from clsgen_dist.data.tables.build import open_table
from clsgen_dist.data.tables.dataset import RowDataset
from clsgen_dist.data.tables.spec import TableSpec

TEXT = (
    "The mass is irregular, with spiculated  edges.\nNo calcification \u2014 \u201cbenign\u201d looking margins, is it."
)


@pytest.mark.parametrize(
    ("cell", "found", "lost"),
    [
        ("irregular", ["irregular"], 0),
        ("Spiculated edges", ["spiculated  edges"], 0),  # capitals and white space
        ("edges. No calcification", ["edges.\nNo calcification"], 0),
        ('no calcification - "benign"', ["No calcification \u2014 \u201cbenign\u201d"], 0),
        ("is", ["is"], 0),
        ("regular", ["regular"], 0),  # no whole word: within one
        ("mass ... margins", ["mass", "margins"], 0),
        ("margins [\u2026] mass", [], 1),  # parts are in order
        ([4, 8], ["mass"], 0),
        ([4.0, 8.0], ["mass"], 0),
        ([[4, 8], "irregular"], ["mass", "irregular"], 0),
        ([[4, 12], [8, 21]], ["mass is irregular"], 0),  # overlapping
        ([{"start": 4, "end": 8}, {"start": 90, "end": 900}], ["mass"], 1),
        ('["irregular", "nothing of it"]', ["irregular"], 1),
        ("['irregular' 'mass']", ["mass", "irregular"], 0),
        (np.array(["irregular", "mass"], dtype=object), ["mass", "irregular"], 0),
        ([8, 4], [], 1),
        ([46, 47], [], 1),  # a line's end
        ([True, False], [], 2),
        ([4, float("inf")], [], 2),
        ("[irregular, 'mass", [], 1),
        (5, [], 1),
        (["", None, float("nan")], [], 0),
        (None, [], 0),
        (float("nan"), [], 0),
        ([], [], 0),
    ],
)
def test_evidence_is_found_in_its_text(cell, found, lost):
    notices = []
    spans = evidence_of(cell, TEXT, notices)
    assert [TEXT[start:end] for start, end in spans] == found
    assert [notice for notice, _ in notices] == [Notice.UNFOUND_EVIDENCE] * lost


def test_whole_words_are_preferred():
    text = "Nodule, no pain, NO fever"
    for quote, start in (("no", 8), ("NO", 17), ("nod", 0)):
        assert evidence_of(quote, text, [])[0][0] == start


def _rows(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_a_row_with_evidence_that_is_not_there_is_kept_and_reported(tmp_path, run_command):
    rows = [
        {"id": "a", "text": TEXT, "label": "x", "evidence": ["irregular", "round"], "counter_evidence": "benign"},
        {"id": "b", "text": "Round.", "label": "y", "evidence": "oval"},
        {"id": "c", "text": "Round.", "label": "x", "evidence": None},
    ]
    source = _rows(tmp_path, rows)
    read = read_examples(source, columns=Columns(), labels=None, max_bad_fraction=0, quarantine=None, space="single")
    assert read.examples[0].evidence == ((12, 21),) and len(read.examples[0].counter_evidence) == 1
    assert read.examples[1].evidence == () and not read.rejected
    assert "2 pieces of evidence like 'round' not found in their text" in read.summary()
    run_command("clsgen", "data", "check", source, "--report=null", f"--json={tmp_path}/found.json", check=False)
    found = json.loads((tmp_path / "found.json").read_text())["findings"]
    rows = {finding["finding"]: [row["line"] for row in finding["rows"]] for finding in found}
    assert rows["unfound-evidence"] == [1, 2]


def test_every_notice_has_its_words():
    assert set(cell_checks._MESSAGES) == set(ingest._NOTICE_WORDS) == set(Notice)


def test_evidence_keeps_its_tokens_through_table_and_truncation(tmp_path, encoder):
    """For every length of the prompt: the tokens of evidence that are left, wherever the text was cut."""
    words = [f"w{n} number" for n in range(60)]
    text = ", ".join(words)
    quotes = [words[2], words[30], f"{words[55]}, {words[56]}"]
    rows = [{"id": "a", "text": text, "label": "x", "evidence": quotes, "counter_evidence": [[0, len(text)]]},
            {"id": "b", "text": text, "label": "y"}]  # fmt: skip
    spec = TableSpec(Columns(), None, 50, encoder.tokens_of, encoder.end_token, encoder.tokenizer_key)
    table = open_table(_rows(tmp_path, rows), spec)
    assert table.card.with_evidence == 1 and table.example(0).evidence == tuple(
        (text.index(quote), text.index(quote) + len(quote)) for quote in quotes
    )
    data = RowDataset(table, encoder)
    tokens = list(table.text_ids(0))
    pieces = [tokens[start:stop] for start, stop in table.evidence(0)]
    assert pieces == [encoder.tokens_of([f" {quote}"])[0] for quote in quotes]
    for length in range(encoder.template_length + 14, encoder.template_length + len(tokens) + 3, 7):
        sample = data.sample(0, max_prompt_length=length)
        left = [list(sample.prompt[start:stop]) for start, stop in sample.evidence]
        assert all(any(_within(piece, whole) for whole in pieces) for piece in left)
        kept = sum(len(piece) for piece in left)
        # All of the text is counter-evidence: exactly the tokens that are left of it, without the ellipsis.
        text_left = sum(stop - start for start, stop in sample.counter_evidence)
        cut = len(tokens) + encoder.template_length > length
        assert text_left == len(sample.prompt) - encoder.template_length - (
            cut and len(encoder.tokens_of([" ... "])[0])
        )
        assert kept == sum(map(len, pieces)) or cut
    assert data.sample(1).evidence.shape == (0, 2)
    middle = [{"id": "a", "text": text, "label": "x", "evidence": words[30]}, rows[1]]
    (tmp_path / "2").mkdir()
    lost = RowDataset(open_table(_rows(tmp_path / "2", middle), spec), encoder)
    assert (lost.lost_evidence(encoder.template_length + 40), lost.lost_evidence(10_000)) == (1, 0)
    assert lost.sample(0, max_prompt_length=encoder.template_length + 40).evidence.shape == (0, 2)


def _within(piece, whole):
    return any(whole[at : at + len(piece)] == piece for at in range(len(whole) - len(piece) + 1))


def test_spans_that_share_a_token_count_it_once(encoder):
    text = "unbelievable irregularities"
    whole = token_spans(encoder.tokens_of, text, [(0, len(text))])
    by_character = token_spans(encoder.tokens_of, text, [(at, at + 1) for at in range(len(text)) if text[at] != " "])
    assert [n for start, stop in by_character for n in range(start, stop)] == list(range(whole[0][0], whole[0][1]))


def test_a_tokenizer_without_places_gives_the_same_spans_at_words(encoder):
    text = "The mass is irregular, with spiculated edges."
    spans = [(text.index(word), text.index(word) + len(word)) for word in ("mass", "spiculated edges")]
    assert token_spans(lambda texts: encoder.tokens_of(texts), text, spans) == token_spans(
        encoder.tokens_of, text, spans
    )


def _first_by_expression(quote, text, start):
    """The place of a quote by regular expressions alone."""
    pattern = r"\s+".join(map(re.escape, quote.split()))
    for wanted, flags in ((rf"(?<!\w){pattern}(?!\w)", 0), (rf"(?<!\w){pattern}(?!\w)", re.I), (pattern, re.I)):
        if pattern and (match := re.compile(wanted, flags).search(text, start)):
            return match.span()
    return None


@given(st.text("aAbé_.² \t\x1c\u2003\n", max_size=7), st.text("aAbé_.² \t\x1c\u2003\n", max_size=30), st.integers(0, 5))
@settings(max_examples=500, deadline=None)
def test_quotes_are_found_where_regular_expressions_find_them(quote, text, start):
    assert evidence_cells._first(quote, text, start) == _first_by_expression(quote, text, start)
