"""The stream of a run: the rows of each optimizer step, packed, split over ranks, and prefetched.

Step k of a stage takes the positions ``[k·B, (k+1)·B)`` of the stage's order
(:mod:`clsgen_dist.data.curriculum.order`). World size and token budget decide only which rank computes which of them,
so the state to resume is the step number. Every rank runs the same number of micro-steps; a rank without rows for a
micro-step runs a dummy batch of weight zero, since ZeRO-3's gathers are collectives.

Cost: milliseconds per step, in a thread, before the step is needed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from clsgen_dist.data.curriculum.stages import PlannedStage, RunOrder
from clsgen_dist.data.pack import Batch, Bins, PackingStats, collate, dummy_batch, pack, pack_groups, packing_stats
from clsgen_dist.data.tables.dataset import RowDataset
from clsgen_dist.data.tables.replay import ReplayTexts
from clsgen_dist.data.tables.shards import ShardedOrder, ShardedRows

# N rows, B rows of an optimizer step

_PREFETCHED_STEPS = 3
"""Optimizer steps that are prepared in advance."""


@dataclass(frozen=True)
class Step:
    """One rank's part of an optimizer step."""

    batches: list[Batch]
    """One per micro-step; the same number on every rank."""
    ids: list[str]
    """Ids of the rows of all ranks, in order."""
    stage: PlannedStage
    difficulty: float
    """Mean difficulty quantile of the step's rows, over all ranks."""
    packing: PackingStats
    """How well the tokens are spread over ranks."""
    known: list[Any] | None = None
    """Of each batch what frozen layers gave, a :class:`clsgen_dist.model.frozen_layers.KnownStates`; None: not kept, or
    not whole."""

    def scalars(self, *, staged: bool) -> dict[str, float]:
        """What TensorBoard shows of it; ``staged``: the run has a curriculum."""
        return {
            "curriculum/stage": float(self.stage.index) if staged else math.nan,
            "curriculum/difficulty": self.difficulty if staged else math.nan,
            "packing/efficiency": self.packing.efficiency,
            "packing/rank_imbalance": self.packing.imbalance,
            "packing/micro_steps": float(self.packing.micro_steps),
        }


class TrainStream:
    """The batches of a run, by optimizer step.

    Args:
        rows: the training rows.
        order: the row at each position; its stages are the run's.
        batch_size: rows of an optimizer step over all ranks.
        micro_batch_tokens: token budget of a micro-batch on one rank.
        group: consecutive rows of a step that are packed together.
        replay: general texts beside the rows.
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
        group: int = 1,
        replay: ReplayTexts | None = None,
    ) -> None:
        self.rows, self.order, self.stages = rows, order, order.stages
        self.batch_size, self.micro_batch_tokens = batch_size, micro_batch_tokens
        self.rank, self.world_size, self.group, self.replay = rank, world_size, group, replay
        self.padded = False
        """Whether the backbone pads rows; the token budget then includes the padding."""
        self.known_of: Callable[[np.ndarray, np.ndarray, int | None], Any] | None = None
        """What frozen layers gave for rows ``[p]`` at visits ``[p]``, with prompts of at most so many tokens; None: not
        whole. :mod:`clsgen_dist.training.frozen_cache` sets it."""
        self.steps = self.stages[-1].end

    def stage_of(self, step: int) -> PlannedStage:
        """The stage of an optimizer step (from 0)."""
        return next(stage for stage in reversed(self.stages) if stage.first_step <= step)

    def chosen(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``[B]`` of a step in order, and how often the run visited each before; the same on every rank."""
        stage = self.stage_of(step)
        start = (step - stage.first_step) * self.batch_size
        return self.order.at(stage, start, min(start + self.batch_size, stage.positions))

    def bins(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, Bins]:
        """Rows and visits ``[B]`` of a step, lengths, and how they are packed; the same on every rank.

        Lengths and packing have the replayed texts after the rows.
        """
        stage = self.stage_of(step).stage
        row_B, visit_B = self.chosen(step)
        length_B = self.rows.lengths(row_B, visit_B, stage.max_prompt_length)
        text_p = self.replayed(step)
        if self.replay is not None:
            length_B = np.concatenate([length_B, self.replay.lengths(text_p)])
        budget = stage.token_budget(self.micro_batch_tokens)
        packed = pack_groups(
            length_B,
            group=self.group,
            budget=budget,
            ranks=self.world_size,
            padded=self.padded,
            alone=len(text_p),
        )
        return row_B, visit_B, length_B, packed

    def replayed(self, step: int) -> np.ndarray:
        """The general texts of a step, the same on every rank."""
        return np.zeros(0, dtype=np.int64) if self.replay is None else self.replay.at(step)

    def step(self, step: int) -> Step:
        """This rank's micro-batches of an optimizer step."""
        stage = self.stage_of(step)
        row_B, visit_B, length_B, bins = self.bins(step)
        batches, known, text_p = [], [], self.replayed(step)
        for ranks in bins:
            mine = ranks[self.rank]
            at_B = mine[mine < len(row_B)]
            samples = [self.rows.sample(int(row_B[at]), int(visit_B[at]), stage.stage.max_prompt_length) for at in at_B]
            texts = (
                [self.replay.tokens(int(text_p[at - len(row_B)])) for at in mine[len(at_B) :]] if self.replay else []
            )
            if samples or texts:
                batches.append(collate(samples, at_B // self.group, texts))
            else:
                batches.append(dummy_batch(self.rows.encoder.end_token))
            if self.known_of is not None:
                known.append(self.known_of(row_B[at_B], visit_B[at_B], stage.stage.max_prompt_length))
        ids = [self.rows.id(int(row)) for row in row_B]
        whole = known if known and all(part is not None for part in known) else None
        return Step(batches, ids, stage, self.order.difficulty(row_B), packing_stats(bins, length_B), whole)


def prefetch(make: Callable[[int], Step], first: int, last: int) -> Iterator[tuple[Step, float]]:
    """``make(first) … make(last - 1)``, computed in advance by a thread; each with the seconds spent waiting for it."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1, thread_name_prefix="clsgen-data") as thread:
        waiting = [thread.submit(make, step) for step in range(first, min(first + _PREFETCHED_STEPS, last))]
        try:
            for step in range(first, last):
                start = time.perf_counter()
                ready = waiting.pop(0).result()
                waited = time.perf_counter() - start
                if step + _PREFETCHED_STEPS < last:
                    waiting.append(thread.submit(make, step + _PREFETCHED_STEPS))
                yield ready, waited
        finally:
            thread.shutdown(wait=True, cancel_futures=True)


def evaluation_batches(
    rows: RowDataset, *, rank: int, world_size: int, budget: int, padded: bool = False
) -> Iterator[tuple[np.ndarray, Batch]]:
    """This rank's share of the rows with their numbers; the same number of batches on every rank.

    Each row has its first explanation. ``budget`` is the tokens of a batch; rows are packed in blocks of 4,096.
    """
    block = 4096
    for start in range(0, len(rows), block):
        row_B = np.arange(start, min(start + block, len(rows)))
        visit_B = rows.first_visit(row_B)
        for ranks in pack(rows.lengths(row_B, visit_B), budget=budget, ranks=world_size, padded=padded):
            positions = ranks[rank]
            samples = [rows.sample(int(row_B[at]), int(visit_B[at])) for at in positions]
            yield row_B[positions], collate(samples) if samples else dummy_batch(rows.encoder.end_token)
