"""From the settings to the run's stream of rows: stages, difficulty, token budgets; and the loss weights of a step.

The trainer walks what is planned here; ``clsgen data preview`` draws it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clsgen_dist.config import Settings
from clsgen_dist.data.curriculum.difficulty import combine
from clsgen_dist.data.curriculum.stages import PlannedStage, RunOrder, plan_stages, quantiles, stage_order
from clsgen_dist.data.loader import TrainStream
from clsgen_dist.data.tables.dataset import RowDataset
from clsgen_dist.data.tables.shards import ShardedOrder, ShardedRows
from clsgen_dist.errors import SettingsError
from clsgen_dist.model.backbone import backbone_path
from clsgen_dist.objectives.loss_weights import WeightSchedule
from clsgen_dist.objectives.settings import ObjectivesSettings
from clsgen_dist.training.backbone_scores import difficulty_scores
from clsgen_dist.training.datasets import Datasets


def plan_stream(settings: Settings, rows: Datasets, *, rank: int, world_size: int) -> TrainStream:
    """The stream over the training rows, for one rank.

    Raises:
        SettingsError: a row that does not fit a token budget, or a stage without rows.
        DataError: scores of the backbone that a stage needs and ``clsgen data score`` has not computed.
    """
    train, curriculum = settings.train, settings.curriculum
    stages = plan_stages(
        curriculum.stages,
        rows=len(rows.train),
        batch_size=train.batch_size,
        epochs=train.epochs,
        max_steps=train.max_steps,
    )
    for stage in (planned.stage for planned in stages):
        if stage.max_prompt_length is not None:
            encoder = rows.train.encoder
            encoder.require_room(stage.max_prompt_length, f"max_prompt_length of curriculum stage {stage.name!r}")
        budget = stage.token_budget(train.micro_batch_tokens)
        _require_budget(rows.train, stage.max_prompt_length, budget, settings.objectives.group)
        if rows.replay is not None and (longest := rows.replay.longest()) > budget:
            raise SettingsError(
                f"micro_batch_tokens is {budget}, but the longest text of data.replay has {longest} tokens; raise it "
                f"to {longest}, or lower data.max_prompt_length"
            )
    if rows.dev is not None:
        _require_budget(rows.dev, None, train.micro_batch_tokens)
    return TrainStream(
        rows.train,
        _order(settings, rows.train, stages),
        batch_size=train.batch_size,
        micro_batch_tokens=train.micro_batch_tokens,
        rank=rank,
        world_size=world_size,
        group=settings.objectives.group,
        replay=rows.replay,
    )


def _order(settings: Settings, rows: RowDataset | ShardedRows, stages: list[PlannedStage]) -> RunOrder | ShardedOrder:
    if isinstance(rows, ShardedRows):
        return ShardedOrder(rows, stages)
    quantile_N = _quantiles(settings, rows) if settings.curriculum.stages else np.zeros(len(rows), dtype=np.float32)
    class_N = rows.label_N if settings.data.sampling == "balanced" else None
    for planned in stages:
        # Refuses a stage without rows, before anything is trained.
        stage_order(planned, quantile_N, settings.seed, class_N)
    return RunOrder(stages, quantile_N, settings.seed, class_N)


def weight_schedule(
    objectives: ObjectivesSettings, terms: Sequence[str], planned: PlannedStage, step: int, total_steps: int
) -> tuple[WeightSchedule, float]:
    """The loss weights in force at a step, and the progress in them: the stage's if it has its own, else the run's."""
    stage = planned.stage
    sections = objectives.sections()
    of_terms = {name: sections[name] for name in terms}
    ranges = {name: section.range for name, section in of_terms.items()}
    of_the_stage = {"generation": stage.generation_range, "classification": stage.classification_range}
    schedule = WeightSchedule(
        base={name: section.weight for name, section in of_terms.items()},
        schedule=stage.loss_schedule or objectives.schedule,
        ranges={**ranges, **{name: pair for name, pair in of_the_stage.items() if pair}},
        min_share=objectives.min_share,
    )
    of_stage = stage.loss_schedule or stage.generation_range or stage.classification_range
    first, steps = (planned.first_step, planned.steps) if of_stage else (0, total_steps)
    return schedule, (step - first) / max(1, steps - 1)


def _quantiles(settings: Settings, rows: RowDataset) -> np.ndarray:
    curriculum = settings.curriculum
    if curriculum.order == "random":  # the control asks nobody how hard a row is
        return quantiles(np.zeros(len(rows)), rows.label_N, "random", settings.seed)
    scores = difficulty_scores(
        rows, curriculum.difficulty, backbone=backbone_path(difficulty_model(settings)), compute=False
    )
    joined = combine(scores, curriculum.difficulty, rows.label_N)
    return quantiles(joined, rows.label_N, curriculum.order, settings.seed)


def total_steps(stream: TrainStream, settings: Settings) -> int:
    """Optimizer steps of a run: those of its stages, cut at ``train.max_steps``."""
    return min(stream.steps, settings.train.max_steps or stream.steps)


def end_of_stage(stream: TrainStream, name: str | None) -> int:
    """The step after which the stage of this name is over; the stream's end without a name."""
    ends = {planned.stage.name: planned.end for planned in stream.stages}
    return ends.get(name or "", stream.steps)


def difficulty_model(settings: Settings) -> str:
    """The backbone that scorers ask."""
    return settings.curriculum.difficulty_model or settings.model.backbone


def _require_budget(rows: RowDataset | ShardedRows, max_prompt_length: int | None, budget: int, group: int = 1) -> None:
    longest = rows.longest(max_prompt_length)
    if group * longest > max(budget, longest):
        raise SettingsError(
            f"micro_batch_tokens is {budget}, but {group} rows of {rows.name}, which objectives.contrast.group keeps "
            f"together, may have {group * longest} tokens; raise it to {group * longest}, or lower "
            f"objectives.contrast.group to {max(1, budget // longest)}"
        )
    if longest > budget:
        raise SettingsError(
            f"micro_batch_tokens is {budget}, but the longest row of {rows.name} may have {longest} tokens; "
            f"raise it to {longest}, or lower data.max_prompt_length"
        )
