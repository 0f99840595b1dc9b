"""Order and batches: a pure function of seed and position, whoever computes it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from clsgen_dist.data.encode import EncodedRow
from clsgen_dist.data.loader import TrainStream, accumulation_steps, collate, evaluation_batches


def _rows(count, explanations=2):
    return [
        EncodedRow(
            id=str(i),
            prompt=tuple(range(100 + i, 103 + i + i % 4)),
            explanations=tuple((1000 + i, 2000 + e, 2) for e in range(explanations if i % 5 else 0)),
            label=-1 if i % 7 == 0 else i % 2,
            truncated=False,
        )
        for i in range(count)
    ]


def _stream(rows, *, rank=0, world_size=1, micro=4, batch=10, epochs=2.5, seed=0):
    return TrainStream(
        rows,
        seed=seed,
        batch_size=batch,
        epochs=epochs,
        rank=rank,
        world_size=world_size,
        micro_batch_size=micro,
        pad_token=2,
    )


def _seen(rows, step, world_size, **options):
    """First prompt token of every real row of a step, over all ranks, as a multiset with its explanation."""
    seen = Counter()
    lengths = set()
    for rank in range(world_size):
        batches = _stream(rows, rank=rank, world_size=world_size, **options).step(step)
        lengths.add(len(batches))
        for batch in batches:
            for row in range(batch.input_ids_ST.shape[0]):
                real = batch.label_S[row] >= 0 or (batch.supervised > 0)
                tokens = batch.input_ids_ST[row][batch.attention_mask_ST[row].bool()].tolist()
                if real or tokens[0] != 100:
                    seen[tuple(tokens)] += 1
    assert len(lengths) == 1, "ranks must run equally many micro-steps"
    return seen


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("micro", [1, 4])
def test_every_world_size_sees_the_same_rows_per_step(world_size, micro):
    rows = _rows(23)[1:]  # without row 0, whose prompt serves as the stand-in
    alone = _stream(rows)
    for step in range(alone.steps):
        expected = Counter(
            tuple(row.prompt + explanation)
            for row, explanation in map(alone.at, range(step * 10, min(step * 10 + 10, alone.positions)))
        )
        got = Counter()
        for rank in range(world_size):
            stream = _stream(rows, rank=rank, world_size=world_size, micro=micro)
            batches = stream.step(step)
            assert len(batches) == accumulation_steps(10, micro, world_size)
            for batch in batches:
                assert batch.input_ids_ST.shape[0] <= micro
                if batch.supervised == 0 and batch.labelled == 0 and batch.input_ids_ST.shape[0] == 1:
                    stand_in = tuple(batch.input_ids_ST[0].tolist())
                    if stand_in == rows[0].prompt and stand_in not in expected:
                        continue
                for ids, mask in zip(batch.input_ids_ST, batch.attention_mask_ST, strict=True):
                    got[tuple(ids[mask.bool()].tolist())] += 1
        assert got == expected


def test_each_epoch_shows_each_row_once_and_in_another_order():
    stream = _stream(_rows(23), epochs=3)
    epochs = [[stream.at(e * 23 + i)[0].id for i in range(23)] for e in range(3)]
    assert all(sorted(ids) == sorted(str(i) for i in range(23)) for ids in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_order_depends_on_the_seed_and_on_nothing_else():
    rows = _rows(23)

    def order(seed):
        stream = _stream(rows, seed=seed)
        return [stream.at(p)[0].id for p in (40, 3, 41, 0)]  # whatever was asked before

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_several_explanations_are_taken_in_turn():
    rows = _rows(12, explanations=3)
    stream = _stream(rows, epochs=6)
    taken = {row.id: Counter() for row in rows}
    for position in range(6 * 12):
        row, explanation = stream.at(position)
        taken[row.id][explanation] += 1
    assert all(set(counts.values()) == {2} for row_id, counts in taken.items() if int(row_id) % 5)


def test_a_fraction_of_an_epoch_ends_with_a_shorter_step():
    stream = _stream(_rows(23), epochs=1, batch=10)
    assert (stream.positions, stream.steps) == (23, 3)
    assert sum(b.input_ids_ST.shape[0] for b in stream.step(2)) == 3


def test_seven_rows_on_three_ranks_hang_nobody():
    for rank in range(3):
        batches = _stream(_rows(7), rank=rank, world_size=3, batch=2, micro=1, epochs=1).step(0)
        assert len(batches) == 1
        if rank == 2:
            assert batches[0].supervised == 0 and batches[0].labelled == 0


def test_batches_mark_what_is_supervised_and_where_the_classification_token_is():
    rows = [
        EncodedRow(id="a", prompt=(5, 6, 7), explanations=((8, 9),), label=1, truncated=False),
        EncodedRow(id="b", prompt=(5,), explanations=(), label=-1, truncated=False),
    ]
    batch = collate([(rows[0], (8, 9)), (rows[1], ())], pad_token=0)
    assert batch.input_ids_ST.tolist() == [[5, 6, 7, 8, 9], [5, 0, 0, 0, 0]]
    flat = batch.input_ids_ST.flatten()
    assert batch.class_index_S.tolist() == [2, 5]
    assert torch.equal(flat[batch.supervised_index_n + 1], batch.target_n)
    assert batch.target_n.tolist() == [8, 9]
    assert (batch.tokens, batch.supervised, batch.labelled) == (6, 2, 1)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_covers_each_row_once_with_equally_many_batches_per_rank(world_size):
    rows = _rows(13)
    parts = [
        evaluation_batches(rows, rank=rank, world_size=world_size, batch_size=3, pad_token=2)
        for rank in range(world_size)
    ]
    assert len({len(part) for part in parts}) == 1
    assert sorted(i for part in parts for indices, _ in part for i in indices) == list(range(13))
