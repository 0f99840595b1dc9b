"""The rows of a vocabulary, divided over the ranks of a process group, and the collectives that need them.

Every rank calls each collective equally often; how many rows it sends may differ, and may be none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """The processes of a group (None: all of them)."""

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.rank: int = dist.get_rank(group)
        self.size: int = dist.get_world_size(group)

    def counts(self, *counts: int, device: torch.device) -> list[list[int]]:
        """Every rank's numbers: one list for each argument, in rank order. The host waits for them."""
        mine = torch.tensor(counts, device=device)
        every = torch.empty(self.size, len(counts), dtype=mine.dtype, device=device)
        dist.all_gather_into_tensor(every, mine[None], group=self.group)
        return every.T.tolist()  # type: ignore[no-any-return]

    def all_gather(self, rows: Tensor, counts: list[int]) -> Tensor:
        """All ranks' rows ``[sum(counts), ...]`` in rank order; ``counts``: each rank's number of rows."""
        most = max(counts)
        gathered = rows.new_empty(len(counts) * most, *rows.shape[1:])
        if min(counts) == most:
            dist.all_gather_into_tensor(gathered, rows.contiguous(), group=self.group)
            return gathered
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: rows.shape[0]] = rows
        dist.all_gather_into_tensor(gathered, padded, group=self.group)
        kept = gathered.view(len(counts), most, *rows.shape[1:])
        return torch.cat([part[:count] for part, count in zip(kept, counts, strict=True)])

    def reduce_scatter(self, rows: Tensor, counts: list[int]) -> Tensor:
        """Sums over ranks of their ``rows`` ``[sum(counts), D]``, of which this rank gets its own ``counts[rank]``."""
        most = max(counts)
        if min(counts) < most:
            padded = rows.new_zeros(len(counts), most, rows.shape[1])
            for into, part in zip(padded, rows.split(counts), strict=True):
                into[: part.shape[0]] = part
            rows = padded.view(-1, rows.shape[1])
        mine = rows.new_empty(most, rows.shape[1])
        dist.reduce_scatter_tensor(mine, rows.contiguous(), group=self.group)
        return mine[: counts[self.rank]]

    def maxima(self, values: Tensor) -> Tensor:
        """``values``, each replaced by its maximum over the ranks."""
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values

    def sums(self, values: Tensor) -> Tensor:
        """``values``, each replaced by its sum over the ranks."""
        dist.all_reduce(values, group=self.group)
        return values

    def route(self, owner_N: Tensor) -> tuple[Tensor, list[int], list[int]]:
        """How to ask each token's owner.

        Returns:
            ``[N]`` the tokens' order by owner; how many of them each rank owns; how many each rank asks this one for.
        """
        asked = [int(count) for count in torch.bincount(owner_N, minlength=self.size).tolist()]
        answered = self.counts(*asked, device=owner_N.device)[self.rank]
        return owner_N.argsort(stable=True), asked, answered

    def exchange(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Rows for this rank ``[sum(received), ...]``; it sends ``sent[r]`` of its own, in rank order, to rank r."""
        arrived = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(arrived, rows.contiguous(), received, sent, group=self.group)
        return arrived


@dataclass(frozen=True)
class VocabShards:
    """Which rank holds which rows of the vocabulary: rank r those from ``starts[r]`` to ``starts[r + 1]``."""

    ranks: Ranks
    starts: tuple[int, ...]
    """First row of each rank, and the number of all rows."""

    def __post_init__(self) -> None:
        held = [end - start for start, end in zip(self.starts, self.starts[1:], strict=False)]
        if len(held) != self.ranks.size or min(held) < 1:
            raise ValueError(
                f"{self.ranks.size} ranks hold {held} vocabulary rows, expected at least one each; use fewer ranks"
            )

    @classmethod
    def of(cls, rows: Tensor, group: Any = None) -> VocabShards:
        """From the rows that each rank of the group holds; collective."""
        ranks = Ranks(group)
        (held,) = ranks.counts(rows.shape[0], device=rows.device)
        starts = [0]
        for count in held:
            starts.append(starts[-1] + count)
        return cls(ranks, tuple(starts))

    @property
    def first_row(self) -> int:
        """This rank's first row."""
        return self.starts[self.ranks.rank]

    @property
    def held(self) -> int:
        """Number of this rank's rows."""
        return self.starts[self.ranks.rank + 1] - self.first_row

    @property
    def vocabulary(self) -> int:
        """Number of all rows."""
        return self.starts[-1]

    @cached_property
    def _boundaries(self) -> Tensor:
        return torch.tensor(self.starts[1:-1])

    def owners(self, token_N: Tensor) -> Tensor:
        """``[N]`` the rank that holds each token's row."""
        return torch.bucketize(token_N, self._boundaries.to(token_N.device), right=True)
