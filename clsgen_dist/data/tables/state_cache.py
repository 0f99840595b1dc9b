"""Bytes per sequence in one memory-mapped file: what frozen layers computed, kept for the epochs to come.

    frozen_states/states.bin    the entries, end to end, at offsets that every rank knows from their sizes
                  checks.bin    of each entry the CRC-32 of its bytes, written after them; 0: not there yet
                  cache.json    of which run's sequences this is: the key, the number of entries, their bytes
                  complete      written when all entries have reached the disk

Any rank writes any entry, and reads any. Whatever the order in which a machine that dies has written its pages: an
entry counts only if its bytes have the sum that is kept of them. Files of another key are deleted.

Cost: the entries' bytes on the disk, reserved at once; 4 bytes an entry beside them; a read is a copy and a CRC.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from clsgen_dist.io.files import atomic_write

# E entries

_FORMAT = 1


class StateCache:
    """Entries of known sizes, read and written by number.

    Args:
        folder: made by :meth:`create`, of the same sizes.
        bytes_E: size of each entry, above 0.
    """

    def __init__(self, folder: Path, bytes_E: np.ndarray) -> None:
        self.folder = folder
        self._start_E1 = np.concatenate([[0], np.cumsum(bytes_E, dtype=np.int64)])
        self._states = np.memmap(folder / "states.bin", dtype=np.uint8, mode="r+", shape=(int(self._start_E1[-1]),))
        self._checks = np.memmap(folder / "checks.bin", dtype=np.uint32, mode="r+", shape=(len(bytes_E),))

    @staticmethod
    def create(folder: Path, key: str, bytes_E: np.ndarray) -> bool:
        """Make the files, on one rank, unless those of this key are there; others are deleted.

        Returns:
            Whether files of another run or of an earlier state of this one were deleted.

        Raises:
            OSError: no room on the disk, or no permission.
        """
        total = int(bytes_E.sum())
        card = {"format": _FORMAT, "key": key, "entries": len(bytes_E), "bytes": total}
        if _fits(folder, card):
            return False
        stale = folder.exists()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            for name, size in (("states.bin", total), ("checks.bin", 4 * len(bytes_E))):
                with (folder / name).open("wb") as file:
                    # Reserved, not only named: a page without a place on the disk would kill whoever writes it.
                    os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        atomic_write(folder / "cache.json", json.dumps(card), durable=True)
        return stale

    @property
    def size(self) -> int:
        """Bytes of all entries."""
        return int(self._start_E1[-1])

    @property
    def is_complete(self) -> bool:
        """Whether all entries were written and have reached the disk."""
        return (self.folder / "complete").exists()

    def missing(self) -> np.ndarray:
        """The entries that are not there, ascending; unless all are known to be, each one's bytes are read."""
        absent_E = self._checks == 0
        if self.is_complete:
            return np.flatnonzero(absent_E)
        return np.array([e for e in range(len(absent_E)) if absent_E[e] or self.read(e) is None], dtype=np.int64)

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

    def mark_complete(self) -> None:
        """On one rank, after every rank's :meth:`flush`."""
        atomic_write(self.folder / "complete", "", durable=True)


def _check(content: np.ndarray) -> int:
    return zlib.crc32(content.data) or 1


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
