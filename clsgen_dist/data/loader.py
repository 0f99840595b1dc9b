"""The stream of a run: which rows an optimizer step sees, packed and shared out, ready before it is asked for.

Step k of a stage takes the positions ``[k·B, (k+1)·B)`` of the stage's order
(:mod:`clsgen_dist.data.curriculum.order`). World size and token budget only say who computes which of them, so the
state to resume is the step number. Every rank runs the same number of micro-steps; one that has no row for a micro-step
runs a stand-in of weight zero, since ZeRO-3's gathers are collectives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from clsgen_dist.data.curriculum.stages import PlannedStage, RunOrder
from clsgen_dist.data.pack import Batch, Bins, PackingStats, collate, dummy_batch, pack, packing_stats
from clsgen_dist.data.tables.dataset import RowDataset
from clsgen_dist.data.tables.shards import ShardedOrder, ShardedRows

# N rows, B rows of an optimizer step

_AHEAD = 3
"""Optimizer steps that are made ready in advance."""


@dataclass(frozen=True)
class Step:
    """One rank's part of an optimizer step."""

    batches: list[Batch]
    """One per micro-step, equally many on every rank."""
    ids: list[str]
    """Ids of the rows of all ranks, in their order."""
    stage: PlannedStage
    difficulty: float
    """Mean difficulty quantile of the rows shown, over all ranks."""
    packing: PackingStats
    """How well the tokens are spread over ranks."""


class TrainStream:
    """The batches of a run, by optimizer step.

    Args:
        rows: the training rows.
        order: which row stands at which position; its stages are the run's.
        batch_size: rows of an optimizer step over all ranks.
        micro_batch_tokens: token budget of a micro-batch on one rank.
        rank, world_size: this rank's share.
    """

    def __init__(
        self,
        rows: RowDataset | ShardedRows,
        order: RunOrder | ShardedOrder,
        *,
        batch_size: int,
        micro_batch_tokens: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.rows, self.order, self.stages = rows, order, order.stages
        self.batch_size, self.micro_batch_tokens = batch_size, micro_batch_tokens
        self.rank, self.world_size = rank, world_size
        self.padded = False
        """Whether the backbone sees rows padded, which then must fit the token budget with their padding."""
        self.steps = self.stages[-1].first_step + self.stages[-1].steps

    def stage_of(self, step: int) -> PlannedStage:
        """The stage in which an optimizer step (from 0) lies."""
        return next(stage for stage in reversed(self.stages) if stage.first_step <= step)

    def chosen(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``[B]`` of a step in their order, and which showing of the run each is; the same on every rank."""
        stage = self.stage_of(step)
        start = (step - stage.first_step) * self.batch_size
        return self.order.at(stage, start, min(start + self.batch_size, stage.positions))

    def bins(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, Bins]:
        """Rows, visit_counts and lengths ``[B]`` of a step, and how they are packed; the same on every rank."""
        stage = self.stage_of(step).stage
        row_B, showing_B = self.chosen(step)
        length_B = self.rows.lengths(row_B, showing_B, stage.max_prompt_length)
        budget = stage.micro_batch_tokens or self.micro_batch_tokens
        return row_B, showing_B, length_B, pack(length_B, budget=budget, ranks=self.world_size, padded=self.padded)

    def step(self, step: int) -> Step:
        """This rank's micro-batches of an optimizer step."""
        stage = self.stage_of(step)
        row_B, showing_B, length_B, bins = self.bins(step)
        batches = []
        for ranks in bins:
            samples = [
                self.rows.sample(int(row_B[at]), int(showing_B[at]), stage.stage.max_prompt_length)
                for at in ranks[self.rank]
            ]
            batches.append(collate(samples) if samples else dummy_batch(self.rows.encoder.end_token))
        ids = [self.rows.id(int(row)) for row in row_B]
        return Step(batches, ids, stage, self.order.difficulty(row_B), packing_stats(bins, length_B))


def prefetch(make: Callable[[int], Step], first: int, last: int) -> Iterator[tuple[Step, float]]:
    """``make(first) … make(last - 1)``, made by a thread in advance, each with the seconds it was waited for."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1, thread_name_prefix="clsgen-data") as thread:
        waiting = [thread.submit(make, step) for step in range(first, min(first + _AHEAD, last))]
        try:
            for step in range(first, last):
                start = time.perf_counter()
                made = waiting.pop(0).result()
                waited = time.perf_counter() - start
                if step + _AHEAD < last:
                    waiting.append(thread.submit(make, step + _AHEAD))
                yield made, waited
        finally:
            thread.shutdown(wait=True, cancel_futures=True)


def evaluation_batches(
    rows: RowDataset, *, rank: int, world_size: int, budget: int, padded: bool = False
) -> Iterator[tuple[np.ndarray, Batch]]:
    """This rank's share of the rows with their numbers; equally many batches on every rank.

    Each row comes with its first explanation. ``budget`` is the tokens of a batch; rows are packed a block at a time.
    """
    block = 4096
    for start in range(0, len(rows), block):
        row_B = np.arange(start, min(start + block, len(rows)))
        showing_B = rows.first_visit(row_B)
        for ranks in pack(rows.lengths(row_B, showing_B), budget=budget, ranks=world_size, padded=padded):
            mine = ranks[rank]
            samples = [rows.sample(int(row_B[at]), int(showing_B[at])) for at in mine]
            yield row_B[mine], collate(samples) if samples else dummy_batch(rows.encoder.end_token)
