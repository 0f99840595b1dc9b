"""Packing: every row in one bin, no bin over the budget, the same number of bins per rank, balanced."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clsgen_dist.data.pack import Sample, collate, dummy_batch, pack, packing_stats

ids = lambda *tokens: np.array(tokens, dtype=np.int32)  # noqa: E731


@given(
    lengths=st.lists(st.integers(1, 60), max_size=80),
    budget=st.integers(60, 200),
    ranks=st.sampled_from([1, 2, 3, 8]),
)
@settings(max_examples=200, deadline=None)
def test_every_row_is_in_one_bin_and_no_bin_is_over_the_budget(lengths, budget, ranks):
    lengths = np.array(lengths, dtype=np.int64)
    bins = pack(lengths, budget=budget, ranks=ranks)
    assert all(len(step) == ranks for step in bins)
    assert sorted(int(row) for step in bins for rows in step for row in rows) == list(range(len(lengths)))
    assert all(lengths[rows].sum() <= budget for step in bins for rows in step)
    # Not more micro-steps than first-fit would need at its worst.
    assert len(bins) <= max(1, int(np.ceil(2 * lengths.sum() / (budget * ranks))) + 1)


def test_bins_that_only_best_fit_finds_are_found():
    """Balanced, 5+5+3 | 4+4+4 overflow a budget of 12; best-fit decreasing needs no third micro-step."""
    lengths = np.array([6, 6, 4, 4, 4])
    bins = pack(lengths, budget=12, ranks=1)
    assert len(bins) == 2
    assert {tuple(lengths[rows]) for [rows] in bins} == {(6, 6), (4, 4, 4)}


def test_thousands_of_rows_that_fit_badly_are_packed_quickly():
    lengths = np.random.default_rng(0).integers(520, 780, 4096)
    start = time.perf_counter()
    assert len(pack(lengths, budget=1024, ranks=2)) == 2048
    assert time.perf_counter() - start < 2


def test_a_row_over_the_budget_is_refused():
    with pytest.raises(ValueError, match="a row has 61 tokens, more than the budget of 60"):
        pack(np.array([61]), budget=60, ranks=2)


def test_fewer_rows_than_ranks_leave_empty_bins():
    [step] = pack(np.array([5, 7]), budget=10, ranks=8)
    assert sorted(map(len, step)) == [0] * 6 + [1] * 2


@pytest.mark.parametrize("name", ["comve", "pubmedqa", "hatecheck", "contractnli"])
@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_real_rows_are_packed_to_98_percent(name, ranks, shared_data, encoder):
    """Of the tokens that all ranks could process while the fullest one runs, 98 % are used."""
    import json

    rows = [json.loads(line) for line in (shared_data / name / "train.jsonl").open()]
    prompts = encoder.tokens_of([row["text"] for row in rows])
    reasons = encoder.explanations([(row.get("explanations") or [row.get("explanation")])[0] for row in rows])
    lengths = np.array(
        [min(len(p) + encoder.template_length, 1024) + len(r) for p, r in zip(prompts, reasons, strict=True)]
    )
    order = np.random.default_rng(0).permutation(len(lengths))
    tokens = waited = 0.0
    for at in range(0, len(lengths) - 127, 128):
        step = lengths[order[at : at + 128]]
        load = packing_stats(pack(step, budget=4096, ranks=ranks), step)
        tokens, waited = tokens + step.sum(), waited + step.sum() / load.efficiency
        assert load.imbalance < 1.05
    assert tokens / waited >= 0.98


def test_a_batch_marks_sequences_supervision_and_classification_tokens():
    batch = collate([Sample(ids(5, 6, 7), ids(8, 9), 1), Sample(ids(4), ids(), -1), Sample(ids(3, 2), ids(1), 0)])
    assert batch.input_ids_N.tolist() == [5, 6, 7, 8, 9, 4, 3, 2, 1]
    assert batch.position_N.tolist() == [0, 1, 2, 3, 4, 0, 0, 1, 2]
    assert batch.sequence_start_S1.tolist() == [0, 5, 6, 9]
    assert batch.class_index_S.tolist() == [2, 5, 7]
    assert batch.label_S.tolist() == [1, -1, 0]
    assert batch.target_n.tolist() == [8, 9, 1]
    assert torch.equal(batch.input_ids_N[batch.supervised_index_n + 1], batch.target_n)
    assert (batch.tokens, batch.supervised, batch.labelled, batch.longest) == (9, 3, 2, 5)


def test_a_dummy_batch_has_no_supervision():
    batch = dummy_batch(2)
    assert (batch.supervised, batch.labelled) == (0, 0) and batch.tokens > 0


def test_labels_of_a_batch_are_indices_or_answers():
    rows = [Sample(ids(1, 2), ids(3), label) for label in (2, -1, 0)]
    assert collate(rows).label_S.tolist() == [2, -1, 0] and collate(rows).labelled == 2
    votes = np.array([0.5, 0.5, 0.0], dtype=np.float32)
    batch = collate([*rows, Sample(ids(1), ids(), votes)])
    assert batch.label_S.tolist() == [[0, 0, 1], [-1, -1, -1], [1, 0, 0], [0.5, 0.5, 0]]
    assert batch.label_S.dtype == torch.float32 and batch.labelled == 3
    some = np.array([-1, 1, -1], dtype=np.float32)
    assert collate([Sample(ids(1), ids(), some), Sample(ids(1), ids(), some - 2)]).labelled == 1
