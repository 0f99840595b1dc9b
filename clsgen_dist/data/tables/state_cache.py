"""Bytes per sequence in one memory-mapped file: what frozen layers computed, kept for the epochs to come.

    frozen_states/states.bin    the entries, end to end, at offsets that every rank knows from their sizes
                  checks.bin    of each entry the CRC-32 of its bytes, written after them; 0: not there yet
                  cache.json    of which run's sequences this is: the key, the number of entries, their bytes

Any rank writes any entry, and reads any. Whatever the order in which a machine that dies has written its pages: an
entry counts only if its bytes have the sum that is kept of them. Files of another key are deleted. The folder may be a
link to a folder elsewhere; what else is in there stays.

Cost: the entries' bytes on the disk, reserved at once; 4 bytes an entry beside them; a read is a copy and a CRC.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from clsgen_dist.io.files import atomic_write

# E entries

FOLDER = "frozen_states"
"""Of a run, in its output_dir."""
_FORMAT = 1
_FILES = ("states.bin", "checks.bin", "cache.json")


class StateCache:
    """Entries of known sizes, read and written by number.

    Args:
        folder: made by :meth:`create`, of the same sizes.
        bytes_E: size of each entry, above 0.
    """

    def __init__(self, folder: Path, bytes_E: np.ndarray) -> None:
        self.folder = folder
        self._start_E1 = np.concatenate([[0], np.cumsum(bytes_E, dtype=np.int64)])
        self._open()

    def _open(self) -> None:
        self._states = np.memmap(self.folder / "states.bin", dtype=np.uint8, mode="r+", shape=(self.size,))
        shape = (len(self._start_E1) - 1,)
        self._checks = np.memmap(self.folder / "checks.bin", dtype=np.uint32, mode="r+", shape=shape)

    @staticmethod
    def create(folder: Path, key: str, bytes_E: np.ndarray, *, reserve: int = 0) -> bool:
        """Make the files, on one rank, unless those of this key are there; others are deleted.

        Args:
            folder: of the files; made if need be.
            key: of what the entries depend on.
            bytes_E: size of each entry, above 0.
            reserve: bytes that must stay free beside the files, unless the folder is a link to another disk.

        Returns:
            Whether files of another run or of an earlier state of this one were deleted.

        Raises:
            OSError: no room on the disk, no permission, or a file in the folder's place.
        """
        total = int(bytes_E.sum())
        card = {"format": _FORMAT, "key": key, "entries": len(bytes_E), "bytes": total}
        if _fits(folder, card):
            _require_room(folder, 0, reserve)
            return False
        stale = any((folder / name).exists() for name in _FILES)
        StateCache.delete(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _require_room(folder, total + 4 * len(bytes_E), reserve)
            for name, size in (("states.bin", total), ("checks.bin", 4 * len(bytes_E))):
                with (folder / name).open("wb") as file:
                    # Reserved, not only named: a page without a place on the disk would kill whoever writes it.
                    os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            StateCache.delete(folder)
            raise
        atomic_write(folder / "cache.json", json.dumps(card), durable=True)
        return stale

    @staticmethod
    def delete(folder: Path) -> None:
        """Delete the files, on one rank, and the folder unless it is a link or holds something else.

        Raises:
            OSError: no permission, or a file in the folder's place.
        """
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
        for unfinished in folder.glob(".cache.json.*.tmp"):
            unfinished.unlink(missing_ok=True)
        if not folder.is_symlink():
            with contextlib.suppress(OSError):
                folder.rmdir()

    @property
    def size(self) -> int:
        """Bytes of all entries."""
        return int(self._start_E1[-1])

    def missing(self, first: int = 0, every: int = 1) -> np.ndarray:
        """The entries that are not there, or not whole, ascending; of each of the others, all bytes are read.

        Args:
            first, every: look at the entries ``first``, ``first + every``, and so on.
        """
        looked_at = range(first, len(self._checks), every)
        return np.array([e for e in looked_at if self._checks[e] == 0 or self.read(e) is None], dtype=np.int64)

    def write(self, entry: int, content: np.ndarray) -> None:
        """Keep an entry's bytes, uint8; ValueError if they are not as many as was said."""
        start, stop = self._start_E1[entry : entry + 2]
        if len(content) != stop - start:
            raise ValueError(f"entry {entry} has {len(content)} bytes, expected {stop - start}")
        self._states[start:stop] = content
        self._checks[entry] = _check(content)

    def read(self, entry: int) -> np.ndarray | None:
        """An entry's bytes, uint8; None if it is not there, or not whole."""
        content = self._states[slice(*self._start_E1[entry : entry + 2])]
        return content if self._checks[entry] == _check(content) else None

    def read_all(self, entries: Iterable[int]) -> np.ndarray | None:
        """The bytes of these entries end to end, a copy; None if one is not there, or not whole."""
        found = [self.read(entry) for entry in entries]
        whole = [content for content in found if content is not None]
        return np.concatenate([np.zeros(0, dtype=np.uint8), *whole]) if len(whole) == len(found) else None

    def flush(self) -> None:
        """Write what this process has changed to the disk."""
        self._states.flush()
        self._checks.flush()

    def reopen(self) -> None:
        """See what others have written since, on a network's file system too."""
        self._open()


def _check(content: np.ndarray) -> int:
    return zlib.crc32(content.data) or 1


def _require_room(folder: Path, needed: int, reserve: int) -> None:
    """OSError unless the folder's disk has room for what is needed, and for the reserve if it is its parent's too."""
    if folder.stat().st_dev == folder.parent.stat().st_dev:
        needed += reserve
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < needed:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {free / 1e9:.3g} GB are free")


def _fits(folder: Path, card: dict[str, object]) -> bool:
    """Whether the folder holds files of this card."""
    try:
        sizes = [(folder / name).stat().st_size for name in ("states.bin", "checks.bin")]
        return bool(json.loads((folder / "cache.json").read_text()) == card) and sizes == [
            card["bytes"],
            4 * int(str(card["entries"])),
        ]
    except (OSError, ValueError):
        return False
