"""What reviewers thought of explanations: cells to accepted and rejected ones, and on through table, packing, batch."""

from __future__ import annotations

import json

import numpy as np
import pytest

from clsgen_dist.data.example import Columns
from clsgen_dist.data.pack import MISMATCHED, OWN, REJECTED, collate
from clsgen_dist.data.reading.cells import Notice
from clsgen_dist.data.reading.ingest import read_examples
from clsgen_dist.data.reading.preference_cells import judged_explanations
from clsgen_dist.data.reading.rejection import Fault
from clsgen_dist.data.tables.build import open_table
from clsgen_dist.data.tables.dataset import RowDataset
from clsgen_dist.data.tables.spec import TableSpec

REVIEWED = Columns(chosen="chosen", rejected="rejected", verdict="verdict")


@pytest.mark.parametrize(
    ("explanations", "verdict", "chosen", "rejected", "good", "bad", "ties"),
    [
        (("a",), None, None, None, ("a",), (), 0),
        (("a",), "accepted", None, None, ("a",), (), 0),
        (("a", "b"), "Rejected ", None, None, (), ("a", "b"), 0),
        (("a",), False, None, None, (), ("a",), 0),
        (("a",), 0.0, None, None, (), ("a",), 0),
        (("a",), np.int64(1), None, None, ("a",), (), 0),
        (("a",), "N/A", None, None, ("a",), (), 0),
        ((), None, "c", "r", ("c",), ("r",), 0),
        ((), None, ["c", "d"], '["r", "s"]', ("c", "d"), ("r", "s"), 0),
        ((), None, "c", None, ("c",), (), 0),  # without a reject
        ((), None, None, "r", (), ("r",), 0),
        ((), None, "c", "c ", ("c",), (), 1),  # a tie
        (("a",), "rejected", "a", None, ("a",), (), 1),
        (("a",), None, "a", ["r", "r"], ("a",), ("r",), 0),
        ((), None, [{"role": "user", "content": "q"}, {"role": "assistant", "content": "c"}], "r", ("c",), ("r",), 0),
    ],
)
def test_verdicts_and_pairs(explanations, verdict, chosen, rejected, good, bad, ties):
    notices = []
    assert judged_explanations(explanations, verdict, chosen, rejected, notices) == (good, bad)
    assert [notice for notice, _ in notices] == [Notice.TIED_EXPLANATION] * ties


def test_an_unknown_verdict_is_refused():
    with pytest.raises(Fault, match=r"verdict is unknown: 'perhaps', expected 'accepted' or 'rejected'"):
        judged_explanations(("a",), "perhaps", None, None, [])


def _file(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


ROWS = [
    {"id": "pair", "text": "one two", "label": "x", "chosen": ["good", "fine too"], "rejected": "bad and longer"},
    {"id": "plain", "text": "three", "label": "y", "explanation": "plain"},
    {"id": "verdict", "text": "four", "explanation": "wrong", "verdict": "rejected"},
    {"id": "tie", "text": "five", "label": "x", "chosen": "same", "rejected": "same"},
    {"id": "bare", "text": "six", "label": "y"},
]


def test_reviews_are_read_only_from_columns_that_are_named(tmp_path):
    source = _file(tmp_path, ROWS)
    options = {"labels": None, "max_bad_fraction": 0.5, "quarantine": None}
    reviewed = read_examples(source, columns=REVIEWED, **options)
    assert [(e.explanations, e.rejected) for e in reviewed.examples] == [
        (("good", "fine too"), ("bad and longer",)), (("plain",), ()), ((), ("wrong",)), (("same",), ()), ((), ()),
    ]  # fmt: skip
    assert "1 explanations like 'same' both accepted and rejected" in reviewed.summary()
    plain = read_examples(source, columns=Columns(), **options)
    assert all(not e.rejected for e in plain.examples) and plain.examples[2].explanations == ("wrong",)


def test_a_batch_has_the_rejected_explanations_after_its_rows(tmp_path, encoder):
    spec = TableSpec(REVIEWED, None, 50, encoder.tokens_of, encoder.end_token, encoder.tokenizer_key)
    table = open_table(_file(tmp_path, ROWS), spec)
    assert table.example(0).rejected == ("bad and longer",)

    def tokens(text):
        return [*encoder.tokens_of([text])[0], encoder.end_token]

    own, rejected, mismatched = (
        RowDataset(table, encoder, compared=name) for name in ("own", "rejected", "mismatched")
    )
    assert not len(own.sample(0).rejected) and list(rejected.sample(0).rejected) == tokens("bad and longer")
    assert list(mismatched.sample(1).mismatched) == tokens("wrong")  # the next row's, rejected though it is
    assert list(mismatched.sample(4).mismatched) in (
        tokens("good"),
        tokens("fine too"),
    )  # the last row's is the first's
    assert not len(mismatched.sample(3).mismatched)  # the next row has none
    for data in (own, rejected, mismatched):
        rows, visits = np.arange(5), np.array([1, 0, 3, 2, 0])
        batches = [collate([data.sample(int(r), int(v))]) for r, v in zip(rows, visits, strict=True)]
        assert [b.tokens for b in batches] == data.lengths(rows, visits).tolist()
        assert data.longest() == max(collate([data.sample(r, v)]).tokens for r in range(5) for v in range(4))
    batch = collate([mismatched.sample(row) for row in range(5)], groups=[7, 7, 8, 8, 8])
    roles = [OWN] * 5 + [REJECTED] * 2 + [MISMATCHED] * 4
    assert batch.role_S.tolist() == roles and batch.of_S.tolist() == [0, 1, 2, 3, 4, 0, 2, 0, 1, 2, 4]
    assert batch.group_S.tolist() == [7, 7, 8, 8, 8, 7, 8, 7, 7, 8, 8]
    assert batch.is_pair.tolist() == [n == 5 for n in range(11)] and int(batch.is_judged.sum()) == 5
    # Rows count as before: the further sequences have neither label nor end.
    alone = collate([own.sample(row) for row in range(5)])
    assert (batch.supervised, batch.labelled) == (alone.supervised, alone.labelled) and batch.target_n.equal(
        alone.target_n
    )
    assert not batch.is_labelled[5:].any() and not batch.is_explained[5:].any() and not batch.has_target[5:].any()
    expected = tokens("bad and longer") + tokens("wrong")
    assert batch.further_target_f[: len(expected)].tolist() == expected
    following = batch.input_ids_N[batch.further_index_f + 1]
    assert following.equal(batch.further_target_f)
