"""Bytes per sequence on the disk: whole or not there, whatever was killed, and never another run's."""

from __future__ import annotations

import json

import numpy as np
import pytest

from clsgen_dist.data.tables.state_cache import StateCache

BYTES_E = np.array([40, 7, 300, 1])


def _content(entry, salt=0):
    return np.random.default_rng([entry, salt]).integers(0, 256, BYTES_E[entry], dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    assert StateCache.create(tmp_path / "states", "key", BYTES_E) is False
    return tmp_path / "states"


def test_what_one_process_writes_another_reads(folder):
    ours, theirs = StateCache(folder, BYTES_E), StateCache(folder, BYTES_E)
    assert theirs.missing().tolist() == [0, 1, 2, 3] and theirs.read(0) is None
    ours.write(2, _content(2))
    ours.write(3, _content(3))
    assert theirs.missing().tolist() == [0, 1]
    assert np.array_equal(theirs.read_all([3, 2]), np.concatenate([_content(3), _content(2)]))
    assert theirs.read_all([2, 0]) is None and theirs.read_all([]).size == 0
    assert theirs.size == 348


def test_an_entry_counts_only_if_its_bytes_have_their_sum(folder):
    cache = StateCache(folder, BYTES_E)
    for entry in range(4):
        cache.write(entry, _content(entry))
    cache.flush()
    with (folder / "states.bin").open("r+b") as file:  # pages that did not reach the disk
        file.seek(60)
        file.write(bytes(200))
    again = StateCache(folder, BYTES_E)
    assert again.read(2) is None and again.missing().tolist() == [2]
    again.write(2, _content(2))
    assert not len(again.missing())


def test_a_damaged_entry_of_a_whole_cache_is_missing_and_ranks_look_at_their_shares(folder):
    cache = StateCache(folder, BYTES_E)
    for entry in range(4):
        cache.write(entry, _content(entry))
    cache.flush()
    (folder / "complete").touch()  # as an earlier version wrote it
    with (folder / "states.bin").open("r+b") as file:
        file.seek(41)
        file.write(b"\xff\x00")
    again = StateCache(folder, BYTES_E)
    assert again.missing().tolist() == [1]
    assert again.missing(0, 2).tolist() == [] and again.missing(1, 2).tolist() == [1]
    with (folder / "states.bin").open("r+b") as file:
        file.seek(41)
        file.write(_content(1)[1:3].tobytes())
    again.reopen()
    assert not len(again.missing())


def test_two_writers_at_once_leave_nothing_that_is_mixed(folder):
    one, other = StateCache(folder, BYTES_E), StateCache(folder, BYTES_E)
    one.write(2, _content(2))
    half = np.concatenate([_content(2)[:150], _content(2, salt=1)[150:]])
    other._states[47:347] = half  # between the bytes and the sum of the other
    assert one.read(2) is None
    other.write(2, _content(2, salt=1))
    assert np.array_equal(one.read(2), _content(2, salt=1))


def test_bytes_that_do_not_fit_are_refused(folder):
    with pytest.raises(ValueError, match="entry 1 has 8 bytes, expected 7"):
        StateCache(folder, BYTES_E).write(1, np.zeros(8, dtype=np.uint8))


@pytest.mark.parametrize("change", ["key", "sizes", "cut", "card", "format"])
def test_files_of_another_run_are_deleted(folder, change):
    cache = StateCache(folder, BYTES_E)
    for entry in range(4):
        cache.write(entry, _content(entry))
    assert StateCache.create(folder, "key", BYTES_E) is False and not len(StateCache(folder, BYTES_E).missing())
    key, sizes = "key", BYTES_E
    if change == "key":
        key = "other"
    elif change == "sizes":
        sizes = BYTES_E + 1
    elif change == "cut":
        (folder / "states.bin").write_bytes(b"")
    elif change == "card":
        (folder / "cache.json").write_text("{")
    else:
        (folder / "cache.json").write_text(json.dumps({**json.loads((folder / "cache.json").read_text()), "format": 0}))
    assert StateCache.create(folder, key, sizes) is True
    assert StateCache(folder, sizes).missing().tolist() == [0, 1, 2, 3]


def test_a_full_disk_is_found_before_anything_is_computed(small_disk):
    with pytest.raises(OSError, match="No space left"):
        StateCache.create(small_disk / "states", "key", np.array([200_000, 200_000]))
    assert not (small_disk / "states").exists()


def test_room_for_what_comes_later_is_asked_for_before_anything_is_made(small_disk, tmp_path):
    sizes = np.array([100_000])
    with pytest.raises(OSError, match=r"No space left on device: 0.000\d+ GB are free"):
        StateCache.create(small_disk / "states", "key", sizes, reserve=250_000)
    assert not (small_disk / "states").exists()
    assert StateCache.create(small_disk / "states", "key", sizes, reserve=100_000) is False
    assert StateCache.create(small_disk / "states", "key", sizes, reserve=100_000) is False  # nothing more to write
    with pytest.raises(OSError, match="No space left"):
        StateCache.create(small_disk / "states", "key", sizes, reserve=250_000)


def test_a_link_is_followed_and_what_else_lies_there_stays(tmp_path):
    elsewhere = tmp_path / "scratch"
    elsewhere.mkdir()
    (elsewhere / "precious.txt").write_text("mine")
    link = tmp_path / "states"
    link.symlink_to(elsewhere)
    assert StateCache.create(link, "key", BYTES_E) is False
    assert StateCache.create(link, "other", BYTES_E) is True
    assert (elsewhere / "states.bin").stat().st_size == 348 and link.is_symlink()
    StateCache.delete(link)
    assert [path.name for path in elsewhere.iterdir()] == ["precious.txt"] and link.is_symlink()


def test_on_another_disk_only_the_files_need_room(small_disk, tmp_path):
    (tmp_path / "states").symlink_to(small_disk)
    with pytest.raises(OSError, match="No space left"):
        StateCache.create(tmp_path / "states", "key", np.array([400_000]))
    assert StateCache.create(tmp_path / "states", "key", np.array([100_000]), reserve=10**15) is False


def test_a_file_in_the_folders_place_is_not_a_full_disk(tmp_path):
    (tmp_path / "states").write_text("mine")
    with pytest.raises(NotADirectoryError):
        StateCache.create(tmp_path / "states", "key", BYTES_E)
    assert (tmp_path / "states").read_text() == "mine"
