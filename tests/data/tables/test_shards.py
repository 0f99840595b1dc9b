"""Streamed shards: a fixed order, each row once an epoch, no more than a few windows on the disk."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import fsspec
import numpy as np
import pytest

from clsgen_dist.data.curriculum.stages import plan_stages
from clsgen_dist.data.example import Columns
from clsgen_dist.data.loader import TrainStream
from clsgen_dist.data.tables.shards import ShardedOrder, ShardedRows
from clsgen_dist.data.tables.spec import TableSpec
from clsgen_dist.errors import DataError

SHARDS, ROWS = 7, 11


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Seven Parquet shards of eleven rows in an object store; row 5 of each shard but the first two is bad."""
    from datasets import Dataset

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    for s in range(SHARDS):
        rows = [
            {
                "id": f"{s}-{r}",
                "text": "" if r == 5 and s > 1 else f"shard {s} row {r}",
                "label": "ab"[r % 2],
                "explanations": ["so it is", "because"],
            }
            for r in range(ROWS)
        ]
        local = tmp_path / f"{s}.parquet"
        Dataset.from_list(rows).to_parquet(local)
        store.pipe(f"/{tmp_path.name}/rows-{s}.parquet", local.read_bytes())
    yield f"memory://{tmp_path.name}/rows-*.parquet"
    store.rm(f"/{tmp_path.name}", recursive=True)


_runs = itertools.count()


def _stream(
    pattern,
    encoder,
    *,
    rank=0,
    world_size=1,
    epochs=2.0,
    batch=9,
    seed=0,
    window=2,
    bad=0.2,
    quarantine=None,
    run=None,
):
    spec = TableSpec(Columns(), ("a", "b"), 64, encoder.tokens_of, encoder.end_token, encoder.tokenizer_key)
    rows = ShardedRows(
        pattern, spec, encoder, window=window, seed=seed, max_bad_fraction=bad, quarantine=quarantine,
        run=str(run or f"run {next(_runs)}"), owns_cache=rank == 0,
    )  # fmt: skip
    stages = plan_stages([], rows=len(rows), batch_size=batch, epochs=epochs, max_steps=None)
    order = ShardedOrder(rows, stages)
    return TrainStream(
        rows, order, batch_size=batch, micro_batch_tokens=512, rank=rank, world_size=world_size
    )  # fmt: skip


def _ids(stream, steps):
    return [[stream.rows.id(int(row)) for row in stream.chosen(step)[0]] for step in steps]


def test_each_epoch_visits_every_good_row_once_window_by_window(shards, encoder, tmp_path, caplog):
    stream = _stream(shards, encoder, batch=ROWS, quarantine=tmp_path / "lost")
    ids = _ids(stream, range(stream.steps))
    good = {f"{s}-{r}" for s in range(SHARDS) for r in range(ROWS) if not (r == 5 and s > 1)}
    epochs = [Counter(i for step in ids[e * SHARDS : (e + 1) * SHARDS] for i in step) for e in (0, 1)]
    assert all(set(epoch) == good and set(epoch.values()) == {1} for epoch in epochs)
    assert [i for step in ids[:SHARDS] for i in step] != [i for step in ids[SHARDS:] for i in step]
    for shard_set in ({i.split("-")[0] for step in ids[k : k + 2] for i in step} for k in (0, 2, 4)):
        assert len(shard_set) == 2  # a window is two shards, mixed
    assert sum("1 rejected (1 empty text)" in text for text in caplog.messages) >= SHARDS - 2
    lost = [json.loads(file.read_text()) for file in (tmp_path / "lost").iterdir()]
    assert len(lost) == SHARDS - 2 and {(row["line"], row["reason"]) for row in lost} == {(6, "empty text")}


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_order_does_not_depend_on_the_first_step_or_on_ranks(shards, encoder, world_size):
    full = _stream(shards, encoder)
    truth = _ids(full, range(full.steps))
    for step in (full.steps - 1, 3, 11):
        seen = []
        for rank in range(world_size):
            stream = _stream(shards, encoder, rank=rank, world_size=world_size)
            assert _ids(stream, [step]) == [truth[step]]
            seen.append(stream.step(step))
        assert len({len(share.batches) for share in seen}) == 1
        assert sum(b.labelled for share in seen for b in share.batches) == len(truth[step])
    assert _ids(_stream(shards, encoder, seed=1), [0]) != truth[:1]


def test_the_second_epoch_uses_the_second_explanation(shards, encoder):
    stream = _stream(shards, encoder)
    taken: dict[int, set[bytes]] = {}
    for step in range(stream.steps):
        for row, visit in zip(*stream.chosen(step), strict=True):
            taken.setdefault(int(row), set()).add(stream.rows.sample(int(row), int(visit)).explanation.tobytes())
    assert {len(explanations) for explanations in taken.values()} == {2}


def test_only_the_windows_in_use_are_on_the_disk(shards, encoder, monkeypatch):
    monkeypatch.setattr("clsgen_dist.data.tables.shards._STEPS_KEPT", 2)
    stream = _stream(shards, encoder, window=1, epochs=3)
    most, home = 0, stream.rows._cache_dir
    for step in range(stream.steps):
        stream.step(step)
        stream.rows._prefetch.join()
        most = max(most, len([p for p in home.iterdir() if p.is_dir()]))
        assert not list(home.glob("*.parquet"))
    # A step may span two windows: these, the previous one and the next one.
    assert 3 <= most <= 4
    stream.rows.close()
    assert not home.exists()


def test_a_step_larger_than_a_window_gets_all_of_its_rows(shards, encoder):
    stream = _stream(shards, encoder, window=1, batch=30)
    assert sum(len(stream.step(step).ids) for step in range(stream.steps)) == 2 * (SHARDS * ROWS - (SHARDS - 2))


def test_replaced_shards_are_read_again(tmp_path, encoder, monkeypatch):
    from datasets import Dataset

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = []
    for text in ("first text", "second"):
        Dataset.from_list([{"text": text, "label": "ab"[r % 2]} for r in range(4)]).to_parquet(tmp_path / "s.parquet")
        stream = _stream(str(tmp_path / "s*.parquet"), encoder)
        row = int(stream.chosen(0)[0][0])
        rows, at = stream.rows._locate(row)
        found.append((rows.table.example(at).text, stream.rows.fingerprint))
    assert [text for text, _ in found] == ["first text", "second"] and found[0][1] != found[1][1]


def test_too_many_bad_rows_of_a_shard_end_the_run(shards, encoder):
    stream = _stream(shards, encoder, bad=0.01)
    with pytest.raises(DataError, match=r"1 of 11 rows are bad"):
        for step in range(stream.steps):
            stream.step(step)


def test_wrong_shard_patterns_are_refused(shards, encoder, tmp_path):
    with pytest.raises(DataError, match="no shard matches"):
        _stream(shards.replace("rows-", "other-"), encoder)
    with pytest.raises(DataError, match="cannot be listed"):
        _stream("nosuchstore://x/*.parquet", encoder)
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(DataError, match=r"has no Parquet footer.*convert it"):
        _stream(str(tmp_path / "x.parquet"), encoder)


def test_rows_are_counted_from_parquet_footers(shards, encoder):
    rows = _stream(shards, encoder).rows
    assert len(rows) == SHARDS * ROWS and np.array_equal(rows.counts, [ROWS] * SHARDS)
    assert rows.longest() == encoder.max_prompt_length + 64


def test_windows_are_kept_for_a_rank_that_is_behind(shards, encoder, tmp_path, monkeypatch):
    from clsgen_dist.data.tables import shards as module

    built: Counter[str] = Counter()
    build = module.build_table
    monkeypatch.setattr(
        module, "build_table", lambda source, *rest: (built.update([source.source]), build(source, *rest))
    )
    truth = _ids(stream := _stream(shards, encoder, window=1, batch=6, epochs=1), range(stream.steps))
    built.clear()
    first = _stream(shards, encoder, window=1, batch=6, epochs=1, run=tmp_path)
    second = _stream(shards, encoder, window=1, batch=6, epochs=1, run=tmp_path, rank=1, world_size=2)
    for step in range(first.steps):
        first.step(step)
        if step >= 4:
            assert _ids(second, [step - 4]) == [truth[step - 4]]
    assert len(built) == SHARDS and set(built.values()) == {
        1
    }  # fetched by the first rank that needs it, and never again


def test_tables_of_a_killed_run_are_deleted_and_those_of_a_running_one_are_not(shards, encoder, tmp_path):
    alive = _stream(shards, encoder, run=tmp_path / "alive")
    alive.step(0)
    dead = _stream(shards, encoder, run=tmp_path / "dead")
    dead.step(0)
    dead.rows._prefetch.join()
    dead.rows._run_lock.release()  # as the kernel does when a process dies
    assert any(dead.rows._cache_dir.iterdir())
    third = _stream(shards, encoder, run=tmp_path / "third")
    assert not dead.rows._cache_dir.exists() and any(alive.rows._cache_dir.iterdir())
    assert third.rows._cache_dir != alive.rows._cache_dir


def test_copied_shards_keep_the_fingerprint_and_edited_ones_do_not(shards, encoder, tmp_path):
    store = fsspec.filesystem("memory")
    here = _stream(shards, encoder).rows.fingerprint
    for folder in ("copy", "edited"):
        (tmp_path / folder).mkdir()
        for name in store.glob(shards.removeprefix("memory:/")):
            (tmp_path / folder / name.rsplit("/", 1)[1]).write_bytes(store.cat(name))
    from datasets import Dataset

    rows = [{"id": f"0-{r}", "text": "another text", "label": "a"} for r in range(ROWS)]
    Dataset.from_list(rows).to_parquet(tmp_path / "edited/rows-0.parquet")
    assert _stream(str(tmp_path / "copy/*.parquet"), encoder).rows.fingerprint == here
    assert _stream(str(tmp_path / "edited/*.parquet"), encoder).rows.fingerprint != here
