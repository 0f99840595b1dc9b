"""General texts that are replayed beside the rows: which ones at which step is a function of seed and step alone.

Cost: as :mod:`clsgen_dist.data.tables.dataset`.
"""

from __future__ import annotations

import numpy as np

from clsgen_dist.data.encode import Ids
from clsgen_dist.data.tables.table import RowTable
from clsgen_dist.errors import DataError

_DOMAIN = 0x4E91


class ReplayTexts:
    """The first tokens of each text of a table, without prompt; texts of one token are left out.

    Args:
        table: the texts.
        max_length: tokens of a text that are used at most.
        per_step: texts of an optimizer step, over all ranks.
        seed: of their order.

    Raises:
        DataError: no text has two tokens.
    """

    def __init__(self, table: RowTable, *, max_length: int, per_step: int, seed: int) -> None:
        self.table, self.max_length, self.per_step, self.seed = table, max_length, per_step, seed
        self._usable = np.flatnonzero(np.asarray(table.text_length_N) >= 2)
        if not len(self._usable):
            raise DataError(
                f"{table.card.source}: no text has two tokens or more, expected general texts in data.replay"
            )

    def __len__(self) -> int:
        return len(self._usable)

    def tokens(self, text: int) -> Ids:
        """Tokens of a text, by its number among the usable ones."""
        return self.table.text_ids(int(self._usable[text]))[: self.max_length]

    def lengths(self, text_p: np.ndarray) -> np.ndarray:
        """``[p]`` tokens of these texts."""
        return np.minimum(self.table.text_length_N[self._usable[text_p]], self.max_length).astype(np.int64)

    def at(self, step: int) -> np.ndarray:
        """``[per_step]`` the texts of a step: all in turn, shuffled anew each time round."""
        round_p, place_p = np.divmod(np.arange(step * self.per_step, (step + 1) * self.per_step), len(self))
        orders = {
            n: np.random.default_rng([_DOMAIN, self.seed, n]).permutation(len(self)) for n in set(round_p.tolist())
        }
        return np.array([orders[n][place] for n, place in zip(round_p.tolist(), place_p, strict=True)], dtype=np.int64)

    def longest(self) -> int:
        """Tokens of the longest text, as far as it is used."""
        return int(self.lengths(np.arange(len(self))).max())

    @property
    def fingerprint(self) -> str:
        """Identifies these texts and how many of them a step has."""
        return f"{self.table.card.sha256}/{self.max_length}/{self.per_step}"
