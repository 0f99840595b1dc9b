"""Which checkpoint counts: without ranks, on files."""

from __future__ import annotations

import json

import pytest

from clsgen_dist.engine import checkpoint
from clsgen_dist.errors import CheckpointError


def _commit(root, step, content=b"weights"):
    folder = root / checkpoint.folder_name(step)
    folder.mkdir(parents=True)
    (folder / "shard.pt").write_bytes(content)
    files = {"shard.pt": checkpoint.seal(folder / "shard.pt")}
    checkpoint.publish(folder / checkpoint.MARKER, json.dumps({"files": files, "state": {"step": step}}))
    return folder


def test_the_newest_committed_checkpoint_wins(tmp_path):
    for step in (2, 10, 9):
        _commit(tmp_path, step)
    assert checkpoint.newest_valid(tmp_path, print).name == checkpoint.folder_name(10)


def test_a_folder_without_marker_does_not_count(tmp_path):
    _commit(tmp_path, 2)
    (_commit(tmp_path, 4) / checkpoint.MARKER).unlink()
    assert checkpoint.newest_valid(tmp_path, print).name == checkpoint.folder_name(2)
    with pytest.raises(CheckpointError, match="save was not finished"):
        checkpoint.verify(tmp_path / checkpoint.folder_name(4))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: p.write_bytes(b"weightz"), "does not match its checksum"),
        (lambda p: p.write_bytes(b"weig"), "has 4 bytes, expected 7"),
        (lambda p: p.unlink(), "is missing"),
    ],
    ids=["bit flipped", "truncated", "gone"],
)
def test_damage_is_named_and_the_one_before_is_taken(damage, said, tmp_path):
    _commit(tmp_path, 2)
    damage(_commit(tmp_path, 4) / "shard.pt")
    messages = []
    assert checkpoint.newest_valid(tmp_path, messages.append).name == checkpoint.folder_name(2)
    [message] = messages
    assert said in message and "shard.pt" in message and checkpoint.folder_name(4) in message


def test_an_unreadable_marker_is_damage_too(tmp_path):
    (_commit(tmp_path, 2) / checkpoint.MARKER).write_text("{")
    messages = []
    assert checkpoint.newest_valid(tmp_path, messages.append) is None
    assert "cannot be read" in messages[0]


def test_nothing_there_is_nothing_to_resume(tmp_path):
    assert checkpoint.newest_valid(tmp_path / "none", print) is None


def test_pruning_keeps_the_last_and_the_best(tmp_path):
    for step in range(1, 7):
        _commit(tmp_path, step)
    checkpoint.prune(tmp_path, keep_last=2, best_step=3)
    assert [p.name for p in checkpoint.committed(tmp_path)] == [checkpoint.folder_name(s) for s in (3, 5, 6)]
    assert len(list(tmp_path.iterdir())) == 3
