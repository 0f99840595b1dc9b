"""``clsgen plan``: a recipe on a cluster: does it fit, how long does it take, what does it cost.

It opens the recipe that ``train.py`` opens, plans the stages that it plans, fills in DeepSpeed's file as it does, and
builds the model that it builds, without memory.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from clsgen_dist.config import Settings, resolve_path
from clsgen_dist.engine.config import deepspeed_config
from clsgen_dist.errors import SettingsError
from clsgen_dist.model.backbone import backbone_path
from clsgen_dist.model.context import require_context
from clsgen_dist.plan.cluster import GIB, Cluster
from clsgen_dist.plan.communication import Flow, flows
from clsgen_dist.plan.goodput import Faults, Goodput, goodput
from clsgen_dist.plan.memory import Memory, memory
from clsgen_dist.plan.meta_trace import MetaTrace, ModelPlan, attention_of, open_config, trace_micro_step
from clsgen_dist.plan.step_time import PLANNED_OVER_PUBLISHED, StepTime, step_time
from clsgen_dist.plan.workload import Workload, rows_at_hand, stated_workload, workload_of_rows
from clsgen_dist.plan.zero3_simulation import Sharding, Walk, sharding, walk

_HOST_SHARE = 0.9
"""Of a node's memory, what the ranks may take."""
_CHECKPOINT_BYTES = {"adamw": 12, "cpu_adamw": 12, "adamw_8bit": 6.03}
"""Bytes a save writes for each trained parameter: fp32 master and both moments."""


@dataclass(frozen=True, kw_only=True)
class Stated:
    """Rows said on the command line."""

    rows: int | None = None
    tokens_per_row: int | None = None
    supervised_per_row: int | None = None

    @property
    def any(self) -> bool:
        """Whether anything was said."""
        return any(value is not None for value in dataclasses.astuple(self))


@dataclass(frozen=True)
class StagePlan:
    """A stage's time and cost."""

    name: str
    steps: int
    rows: int
    tokens: float
    micro_steps: float
    time: StepTime
    mfu: float
    tokens_per_second: float
    """Of all ranks."""
    hours: float
    gpu_hours: float

    @property
    def tokens_per_second_range(self) -> tuple[float, float]:
        """Where four of five published runs would lie, if planned like this one."""
        low, high = PLANNED_OVER_PUBLISHED
        return self.tokens_per_second / high, self.tokens_per_second / low


@dataclass(frozen=True)
class Plan:
    """A recipe on so many nodes of a cluster."""

    settings: Settings
    cluster: Cluster
    nodes: int
    gpus_per_node: int
    rehearsal: MetaTrace
    zero: Sharding
    walked: Walk
    memory: Memory
    flows: list[Flow]
    """Of an optimizer step of the longest stage."""
    stages: list[StagePlan]
    workload: Workload

    @property
    def ranks(self) -> int:
        """GPUs in all."""
        return self.nodes * self.gpus_per_node

    @property
    def hours(self) -> float:
        """Of all stages, without saves and faults."""
        return sum(stage.hours for stage in self.stages)

    @property
    def gpu_hours(self) -> float:
        """Of all stages, without saves and faults."""
        return sum(stage.gpu_hours for stage in self.stages)

    @property
    def hours_with_faults(self) -> float | None:
        """Of all stages with saves and faults; None if they would never end."""
        good = self.goodput.at_advised
        return self.hours / good if good > 1e-6 else None

    @property
    def spare_bytes(self) -> int:
        """Memory of a GPU that is left; below 0 it does not fit."""
        return self.cluster.memory_bytes - self.memory.device_total

    @property
    def spare_host_bytes(self) -> float:
        """Memory of a node's host that is left."""
        return _HOST_SHARE * self.cluster.host_memory_gib * GIB - self.memory.host_total * self.gpus_per_node

    @property
    def fits(self) -> bool:
        """Whether GPU and host have room."""
        return self.spare_bytes >= 0 and self.spare_host_bytes >= 0

    @property
    def checkpoint_bytes(self) -> float:
        """Of one checkpoint, all ranks."""
        return _checkpoint_bytes(self.settings, self.rehearsal)

    @property
    def write_seconds(self) -> float:
        """Of a save's files: written, then read once for their checksums, by all nodes at once."""
        cluster = self.cluster
        rates = [
            min(self.nodes * rate, cluster.disk_total_gb_s)
            for rate in (cluster.disk_write_gb_s, cluster.disk_read_gb_s)
        ]
        return sum(self.checkpoint_bytes / 1e9 / rate for rate in rates)

    @property
    def canary_seconds(self) -> float:
        """Of the fixed text that each save scores: a forward pass of one short row, which gathers all weights."""
        once = flows(self.rehearsal, self.zero, self.walked, micro_steps=1)
        return sum(flow.seconds(self.cluster) for flow in once if flow.kind == "gather forward")

    @property
    def stall_seconds(self) -> float:
        """How long a save stops the run: for the fixed text, the copy to the host, and a write that is waited for."""
        whole, cluster = self.checkpoint_bytes / 1e9, self.cluster
        copy = max(whole / self.ranks / cluster.staging_gb_s, whole / cluster.staging_total_gb_s)
        write = 0.0 if self.settings.checkpoint.asynchronous else self.write_seconds
        return self.canary_seconds + copy + write

    @property
    def worst_shortfall(self) -> float:
        """What lacks as a share of what there is, on the GPU or on the host, whichever is worse; below 0 it fits."""
        host = _HOST_SHARE * self.cluster.host_memory_gib * GIB
        return max(-self.spare_bytes / self.cluster.memory_bytes, -self.spare_host_bytes / host)

    @property
    def notes(self) -> list[str]:
        """What is odd about the plan, or left out of it, a line each."""
        ranks, rows = self.ranks, self.settings.train.batch_size
        longest, positions = self.workload.longest, self.rehearsal.positions
        found = []
        if rows < ranks:
            found.append(
                f"a step has {rows:,} rows for {ranks:,} ranks, so {ranks - rows:,} of them idle; raise "
                "train.batch_size, or take fewer nodes"
            )
        if 1 < self.zero.ranks_per_node < self.zero.secondary_ranks:
            found.append(
                f"zero_hpz_partition_size is {self.zero.secondary_ranks}, but a node has {self.zero.ranks_per_node} "
                "GPUs: its gathers leave the node, which hpZ is there to avoid; set it to the GPUs of a node"
            )
        if positions and longest > positions:
            found.append(
                f"rows have up to {longest:,} tokens, but the backbone knows {positions:,} positions "
                "(max_position_embeddings): later ones are new to it; lower data.max_prompt_length"
            )
        if self.zero.offload_parameters == "nvme" and self.cluster.nvme_gb_s is None:
            found.append("the cluster has no nvme_gb_s: reading weights from NVMe is not in the times")
        return found

    @cached_property
    def goodput(self) -> Goodput:
        """This cluster with its faults in the long run, against the interval between checkpoints."""
        faults = Faults(
            gpus=self.ranks,
            per_gpu_hour=self.cluster.failures_per_gpu_hour,
            restart_hours=self.cluster.restart_minutes / 60,
            save_hours=self.stall_seconds / 3600,
            write_hours=self.write_seconds / 3600 if self.settings.checkpoint.asynchronous else 0.0,
        )
        return goodput(faults)


def _checkpoint_bytes(settings: Settings, rehearsal: MetaTrace) -> float:
    """Only what is trained is written."""
    return _CHECKPOINT_BYTES[settings.optim.name] * rehearsal.trainable


logger = logging.getLogger(__name__)


class Planner:
    """Plans one recipe again and again, with other settings: a model is traced once for each micro-batch."""

    def __init__(self, settings: Settings, cluster: Cluster, stated: Stated) -> None:
        self.cluster, self.stated = cluster, stated
        self._backbone = backbone_path(settings.model.backbone)
        self._config = open_config(self._backbone)
        if not stated.any:
            require_context(self._config, settings.data.max_prompt_length, settings.data.max_explanation_length)
        self._rows = None if stated.any or not rows_at_hand(settings) else _datasets(settings)
        if self._rows is None and not stated.any:
            logger.info("%s is not on this machine: rows are assumed", settings.data.train)
        self._classes = len(self._rows.labels if self._rows else settings.data.labels or ["no", "yes"])
        self._rehearsals: dict[Any, MetaTrace] = {}

    def plan(self, settings: Settings, *, nodes: int, gpus_per_node: int | None = None) -> Plan:
        """The recipe on so many nodes.

        Raises:
            SettingsError: settings that training would refuse too, or that cannot run on a GPU's cluster.
            ModelError: a backbone that cannot be trained here, or planned.
        """
        here = gpus_per_node or self.cluster.gpus_per_node
        if here > self.cluster.gpus_per_node:
            raise SettingsError(f"--gpus_per_node is {here}, but a node has {self.cluster.gpus_per_node}")
        ranks = nodes * here
        bf16 = settings.train.precision != "fp32"
        config = deepspeed_config(
            resolve_path(settings.deepspeed),
            batch_size=settings.train.batch_size,
            world_size=ranks,
            max_grad_norm=settings.optim.max_grad_norm,
            bf16=bf16,
            optimizer=settings.optim.name,
        )
        zero = sharding(config, ranks=ranks, ranks_per_node=here)
        work = self._workload(settings, ranks)
        rehearsal = self._rehearsal(settings, work, bf16)
        if rehearsal.learned_positions and rehearsal.positions and work.longest > rehearsal.positions:
            raise SettingsError(
                f"rows have up to {work.longest} tokens, but model.backbone has {rehearsal.positions} positions, and "
                "none beyond; lower data.max_prompt_length (or --tokens_per_row), or name a backbone with longer ones"
            )
        walked = walk(rehearsal, zero)
        needed = memory(
            rehearsal,
            zero,
            walked,
            optimizer=settings.optim.name,
            on_gpu=True,
            outside_allocator=self.cluster.reserved_bytes,
            checkpoint_copy=round(_checkpoint_bytes(settings, rehearsal) / ranks)
            if settings.checkpoint.asynchronous
            else 0,
        )
        stages = [self._stage(stage, work, rehearsal, zero, walked) for stage in work.stages]
        longest = max(work.stages, key=lambda stage: stage.steps)
        return Plan(
            settings,
            self.cluster,
            nodes,
            here,
            rehearsal,
            zero,
            walked,
            needed,
            flows(rehearsal, zero, walked, micro_steps=longest.micro_steps),
            stages,
            work,
        )

    def _workload(self, settings: Settings, ranks: int) -> Workload:
        if self._rows is not None:
            return workload_of_rows(settings, self._rows, ranks=ranks)
        return stated_workload(settings, ranks=ranks, **dataclasses.asdict(self.stated))

    def _rehearsal(self, settings: Settings, work: Workload, bf16: bool) -> MetaTrace:
        model = settings.model
        lengths, supervised = work.full_micro_batch()
        attention = attention_of(model.attention)
        checkpointing = settings.train.activation_checkpointing
        key = (repr(model), bf16, len(lengths), sum(lengths), supervised, checkpointing, attention)
        if key not in self._rehearsals:
            self._rehearsals[key] = trace_micro_step(
                ModelPlan.of(model, backbone=self._backbone, classes=self._classes, bf16=bf16),
                sequence_lengths=lengths,
                supervised=supervised,
                activation_checkpointing=checkpointing,
                attention=attention,
            )
        return self._rehearsals[key]

    def _stage(self, stage: Any, work: Workload, rehearsal: MetaTrace, zero: Sharding, walked: Walk) -> StagePlan:
        time = step_time(
            rehearsal,
            self._config,
            zero,
            flows(rehearsal, zero, walked, micro_steps=stage.micro_steps),
            self.cluster,
            micro_steps=stage.micro_steps,
            fullest_tokens=stage.fullest,
            row_tokens=min(work.row_tokens, stage.fullest),
            rows=stage.rows / stage.steps,
            tokens=stage.tokens / stage.steps,
        )
        hours = time.total * stage.steps / 3600
        return StagePlan(
            stage.name,
            stage.steps,
            stage.rows,
            stage.tokens,
            stage.micro_steps,
            time,
            time.mfu,
            stage.tokens / (hours * 3600),
            hours,
            hours * zero.ranks,
        )


def _datasets(settings: Settings) -> Any:
    from clsgen_dist.training.datasets import datasets_of_recipe

    return datasets_of_recipe(settings)
