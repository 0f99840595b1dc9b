"""Curriculum stages: from a recipe to segments of difficulty.

A stage trains on a range of difficulty. Its pool grows with progress t from a share c0 of the range to all of it
(competence, Platanios et al. 2019, arXiv 1903.09848, eq. 2 and 3):

    linear  c(t) = c0 + (1 - c0)·t        root  c(t) = sqrt(c0² + (1 - c0²)·t)        step  c in equal jumps

The pool may be divided into bands with shares of their own, and a share of the positions may replay rows easier than
the range. Difficulty is ranked within each class, so every pool keeps the base rate of the classes, on which calibrated
probabilities depend. Two orders serve as controls: ``hard_first`` reverses the ranking, and ``random`` shuffles it, so
that the pool grows in the same way without an order (the control that a curriculum must beat, Wu et al. 2020, arXiv
2012.03107).

Cost: a sort of the rows by difficulty; planning is arithmetic on the stages.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Lt

from clsgen_dist.data.curriculum.order import EDGE, Band, Segment, StageOrder
from clsgen_dist.errors import SettingsError
from clsgen_dist.io.value_ranges import PositiveFloat, PositiveInt

# N rows

_MAX_BANDS = 100
_SEGMENTS = 32
"""Number of steps in which a growing pool is widened over a stage."""

Pacing = Literal["full", "linear", "root", "step"]
Direction = Literal["easy_first", "hard_first", "random"]


@dataclass(kw_only=True)
class Stage:
    """One stage of a run."""

    name: str
    """Its name in logs and plots."""
    epochs: PositiveFloat | None = None
    """Length, as a multiple of the training rows; give this or `steps`."""
    steps: PositiveInt | None = None
    """Length in optimizer steps; give this or `epochs`."""
    difficulty: tuple[float, float] = (0.0, 1.0)
    """Quantiles of difficulty that the stage trains on, within each class: [0, 0.5] is the easier half."""
    pacing: Pacing = "full"
    """How the pool grows over the stage: full from the start, linear, root (fast first), or in equal jumps (step)."""
    start: Annotated[float, Gt(0), Le(1)] = 0.2
    """Share of the difficulty range that is open at the start of a growing pool."""
    jumps: Annotated[int, Ge(1), Le(_MAX_BANDS)] = 4
    """Number of pool sizes with pacing `step`."""
    bands: list[float] | None = None
    """Shares of equally wide difficulty bands of the pool, the easiest first, like [0.5, 0.3, 0.2]; none: by size."""
    replay: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the rows drawn from rows easier than the stage's difficulty range."""
    max_prompt_length: PositiveInt | None = None
    """Longest prompt in tokens during this stage; none: data.max_prompt_length."""
    micro_batch_tokens: PositiveInt | None = None
    """Token budget of a micro-batch during this stage; none: train.micro_batch_tokens."""
    lr_factor: PositiveFloat = 1.0
    """The scheduled learning rate is multiplied by this."""
    loss_schedule: Literal["constant", "linear", "cosine", "sigmoid"] | None = None
    """How the loss weights change over the stage; none: as set in `objectives`, over the run."""
    generation_range: tuple[float, float] | None = None
    """Factor of objectives.generation.weight at the stage's start and end; none: as set in `objectives`."""
    classification_range: tuple[float, float] | None = None
    """Factor of objectives.classification.weight at the stage's start and end; none: as set in `objectives`."""

    @property
    def needs_difficulty(self) -> bool:
        """Whether it selects rows by difficulty."""
        return tuple(self.difficulty) != (0.0, 1.0) or self.pacing != "full" or bool(self.bands)

    def token_budget(self, of_run: int) -> int:
        """Most tokens of a micro-batch: the stage's own, or else the run's."""
        return self.micro_batch_tokens or of_run


def stage_faults(stages: Sequence[Stage]) -> list[str]:
    """What is wrong with fields of stages taken together, and with names; numbers are in the ranges of their types."""
    faults: list[str] = []

    def expect(fine: bool, stage: Stage, field: str, expected: str) -> None:
        if not fine:
            faults.append(f"curriculum stage {stage.name!r}: {field} is {getattr(stage, field)}, expected {expected}")

    for stage in stages:
        if (stage.epochs is None) == (stage.steps is None):
            faults.append(f"curriculum stage {stage.name!r}: give either epochs or steps")
        low, high = stage.difficulty
        expect(0 <= low < high <= 1, stage, "difficulty", "two rising quantiles from 0 to 1")
        expect(stage.replay == 0 or low > 0, stage, "replay", "0, since difficulty starts at 0 and no row is easier")
        shares = stage.bands or [1.0]
        expect(min(shares) >= 0 and sum(shares) > 0, stage, "bands", "shares of 0 or more, not all 0")
        expect(len(shares) <= _MAX_BANDS, stage, "bands", f"at most {_MAX_BANDS} shares")
        for field in ("generation_range", "classification_range"):
            ends = getattr(stage, field) or (1.0, 1.0)
            expect(min(ends) >= 0 and max(ends) > 0, stage, field, "two factors of 0 or more, not both 0")
    names = [stage.name for stage in stages]
    faults += [f"curriculum stages are named {names}, expected different names"] * (len(set(names)) < len(names))
    return faults


def quantiles(score_N: np.ndarray, label_N: np.ndarray, direction: Direction, seed: int) -> np.ndarray:
    """``[N]`` quantile of each row in its class, in [0, 1): 0 is visited first. Ties are broken at random."""
    rng = np.random.default_rng([seed, 0xD1FF])
    tie_N = rng.random(len(score_N))
    if direction == "random":
        score_N = tie_N
    elif direction == "hard_first":
        score_N = -score_N
    quantile_N = np.empty(len(score_N), dtype=np.float32)
    for label in np.unique(label_N):
        of_label = np.flatnonzero(label_N == label)
        order = of_label[np.lexsort((tie_N[of_label], score_N[of_label]))]
        quantile_N[order] = np.arange(len(order)) / len(order)
    return quantile_N


def competence(stage: Stage, progress: float) -> float:
    """Share of the stage's difficulty range that is open at a progress in [0, 1)."""
    c0 = stage.start
    if stage.pacing == "linear":
        return c0 + (1 - c0) * progress
    if stage.pacing == "root":
        return math.sqrt(c0**2 + (1 - c0**2) * progress)
    if stage.pacing == "step":
        jump = min(math.floor(progress * stage.jumps), stage.jumps - 1)
        return c0 + (1 - c0) * jump / max(1, stage.jumps - 1) if stage.jumps > 1 else 1.0
    return 1.0


def segments(stage: Stage, positions: int) -> list[Segment]:
    """The stage as segments of constant rates."""
    count = 1 if stage.pacing == "full" else stage.jumps if stage.pacing == "step" else _SEGMENTS
    low, high = stage.difficulty
    pool: list[Segment] = []
    for index in range(count):
        # At the middle of each segment, so that the pool follows the curve on average.
        progress = (index + 0.5) / count if stage.pacing != "step" else index / count
        top = low + (high - low) * competence(stage, progress)
        shares = stage.bands or [1.0]
        edges = np.linspace(low, top, len(shares) + 1)
        new = (1 - stage.replay) / sum(shares)
        bands = [Band(float(a), float(b), s * new) for a, b, s in zip(edges[:-1], edges[1:], shares, strict=True)]
        if stage.replay:
            bands.append(Band(0.0, low, stage.replay))
        pool.append(Segment(positions / count, tuple(bands)))
    return pool


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its position in the run."""

    stage: Stage
    index: int
    first_step: int
    steps: int
    positions: int
    """Rows that it visits, counted with repetition."""
    ends_short: bool = False
    """Whether its last step is not full."""

    @property
    def end(self) -> int:
        """The step after its last."""
        return self.first_step + self.steps

    def steps_before(self, total: int) -> int:
        """How many of its steps a run of ``total`` steps takes."""
        return min(self.end, total) - self.first_step


def plan_stages(
    stages: Sequence[Stage], *, rows: int, batch_size: int, epochs: float, max_steps: int | None
) -> list[PlannedStage]:
    """The run's stages in order; without any, one of ``epochs`` over all rows. ``max_steps`` cuts the run short.

    A stage that another follows is rounded up to full steps: only the last step of a run may be short.
    """
    planned: list[PlannedStage] = []
    first = 0
    stages = stages or [Stage(name="all", epochs=epochs)]
    for index, stage in enumerate(stages):
        positions = max(1, round(stage.epochs * rows)) if stage.epochs is not None else (stage.steps or 0) * batch_size
        steps = math.ceil(positions / batch_size)
        if index < len(stages) - 1:
            positions = steps * batch_size
        planned.append(PlannedStage(stage, index, first, steps, positions, positions < steps * batch_size))
        first += planned[-1].steps
    return [p for p in planned if max_steps is None or p.first_step < max_steps]


def visited_before(stages: Sequence[PlannedStage], step: int) -> dict[str, Any]:
    """What determines the rows before an optimizer step, by name: runs that agree in it visited the same rows.

    Later stages may change, and so may the length of the current one, unless its pool grows with it: a run may be made
    longer, unless its last step was short, which would then have been full (``last_rows``).
    """
    entered = [p for p in stages if p.first_step < step]
    facts: dict[str, Any] = {}
    for planned in entered:
        stage, path = planned.stage, f"stages.{planned.index}"
        fields = ["difficulty", "pacing", "bands", "replay"]
        fields += ["start"] * (stage.pacing != "full") + ["jumps"] * (stage.pacing == "step")
        facts |= {f"{path}.{field}": _plain(getattr(stage, field)) for field in fields}
        over = planned.end <= step
        if planned.ends_short and over:
            facts[f"{path}.last_rows"] = planned.positions
        elif planned is not entered[-1] or stage.pacing != "full":
            facts[f"{path}.rows"] = planned.positions
    return facts


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class RunOrder:
    """The row at each position of each stage of a run.

    Args:
        stages: what :func:`plan_stages` planned.
        quantile_N: difficulty of each row in its class, in [0, 1).
        seed: of the order.
        class_N: class of each row, by which visits are balanced, -1 without label; None: rows count alike.
    """

    def __init__(
        self, stages: Sequence[PlannedStage], quantile_N: np.ndarray, seed: int, class_N: np.ndarray | None = None
    ) -> None:
        self.stages, self.quantile_N, self.seed, self.class_N = list(stages), quantile_N, seed, class_N
        self._current: tuple[PlannedStage, StageOrder, np.ndarray] | None = None

    def at(self, stage: PlannedStage, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``[p]`` at the positions from ``start`` up to ``stop``, and how often the run visited each before."""
        _, order, before_N = self._enter(stage)
        row_p, visit_p = order.at(start, stop)
        return row_p, visit_p + before_N[row_p]

    def difficulty(self, row_p: np.ndarray) -> float:
        """Mean difficulty quantile of these rows."""
        return float(self.quantile_N[row_p].mean())

    def visited_before(self, step: int) -> dict[str, Any]:
        """See :func:`visited_before`; with a digest of the rows' difficulty."""
        digest = hashlib.sha256(self.quantile_N.tobytes()).hexdigest()
        balanced = (
            {} if self.class_N is None else {"classes_sha256": hashlib.sha256(self.class_N.tobytes()).hexdigest()}
        )
        return {"difficulty_sha256": digest, **balanced, **visited_before(self.stages, step)}

    def _enter(self, stage: PlannedStage) -> tuple[PlannedStage, StageOrder, np.ndarray]:
        """The order of a stage, and how often earlier stages visited each row."""
        if self._current is None or self._current[0] is not stage:
            before_N = np.zeros(len(self.quantile_N), dtype=np.int64)
            for earlier in self.stages[: self.stages.index(stage)]:
                before_N += stage_order(earlier, self.quantile_N, self.seed, self.class_N).visit_counts()
            self._current = (stage, stage_order(stage, self.quantile_N, self.seed, self.class_N), before_N)
        return self._current


def stage_order(
    planned: PlannedStage, quantile_N: np.ndarray, seed: int, class_N: np.ndarray | None = None
) -> StageOrder:
    """The order of a planned stage; SettingsError if no row is in its range of difficulty."""
    low, high = planned.stage.difficulty
    above_N = quantile_N >= low - EDGE
    try:
        if not (above_N & (quantile_N < high - EDGE if high < 1 else above_N)).any():  # replay alone would hide that
            raise ValueError(f"no row has a difficulty in {low:.3g}-{high:.3g}")
        pool = segments(planned.stage, planned.positions)
        return StageOrder(quantile_N, pool, planned.positions, (seed, planned.index), class_N)
    except ValueError as error:
        raise SettingsError(
            f"curriculum stage {planned.stage.name!r}: {error} ({len(quantile_N)} rows in all); widen its difficulty"
        ) from error
