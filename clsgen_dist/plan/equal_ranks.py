"""Ranks that all do what this one does: where a plan or a dry run has a single process, and no data.

How many tokens the other ranks have, and which of them hold the rows of a token, is data. Here each has as many as this
one, and the tokens' rows are spread evenly.
"""

from __future__ import annotations

import torch
from clsgen_kernels import Ranks
from torch import Tensor

from clsgen_dist.plan.meta_trace import HeadMove


class EqualRanks(Ranks):
    """Takes the other ranks' counts for its own; sends and receives as usual."""

    def counts(self, *counts: int, device: torch.device) -> list[list[int]]:
        """Every rank's numbers, as of :meth:`Ranks.counts`; the collective runs."""
        mine = torch.empty(len(counts), dtype=torch.int64, device=device)
        self.all_gather(mine[None], [1] * self.size)
        return [[count] * self.size for count in counts]

    def route(self, owner_N: Tensor) -> tuple[Tensor, list[int], list[int]]:
        """As of :meth:`Ranks.route`, with as many tokens to each rank."""
        asked = [len(part) for part in torch.arange(len(owner_N)).tensor_split(self.size)]
        self.counts(*asked, device=owner_N.device)
        return owner_N.argsort(stable=True), asked, asked


class MetaRanks(EqualRanks):
    """So many ranks for tensors on the meta device: nothing is sent, and what would have been is added up."""

    def __init__(self, size: int) -> None:
        self.rank, self.size = 0, size
        self.moves: dict[str, HeadMove] = {}
        """By collective: ``all_gather``, ``reduce_scatter``, ``all_reduce``, ``exchange``."""

    def _record(self, name: str, whole: Tensor) -> Tensor:
        before = self.moves.get(name, HeadMove(0, 0))
        self.moves[name] = HeadMove(before.whole_bytes + whole.numel() * whole.element_size(), before.calls + 1)
        return whole

    def all_gather(self, rows: Tensor, counts: list[int]) -> Tensor:  # noqa: D102
        return self._record("all_gather", rows.new_empty(sum(counts), *rows.shape[1:]))

    def reduce_scatter(self, rows: Tensor, counts: list[int]) -> Tensor:  # noqa: D102
        self._record("reduce_scatter", rows)
        return rows.new_empty(counts[self.rank], rows.shape[1])

    def maxima(self, values: Tensor) -> Tensor:  # noqa: D102
        return self._record("all_reduce", values)

    def sums(self, values: Tensor) -> Tensor:  # noqa: D102
        return self._record("all_reduce", values)

    def exchange(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:  # noqa: D102
        self._record("exchange", rows)
        return rows.new_empty(sum(received), *rows.shape[1:])
