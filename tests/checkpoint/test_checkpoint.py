"""Which checkpoints are valid, kept and deleted: on files, without ranks."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest

from clsgen_dist import checkpoint
from clsgen_dist.checkpoint.saver import checkpoints_still_to_store, require_disk_space
from clsgen_dist.errors import CheckpointError
from clsgen_dist.resilience.run_dir import prepare_run_dir


def _commit(root, step, content=b"weights", in_a_row=0):
    folder = root / checkpoint.folder_name(step)
    folder.mkdir(parents=True)
    (folder / "shard.pt").write_bytes(content)
    files = {"shard.pt": checkpoint.seal(folder / "shard.pt")}
    checkpoint.commit(folder, {"files": files, "state": {"step": step, "spikes": {"in_a_row": in_a_row}}})
    return folder


def test_the_newest_committed_checkpoint_wins(tmp_path):
    for step in (2, 10, 9):
        _commit(tmp_path, step)
    assert checkpoint.newest_valid(tmp_path).name == checkpoint.folder_name(10)


def test_a_folder_without_marker_is_not_a_checkpoint(tmp_path):
    _commit(tmp_path, 2)
    (_commit(tmp_path, 4) / checkpoint.MARKER).unlink()
    assert checkpoint.newest_valid(tmp_path).name == checkpoint.folder_name(2)
    with pytest.raises(CheckpointError, match="save was not finished"):
        checkpoint.verify(tmp_path / checkpoint.folder_name(4))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda p: p.write_bytes(b"weightz"), "does not match its checksum"),
        (lambda p: p.write_bytes(b"weig"), "has 4 bytes, expected 7"),
        (lambda p: p.unlink(), "is missing"),
    ],
    ids=["bit flipped", "truncated", "gone"],
)
def test_a_damaged_checkpoint_is_logged_and_the_previous_one_used(damage, expected, tmp_path, caplog):
    _commit(tmp_path, 2)
    damage(_commit(tmp_path, 4) / "shard.pt")
    assert checkpoint.newest_valid(tmp_path).name == checkpoint.folder_name(2)
    [message] = caplog.messages
    assert expected in message and "shard.pt" in message and checkpoint.folder_name(4) in message


def test_an_unreadable_marker_counts_as_damage(tmp_path, caplog):
    (_commit(tmp_path, 2) / checkpoint.MARKER).write_text("{")
    assert checkpoint.newest_valid(tmp_path) is None
    assert "cannot be read" in caplog.messages[0]


def test_a_marker_with_any_byte_changed_is_invalid(tmp_path):
    _commit(tmp_path, 2)
    marker = _commit(tmp_path, 4) / checkpoint.MARKER
    whole = marker.read_bytes()
    for at in range(len(whole)):
        for bit in (1, 4):
            changed = bytes([*whole[:at], whole[at] ^ bit, *whole[at + 1 :]])
            marker.write_bytes(changed)
            # White space between the words may change without changing them.
            same = changed.isascii() and _is_same(changed, whole)
            newest = checkpoint.newest_valid(tmp_path)
            assert newest.name == checkpoint.folder_name(4 if same else 2), (at, changed)
    for text in ("{}", "[]", "null"):
        marker.write_text(text)
        assert checkpoint.newest_valid(tmp_path).name == checkpoint.folder_name(2)


def _is_same(changed, whole):
    try:
        return json.loads(changed) == json.loads(whole)
    except ValueError:
        return False


def test_rollback_ignores_checkpoints_saved_during_skipped_steps(tmp_path):
    _commit(tmp_path, 2)
    _commit(tmp_path, 4, in_a_row=1)
    assert checkpoint.newest_valid(tmp_path, good=True).name == checkpoint.folder_name(2)
    assert checkpoint.newest_valid(tmp_path).name == checkpoint.folder_name(4)


def test_checkpoints_after_the_resumed_step_are_deleted(tmp_path):
    for step in (2, 4, 6):
        _commit(tmp_path, step)
    checkpoint.begin_folder(tmp_path / checkpoint.folder_name(3))  # a save that is killed
    (tmp_path / "step-00000002.universal").mkdir()
    assert [p.name for p in checkpoint.later_than(tmp_path, 4)] == [checkpoint.folder_name(6)]
    checkpoint.clear_after(tmp_path, 4)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == [checkpoint.folder_name(s) for s in (2, 4)]


def test_a_missing_folder_has_no_checkpoint(tmp_path):
    assert checkpoint.newest_valid(tmp_path / "none") is None


def test_pruning_keeps_the_last_and_the_best(tmp_path):
    for step in range(1, 7):
        _commit(tmp_path, step)
    checkpoint.prune(tmp_path, keep_last=2, best_step=3)
    assert [p.name for p in checkpoint.committed(tmp_path)] == [checkpoint.folder_name(s) for s in (3, 5, 6)]
    assert len(list(tmp_path.glob("step-*"))) == 3


def _user_folders(root):
    """Folders that users keep beside checkpoints."""
    _commit(root, 40).rename(root / "step-00000040-good")
    _commit(root, 30).rename(root / "step-30.bak")
    (root / "step-mine").mkdir()
    (root / "step-mine/notes.txt").write_text("mine")
    (root / "best").mkdir()
    (root / "step-00000050").symlink_to(root / "step-mine")
    return sorted(p.name for p in root.iterdir() if p.is_dir())


def test_user_folders_beside_checkpoints_are_neither_read_nor_deleted(tmp_path):
    theirs = _user_folders(tmp_path)
    for step in (10, 20, 60):
        _commit(tmp_path, step)
    assert checkpoint.newest_valid(tmp_path).name == checkpoint.folder_name(60)
    checkpoint.clear_after(tmp_path, 20)
    checkpoint.prune(tmp_path, keep_last=1, best_step=None)
    checkpoint.clear_after(tmp_path, -1)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == theirs
    assert (tmp_path / "step-mine/notes.txt").read_text() == "mine"


def test_interrupted_saves_and_deletions_are_cleaned_up(tmp_path):
    checkpoint.begin_folder(tmp_path / checkpoint.folder_name(4))
    (tmp_path / checkpoint.folder_name(4) / "mp_rank_00_model_states.pt").write_bytes(b"half")
    deleted = _commit(tmp_path, 2)
    (deleted / checkpoint.MARKER).rename(deleted / "deleting")
    (deleted / "mp_rank_00_model_states.pt").write_bytes(b"x")
    assert checkpoint.unmarked(tmp_path) == []
    checkpoint.clear_after(tmp_path, 9)
    assert not list(tmp_path.glob("step-*"))


def test_complete_shards_without_a_marker_are_kept_and_logged(tmp_path, caplog):
    lost = _commit(tmp_path, 4)
    (lost / "mp_rank_00_model_states.pt").write_bytes(b"weights")
    (lost / checkpoint.MARKER).unlink()
    checkpoint.clear_after(tmp_path, -1)
    assert checkpoint.unmarked(tmp_path) == [lost]
    checkpoint.begin_folder(lost)
    assert (tmp_path / "step-00000004.aside-1/mp_rank_00_model_states.pt").read_bytes() == b"weights"
    assert "moved to step-00000004.aside-1" in caplog.text


def test_the_latest_file_names_the_newest_checkpoint(tmp_path):
    _commit(tmp_path, 2)
    _commit(tmp_path, 4)
    assert (tmp_path / "latest").read_text() == checkpoint.folder_name(4)
    assert "clsgen export" in (tmp_path / "README.txt").read_text()


def test_a_save_killed_after_publishing_its_marker_is_valid(tmp_path):
    folder = _commit(tmp_path, 4)
    (folder / "saving").touch()  # commit() publishes the marker first
    checkpoint.clear_after(tmp_path, 4)
    assert checkpoint.newest_valid(tmp_path) == folder


def test_a_canary_mismatch_on_one_rank_is_an_error(tmp_path):
    folder = tmp_path / checkpoint.folder_name(2)
    folder.mkdir()
    checkpoint.commit(folder, {"canary": {"token_losses": [2.0, 4.0]}})
    right, wrong = {"token_losses": [2.0, 4.0]}, {"token_losses": [2.0, 4.1]}
    assert checkpoint.require_same_canary(folder, [right, right], 1e-4) == (3.0, 3.0)
    with pytest.raises(CheckpointError, match=r"scores 3.050000 on rank 1 on the fixed text whose loss was 3.000000"):
        checkpoint.require_same_canary(folder, [right, wrong], 1e-4)


def test_disk_space_is_checked_for_all_checkpoints_kept_at_once(tmp_path):
    world = SimpleNamespace(is_main=True, size=2, broadcast=lambda value: value)
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    require_disk_space(tmp_path, world, free // 4, 3)
    with pytest.raises(
        CheckpointError, match=r"needs .* GB for 5 checkpoints, but it has .* lower checkpoint.keep_last"
    ):
        require_disk_space(tmp_path, world, free // 4, 5)
    (tmp_path / "frozen_states").mkdir()
    with pytest.raises(CheckpointError, match=r"/frozen_states is of train.cache_frozen: off does without it"):
        require_disk_space(tmp_path / "checkpoints", world, free // 4, 5)


def test_overwriting_a_run_deletes_the_states_it_kept(tmp_path):
    world = SimpleNamespace(is_main=True, size=1, broadcast=lambda value: value)
    (tmp_path / "frozen_states").mkdir()
    (tmp_path / "frozen_states/states.bin").write_bytes(b"1")
    for overwrite in (False, True):
        prepare_run_dir(tmp_path, world, resume="never", overwrite=overwrite, settings_yaml="")
        assert (tmp_path / "frozen_states/states.bin").exists() != overwrite


@pytest.mark.parametrize(
    ("every", "eval_every", "keep_last", "existing", "expected"),
    [
        (10, None, 2, 0, 3),
        (10, 20, 2, 0, 4),
        (None, None, 2, 0, 1),
        (60, None, 5, 0, 2),
        (60, None, 5, 3, 2),
        (10, None, 2, 2, 1),
        (10, None, 2, 9, 1),
    ],
)
def test_number_of_additional_checkpoints_on_disk(every, eval_every, keep_last, existing, expected):
    assert checkpoints_still_to_store(100, every, eval_every, keep_last=keep_last, existing=existing) == expected
