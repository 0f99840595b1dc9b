"""Everything before the first step: prompt, rows, sampling plan, engine, and a self-test of what was loaded.

What cannot be trained is refused here, with one line, before a GPU-hour is spent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clsgen_dist import checkpoint
from clsgen_dist.checkpoint.canary import canary_sample
from clsgen_dist.checkpoint.marker import train_state
from clsgen_dist.checkpoint.state import RunIdentity
from clsgen_dist.config import Settings
from clsgen_dist.data.encode import Encoder
from clsgen_dist.data.loader import TrainStream
from clsgen_dist.data.pack import Sample
from clsgen_dist.data.prompt import RenderedPrompt
from clsgen_dist.data.tables.dataset import RowDataset
from clsgen_dist.data.tables.replay import ReplayTexts
from clsgen_dist.data.tables.shards import ShardedRows
from clsgen_dist.data.tables.state_cache import FOLDER, StateCache
from clsgen_dist.engine.world import World
from clsgen_dist.errors import SettingsError
from clsgen_dist.model.backbone import (
    backbone_path,
    label_start_tokens,
    load_tokenizer,
    open_backbone,
    require_finite,
)
from clsgen_dist.model.context_length import require_context, require_embedded
from clsgen_dist.model.dual_head import LossSpec
from clsgen_dist.model.label_space import LabelSpace
from clsgen_dist.model.self_test import SelfTest, self_test
from clsgen_dist.objectives.class_weights import distortions, head_prior
from clsgen_dist.training import frozen_cache
from clsgen_dist.training.build_engine import build_engine, loss_spec
from clsgen_dist.training.datasets import (
    Datasets,
    open_datasets,
    require_named_classes,
    require_rows_for_terms,
    with_replay,
)
from clsgen_dist.training.dev_evaluation import metric_fault
from clsgen_dist.training.head_start import head_start
from clsgen_dist.training.reference_log_probs import attach_references
from clsgen_dist.training.run_prompt import prompt_of_run
from clsgen_dist.training.sampling_plan import end_of_stage, plan_stream, total_steps

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """What a trainer trains, with what, and where to."""

    output: Path
    engine: Any
    stream: TrainStream
    dev: RowDataset | None
    general: ReplayTexts | None
    """Texts whose perplexity is measured."""
    labels: LabelSpace
    canary: Sample
    prompt: RenderedPrompt

    def close(self, *, deletes: bool) -> None:
        """At the run's end; ``deletes``: what only this run needed on the disk too."""
        if isinstance(self.stream.rows, ShardedRows):
            self.stream.rows.close()
        if deletes:
            with contextlib.suppress(OSError):
                StateCache.delete(self.output / FOLDER)


def prepare(settings: Settings, zero: dict[str, Any], resume_from: Path | None, world: World) -> PreparedRun:
    """Everything before the first step; what cannot be trained is refused here. Collective."""
    output, data = Path(settings.output_dir), settings.data
    backbone = backbone_path(settings.model.backbone)
    opened = open_backbone(backbone)
    if settings.model.finetune != "head" and opened.weights is not None:
        opened.weights.require_reversible()
    tokenizer = load_tokenizer(backbone)
    prompt = prompt_of_run(settings.prompt, tokenizer, resume_from, world)
    encoder = Encoder(tokenizer, max_prompt_length=data.max_prompt_length, rendered=prompt)
    require_context(opened.config, data.max_prompt_length, data.max_explanation_length)
    require_embedded(tokenizer, encoder, opened.config)
    datasets = open_datasets(
        data,
        encoder,
        output if world.is_main else None,
        settings.seed,
        run=settings.output_dir,
        compared=settings.objectives.compared,
    )
    datasets = with_replay(datasets, settings, encoder)
    require_rows_for_terms(datasets, settings)
    if datasets.dev and (fault := metric_fault(datasets.dev, settings.train.best_metric, datasets.kind)):
        if settings.train.early_stop_patience is not None:
            raise SettingsError(fault)
        logger.info("%s. Until then the last checkpoint counts as the best", fault)
    stream = plan_stream(settings, datasets, rank=world.rank, world_size=world.size)
    labels = LabelSpace.of(datasets.labels, data.positive_label, datasets.kind)
    name_tokens = label_start_tokens(encoder, labels.names)
    losses = _losses(settings, datasets, labels, name_tokens)
    prior = head_prior(settings.objectives, labels, datasets.class_counts(), datasets.known_counts())
    start = head_start(settings, Path(backbone), labels, losses.classification, name_tokens, prior)
    engine = build_engine(settings, zero, opened, start, losses)
    canary = canary_sample(encoder)
    require_finite(engine.module, world)
    found = _self_test(engine, canary)
    found.require_trainable(settings.model.backbone)
    engine.module.layout = found.layout
    attach_references(engine, datasets, settings, world)
    stream.padded = found.layout == "padded"
    if stream.padded:
        why = found.refusal or f"packed sequences change each other's states by {found.leak:.1e}"
        logger.info("rows are padded, not packed: %s", why)
    frozen_cache.attach_frozen_states(
        engine,
        stream,
        opened,
        settings,
        canary,
        world,
        steps=_steps_left(settings, stream, datasets.dev, resume_from),
        evaluates=datasets.dev is not None,
    )
    return PreparedRun(
        output=output,
        engine=engine,
        stream=stream,
        dev=datasets.dev,
        general=datasets.replay_dev,
        labels=labels,
        canary=canary,
        prompt=prompt,
    )


def _steps_left(settings: Settings, stream: TrainStream, dev: RowDataset | None, resume_from: Path | None) -> int:
    """Steps that the run will take from here; 0 for one that is over."""
    train = settings.train
    last = min(total_steps(stream, settings), end_of_stage(stream, train.stop_at_stage))
    if resume_from is None:
        return last
    state = train_state(checkpoint.read_marker(resume_from))
    best_by = checkpoint.best_by(train.best_metric, dev.fingerprint) if dev else None
    gave_up = state.evaluations_without_gain >= (train.early_stop_patience or math.inf)
    return 0 if gave_up and state.best_by == best_by else max(0, last - state.step)


def _losses(settings: Settings, datasets: Datasets, labels: LabelSpace, name_tokens: list[int] | None) -> LossSpec:
    """How the model computes its losses; SettingsError if these rows do not fit them."""
    objectives = settings.objectives
    balanced = settings.data.sampling == "balanced"
    losses = loss_spec(
        objectives,
        labels,
        datasets.class_counts(),
        balanced=balanced,
        decide=settings.model.decide,
        name_tokens=name_tokens,
    )
    if name_tokens is not None and objectives.consistency.weight:
        require_named_classes(datasets, name_tokens, labels)
    focal = objectives.classification.focal_gamma
    if focal and labels.kind == "single" and datasets.has_votes:
        raise SettingsError(
            f"objectives.classification.focal_gamma is {focal}, but rows have votes or probabilities as labels: focal "
            "loss needs one certain class a row; set it to 0"
        )
    for name in distortions(objectives, labels.kind, balanced=balanced):
        logger.warning("%s distorts the probabilities: run clsgen calibrate on the exported model", name)
    return losses


def run_identity(settings: Settings, run: PreparedRun, frozen_sums: tuple[float, float], step: int) -> RunIdentity:
    """What a run that resumes at ``step`` must share with this one."""
    model, rows = settings.model, run.stream.rows
    uses_evidence = settings.objectives.evidence.weight or settings.objectives.contrast.weight
    return RunIdentity(
        labels=list(run.labels.names),
        label_space=run.labels.kind,
        decide=settings.model.decide,
        bias_correction=list(correction) if (correction := _bias_correction(run.engine)) else None,
        rows=len(rows),
        rows_sha256=rows.fingerprint,
        order=run.stream.order.visited_before(step),
        evidence=rows.table.card.evidence_sha256 if uses_evidence and isinstance(rows, RowDataset) else None,
        replay=run.stream.replay.fingerprint if run.stream.replay else None,
        seed=settings.seed,
        batch_size=settings.train.batch_size,
        finetune=model.finetune,
        top_layers=model.top_layers,
        lora=(model.lora_rank, model.lora_alpha) if model.finetune == "lora" else None,
        optimizer=settings.optim.name,
        frozen_sum=frozen_sums[0],
        frozen_square_sum=frozen_sums[1],
    )


def _bias_correction(engine: Any) -> tuple[float, ...] | None:
    correction: tuple[float, ...] | None = engine.module.loss_spec.classification.bias_correction
    return correction


def _self_test(engine: Any, sample: Sample) -> SelfTest:
    """What the loaded backbone can do; collective."""
    engine.eval()
    with torch.no_grad():
        # DeepSpeed walks what a module returns, and knows dictionaries.
        found = SelfTest(**engine(inside=lambda model: dataclasses.asdict(self_test(model, sample))))
    if found.refusal:  # a pass that was broken off leaves weights gathered
        engine.optimizer.parameter_offload.partition_all_parameters()
    engine.train()
    return found
