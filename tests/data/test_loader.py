"""The stream: the same rows per optimizer step for any number of ranks, resumed from a step number alone."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clsgen_dist.data.curriculum.stages import RunOrder, Stage, plan_stages, quantiles
from clsgen_dist.data.loader import TrainStream, evaluation_batches, prefetch
from clsgen_dist.data.pack import collate

STAGES = [
    Stage(name="short", steps=3, difficulty=(0.0, 0.4), max_prompt_length=40, micro_batch_tokens=128),
    Stage(name="grow", epochs=1.3, pacing="root", bands=[0.6, 0.4]),
    Stage(name="hard", epochs=0.7, difficulty=(0.5, 1.0), replay=0.25),
]


@pytest.fixture(scope="module")
def rows(encoder, mixed, tmp_path_factory):
    import json

    from clsgen_dist.data.example import Columns
    from clsgen_dist.data.tables.build import open_table
    from clsgen_dist.data.tables.dataset import RowDataset
    from clsgen_dist.data.tables.spec import TableSpec

    path = tmp_path_factory.mktemp("stream") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in mixed))
    spec = TableSpec(Columns(), None, 64, encoder.tokens_of, encoder.end_token, encoder.tokenizer_key)
    return RowDataset(open_table(str(path), spec), encoder)


def _stream(rows, *, stages=(), rank=0, world_size=1, budget=256, batch=10, epochs=2.5, seed=0):
    planned = plan_stages(stages, rows=len(rows), batch_size=batch, epochs=epochs, max_steps=None)
    return TrainStream(
        rows,
        RunOrder(planned, quantiles(rows.table.text_length_N, rows.label_N, "easy_first", seed), seed),
        batch_size=batch,
        micro_batch_tokens=budget,
        rank=rank,
        world_size=world_size,
    )


def _sequences(batch):
    starts = batch.sequence_start_S1.tolist()
    return [tuple(batch.input_ids_N[a:b].tolist()) for a, b in itertools.pairwise(starts)]


@given(
    world_size=st.sampled_from([1, 2, 3, 8]),
    budget=st.integers(128, 600),
    batch=st.integers(1, 17),
    staged=st.booleans(),
    stop=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_a_step_has_the_same_rows_for_any_ranks_budget_and_restart(rows, world_size, budget, batch, staged, stop):
    stages = STAGES if staged else ()
    alone = _stream(rows, stages=stages, batch=batch)
    step = stop % alone.steps  # a process that starts here, as after a kill
    row_B, visit_B = alone.chosen(step)
    length = alone.stage_of(step).stage.max_prompt_length
    expected = Counter(
        _sequences(collate([rows.sample(int(r), int(s), length)]))[0] for r, s in zip(row_B, visit_B, strict=True)
    )
    seen: Counter = Counter()
    counts = set()
    for rank in range(world_size):
        stream = _stream(rows, stages=stages, batch=batch, rank=rank, world_size=world_size, budget=budget)
        share = stream.step(step)
        assert share.ids == [rows.id(int(row)) for row in row_B]
        counts.add(len(share.batches))
        most = alone.stage_of(step).stage.micro_batch_tokens or budget
        for micro in share.batches:
            assert micro.tokens <= most
            if micro.supervised or micro.labelled:
                seen.update(_sequences(micro))
    assert seen == expected
    assert len(counts) == 1, "ranks must run equally many micro-steps"


def test_the_stream_is_the_same_from_any_first_step(rows):
    full = _stream(rows, stages=STAGES)
    read = [full.chosen(step) for step in range(full.steps)]
    for step in (full.steps - 1, 2, full.steps // 2, 3, 0):
        row_B, visit_B = _stream(rows, stages=STAGES).chosen(step)
        assert np.array_equal(row_B, read[step][0]) and np.array_equal(visit_B, read[step][1])
    # A row's visits are numbered consecutively over the stages.
    row, visit = (np.concatenate([r[k] for r in read]) for k in (0, 1))
    for which in range(len(rows)):
        assert visit[row == which].tolist() == list(range((row == which).sum()))


def test_explanations_alternate_across_stages(rows):
    stream = _stream(rows, stages=[Stage(name="a", epochs=4), Stage(name="b", epochs=2)], batch=len(rows))
    taken: dict[int, Counter] = {}
    for step in range(stream.steps):
        for row, visit in zip(*stream.chosen(step), strict=True):
            taken.setdefault(int(row), Counter())[rows.sample(int(row), int(visit)).explanation.tobytes()] += 1
    counts = np.diff(rows.table.explanation_start_N1)
    for row, visited in taken.items():
        assert set(visited.values()) == {6 // max(1, counts[row])}
        assert len(visited) == max(1, counts[row])


def test_a_fraction_of_an_epoch_ends_with_a_shorter_step(rows):
    stream = _stream(rows, epochs=0.56)
    assert [len(stream.chosen(step)[0]) for step in range(stream.steps)] == [10, 10, 3]


def test_seven_rows_on_three_ranks_give_each_rank_a_batch(row_dataset):
    rows = row_dataset([{"text": f"t{i}", "label": "yes" if i % 2 else "no"} for i in range(7)])
    for rank in range(3):
        stream = _stream(rows, rank=rank, world_size=3, batch=2, epochs=1)
        steps = [stream.step(step) for step in range(stream.steps)]
        assert [len(s.batches) for s in steps] == [1] * 4
        assert all(b.tokens for s in steps for b in s.batches)
    assert sum(b.labelled for b in steps[0].batches) == 0  # rank 2 of a step of two rows


def test_a_stage_truncates_texts_and_packs_by_its_own_lengths(rows):
    stream = _stream(rows, stages=STAGES)
    assert max(b.longest for step in range(3) for b in stream.step(step).batches) <= 40 + 20
    *_, length_B, _ = stream.bins(1)
    assert sum(b.tokens for b in stream.step(1).batches) == length_B.sum()


def test_steps_are_prefetched_in_order_and_the_wait_is_measured():
    def make(step):
        time.sleep(0.03)
        return step

    got = []
    for step, waited in prefetch(make, 3, 10):
        got.append((step, waited))
        time.sleep(0.06)
    assert [step for step, _ in got] == list(range(3, 10))
    assert got[0][1] > 0.02  # nothing could be ready
    assert max(waited for _, waited in got[3:]) < 0.02  # slower steps than data: no wait


def test_an_error_while_prefetching_is_raised_in_the_consumer():
    def make(step):
        if step == 2:
            raise OSError("disk gone")
        return step

    with pytest.raises(OSError, match="disk gone"):
        list(prefetch(make, 0, 5))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_covers_each_row_once_with_its_first_explanation(rows, world_size, mixed, encoder):
    parts = [list(evaluation_batches(rows, rank=r, world_size=world_size, budget=200)) for r in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    assert sorted(int(i) for part in parts for numbers, _ in part for i in numbers) == list(range(len(rows)))
    for part in parts:
        for numbers, batch in part:
            for row, sequence in zip(numbers, _sequences(batch), strict=False):
                first = mixed[row].get("explanations", [""])[0]
                assert encoder.explanations([first])[0][:-1] == list(sequence[len(rows.sample(row).prompt) :])[:-1]
