"""The stream of a run: which rows an optimizer step sees, packed and shared out, ready before it is asked for.

Step k of a stage takes the positions ``[k·B, (k+1)·B)`` of the stage's order (:mod:`clsgen_dist.data.order`). World
size and token budget only say who computes which of them, so the state to resume is the step number. Every rank runs
the same number of micro-steps; one that has no row for a micro-step runs a stand-in of weight zero, since ZeRO-3's
gathers are collectives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clsgen_dist.data.curriculum import PlannedStage, stage_order
from clsgen_dist.data.order import StageOrder
from clsgen_dist.data.pack import Batch, Bins, Load, collate, load_of, pack, stand_in
from clsgen_dist.data.rows import RowSet

# N rows, B rows of an optimizer step

_AHEAD = 3
"""Optimizer steps that are made ready in advance."""


@dataclass(frozen=True)
class Step:
    """One rank's part of an optimizer step."""

    batches: list[Batch]
    """One per micro-step, equally many on every rank."""
    row_B: np.ndarray
    """Numbers of the rows of all ranks, in their order."""
    stage: PlannedStage
    difficulty: float
    """Mean difficulty quantile of the rows shown, over all ranks."""
    load: Load
    """How well the tokens are spread over ranks."""


class TrainStream:
    """The batches of a run, by optimizer step.

    Args:
        rows: the training rows.
        stages: what :func:`clsgen_dist.data.curriculum.plan_stages` planned.
        quantile_N: difficulty of each row in its class, in [0, 1).
        seed: seed of the order.
        batch_size: rows of an optimizer step over all ranks.
        micro_batch_tokens: token budget of a micro-batch on one rank.
        rank, world_size: this rank's share.
    """

    def __init__(
        self,
        rows: RowSet,
        *,
        stages: Sequence[PlannedStage],
        quantile_N: np.ndarray,
        seed: int,
        batch_size: int,
        micro_batch_tokens: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.rows, self.stages, self.quantile_N, self.seed = rows, list(stages), quantile_N, seed
        self.batch_size, self.micro_batch_tokens = batch_size, micro_batch_tokens
        self.rank, self.world_size = rank, world_size
        self.steps = self.stages[-1].first_step + self.stages[-1].steps
        self._current: tuple[PlannedStage, StageOrder, np.ndarray] | None = None

    def stage_of(self, step: int) -> PlannedStage:
        """The stage in which an optimizer step (from 0) lies."""
        return next(stage for stage in reversed(self.stages) if stage.first_step <= step)

    def chosen(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``[B]`` of a step in their order, and which showing of the run each is; the same on every rank."""
        stage, order, before_N = self._enter(self.stage_of(step))
        start = (step - stage.first_step) * self.batch_size
        row_B, showing_B = order.at(start, min(start + self.batch_size, stage.positions))
        return row_B, showing_B + before_N[row_B]

    def bins(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, Bins]:
        """Rows, showings and lengths ``[B]`` of a step, and how they are packed; the same on every rank."""
        stage = self.stage_of(step).stage
        row_B, showing_B = self.chosen(step)
        length_B = self.rows.lengths(row_B, showing_B, stage.max_prompt_length)
        budget = stage.micro_batch_tokens or self.micro_batch_tokens
        return row_B, showing_B, length_B, pack(length_B, budget=budget, ranks=self.world_size)

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
            batches.append(collate(samples) if samples else stand_in(self.rows.encoder.end_token))
        return Step(batches, row_B, stage, float(self.quantile_N[row_B].mean()), load_of(bins, length_B))

    def _enter(self, stage: PlannedStage) -> tuple[PlannedStage, StageOrder, np.ndarray]:
        """The order of a stage, and how often the stages before it showed each row."""
        if self._current is None or self._current[0] is not stage:
            before_N = np.zeros(len(self.rows), dtype=np.int64)
            for earlier in self.stages[: self.stages.index(stage)]:
                before_N += stage_order(earlier, self.quantile_N, self.seed).showings()
            self._current = (stage, stage_order(stage, self.quantile_N, self.seed), before_N)
        return self._current


def ahead(make: Callable[[int], Step], first: int, last: int) -> Iterator[tuple[Step, float]]:
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


def evaluation_batches(rows: RowSet, *, rank: int, world_size: int, budget: int) -> Iterator[tuple[np.ndarray, Batch]]:
    """This rank's share of the rows with their numbers; equally many batches on every rank.

    Each row comes with its first explanation. ``budget`` is the tokens of a batch; rows are packed a block at a time.
    """
    block = 4096
    for start in range(0, len(rows), block):
        row_B = np.arange(start, min(start + block, len(rows)))
        showing_B = rows.first_showing(row_B)
        for ranks in pack(rows.lengths(row_B, showing_B), budget=budget, ranks=world_size):
            mine = ranks[rank]
            samples = [rows.sample(int(row_B[at]), int(showing_B[at])) for at in mine]
            yield row_B[mine], collate(samples) if samples else stand_in(rows.encoder.end_token)
