"""``clsgen plan``: does a recipe fit on a cluster, how long does it take, and what does it cost.

It reads the recipe, plans the stages, completes DeepSpeed's file and builds the model as training does, but without
allocating memory.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from clsgen_dist.config import Settings
from clsgen_dist.engine.settings import OPTIMIZERS
from clsgen_dist.errors import SettingsError
from clsgen_dist.model.backbone import backbone_path
from clsgen_dist.model.context_length import require_context
from clsgen_dist.plan import workload
from clsgen_dist.plan.cluster import GIB, Cluster
from clsgen_dist.plan.communication import Flow, FlowKind, flows, gathered
from clsgen_dist.plan.goodput import Faults, Goodput, goodput
from clsgen_dist.plan.kept_states import KeptStates, fill_seconds, kept_sequences
from clsgen_dist.plan.memory import Memory, memory
from clsgen_dist.plan.meta_model import ModelSpec, attention_on_gpu, meta_lm, open_config
from clsgen_dist.plan.meta_trace import MetaTrace
from clsgen_dist.plan.step_time import PLANNED_OVER_PUBLISHED, StepTime, step_time
from clsgen_dist.plan.tracer import trace_micro_step
from clsgen_dist.plan.workload import StageLoad, Workload
from clsgen_dist.plan.zero3_settings import Zero3Settings, zero3_settings
from clsgen_dist.plan.zero3_simulation import Simulation, simulate
from clsgen_dist.training.build_engine import planned_zero_config, shards_lm_head
from clsgen_dist.training.datasets import datasets_of_recipe
from clsgen_dist.training.frozen_cache import Unusable

logger = logging.getLogger(__name__)

_HOST_SHARE = 0.9
"""Share of a node's memory that the ranks may use."""


@dataclass(frozen=True, kw_only=True)
class RowAssumptions:
    """Rows as described on the command line, instead of those of ``data.train``; None: not described."""

    rows: int | None = None
    tokens_per_row: int | None = None
    supervised_per_row: int | None = None

    @property
    def is_set(self) -> bool:
        """Whether anything is described."""
        return any(value is not None for value in dataclasses.astuple(self))


@dataclass(frozen=True, kw_only=True)
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
        """The range that holds four of five published runs, if planned like this one."""
        low, high = PLANNED_OVER_PUBLISHED
        return self.tokens_per_second / high, self.tokens_per_second / low


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe on a number of nodes of a cluster."""

    settings: Settings
    cluster: Cluster
    nodes: int
    gpus_per_node: int
    trace: MetaTrace
    zero: Zero3Settings
    simulation: Simulation
    memory: Memory
    flows: list[Flow]
    """Of an optimizer step of the longest stage."""
    stages: list[StagePlan]
    workload: Workload
    kept: KeptStates | None = None
    """What ``train.cache_frozen`` does; None: nothing."""
    not_kept: str | None = None
    """Why ``train.cache_frozen: auto`` does nothing."""

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
        """Of all stages with saves and faults; None if they would never finish."""
        good = self.goodput.at_advised
        return self.hours / good if good > 1e-6 else None

    @property
    def spare_bytes(self) -> int:
        """Free memory of a GPU; below 0 the plan does not fit."""
        return self.cluster.memory_bytes - self.memory.device_total

    @property
    def spare_host_bytes(self) -> float:
        """Free memory of a node's host."""
        return self._usable_host_bytes - self.memory.host_total * self.gpus_per_node

    @property
    def _usable_host_bytes(self) -> float:
        return _HOST_SHARE * self.cluster.host_memory_gib * GIB

    @property
    def fits(self) -> bool:
        """Whether GPU and host have enough memory."""
        return self.spare_bytes >= 0 and self.spare_host_bytes >= 0

    @property
    def checkpoint_bytes(self) -> float:
        """Size of one checkpoint, all ranks."""
        return _checkpoint_bytes(self.settings, self.trace)

    @property
    def write_seconds(self) -> float:
        """Time to write a save's files and read them once for their checksums, all nodes at once."""
        cluster = self.cluster
        rates = [
            min(self.nodes * rate, cluster.disk_total_gb_s)
            for rate in (cluster.disk_write_gb_s, cluster.disk_read_gb_s)
        ]
        return sum(self.checkpoint_bytes / 1e9 / rate for rate in rates)

    @property
    def canary_seconds(self) -> float:
        """Time to score the canary at each save: a forward pass of one short row, which gathers all weights."""
        step = flows(self.trace, self.zero, self.simulation, micro_steps=1)
        return sum(flow.seconds(self.cluster) for flow in step if flow.kind is FlowKind.GATHER_FORWARD)

    @property
    def stall_seconds(self) -> float:
        """How long a save stops the run: the canary, the copy to the host, and the write unless it is asynchronous."""
        size_gb, cluster = self.checkpoint_bytes / 1e9, self.cluster
        copy = max(size_gb / self.ranks / cluster.staging_gb_s, size_gb / cluster.staging_total_gb_s)
        write = 0.0 if self.settings.checkpoint.asynchronous else self.write_seconds
        return self.canary_seconds + copy + write

    @property
    def worst_shortfall(self) -> float:
        """Missing memory as a share of the GPU's or the host's, whichever is worse; below 0 the plan fits."""
        return max(-self.spare_bytes / self.cluster.memory_bytes, -self.spare_host_bytes / self._usable_host_bytes)

    @property
    def notes(self) -> list[str]:
        """Warnings, and costs that the plan excludes, a line each."""
        ranks, rows = self.ranks, self.settings.train.batch_size
        longest, positions = self.workload.longest, self.trace.max_positions
        found = []
        if self.not_kept:
            found.append(f"train.cache_frozen: the frozen layers are computed in every step, as {self.not_kept}")
        if rows < ranks:
            found.append(
                f"a step has {rows:,} rows for {ranks:,} ranks, so {ranks - rows:,} ranks idle; raise "
                "train.batch_size, or use fewer nodes"
            )
        if 1 < self.zero.ranks_per_node < self.zero.secondary_ranks:
            found.append(
                f"zero_hpz_partition_size is {self.zero.secondary_ranks}, but a node has {self.zero.ranks_per_node} "
                "GPUs: its gathers leave the node, which hpZ is meant to avoid; set it to the GPUs of a node"
            )
        if positions and longest > positions:
            found.append(
                f"rows have up to {longest:,} tokens, more than the backbone's max_position_embeddings {positions:,}; "
                "lower data.max_prompt_length"
            )
        if self.zero.offload_parameters == "nvme" and self.cluster.nvme_gb_s is None:
            found.append(
                "the cluster has no nvme_gb_s, so times exclude reading weights from NVMe; add it to the cluster's file"
            )
        return found

    @cached_property
    def goodput(self) -> Goodput:
        """Long-run goodput on this cluster, against the interval between checkpoints."""
        faults = Faults(
            gpus=self.ranks,
            per_gpu_hour=self.cluster.failures_per_gpu_hour,
            restart_hours=self.cluster.restart_minutes / 60,
            save_hours=self.stall_seconds / 3600,
            write_hours=self.write_seconds / 3600 if self.settings.checkpoint.asynchronous else 0.0,
        )
        return goodput(faults)


def _checkpoint_bytes(settings: Settings, trace: MetaTrace) -> float:
    """Size of a checkpoint: only trained parameters are written."""
    return OPTIMIZERS[settings.optim.name].checkpoint_bytes * trace.trainable


class Planner:
    """Plans one recipe again and again, with other settings: a model is traced once for each micro-batch."""

    def __init__(self, settings: Settings, cluster: Cluster, assumptions: RowAssumptions) -> None:
        self.cluster, self.assumptions = cluster, assumptions
        self._backbone = backbone_path(settings.model.backbone)
        self._config = open_config(self._backbone)
        if not assumptions.is_set:
            require_context(self._config, settings.data.max_prompt_length, settings.data.max_explanation_length)
        read = not assumptions.is_set and workload.rows_are_available(settings)
        self._rows = datasets_of_recipe(settings) if read else None
        if self._rows is None and not assumptions.is_set:
            logger.info("%s is not available here: rows are assumed", settings.data.train)
        self._classes = len(self._rows.labels if self._rows else settings.data.labels or ["no", "yes"])
        self._traces: dict[str, MetaTrace] = {}

    def plan(self, settings: Settings, *, nodes: int, gpus_per_node: int | None = None) -> Plan:
        """The recipe on ``nodes`` nodes.

        Raises:
            SettingsError: settings that training would refuse too, or that cannot run on a cluster of GPUs.
            ModelError: a backbone that cannot be trained or planned.
        """
        per_node = gpus_per_node or self.cluster.gpus_per_node
        if per_node > self.cluster.gpus_per_node:
            raise SettingsError(
                f"--gpus_per_node is {per_node}, expected at most {self.cluster.gpus_per_node}, which a node of "
                f"{self.cluster.name!r} has; lower it, or name another cluster"
            )
        ranks = nodes * per_node
        config = planned_zero_config(settings, ranks, on_gpu=True)
        zero = zero3_settings(config, ranks=ranks, ranks_per_node=per_node)
        work = self._workload(settings, ranks)
        trace = self._trace(settings, work, config, ranks)
        if trace.learned_positions and trace.max_positions and work.longest > trace.max_positions:
            raise SettingsError(
                f"rows have up to {work.longest} tokens, but model.backbone has {trace.max_positions} learned "
                "positions; lower data.max_prompt_length (or --tokens_per_row), or use a backbone with more"
            )
        simulation = simulate(trace, zero)
        kept, stages, traffic, why = self._kept(settings, work, trace, zero, config)
        asynchronous = settings.checkpoint.asynchronous
        return Plan(
            settings=settings,
            cluster=self.cluster,
            nodes=nodes,
            gpus_per_node=per_node,
            trace=trace,
            zero=zero,
            simulation=simulation,
            memory=memory(
                trace,
                zero,
                simulation,
                optimizer=settings.optim.name,
                on_gpu=True,
                outside_allocator=self.cluster.reserved_bytes,
                checkpoint_copy=round(_checkpoint_bytes(settings, trace) / ranks) if asynchronous else 0,
                stored_logits=workload.stored_logits(
                    settings, work, self._config, trace.bytes_per_element, self._head_ranks(settings, config, ranks)
                ),
            ),
            flows=traffic,
            stages=stages,
            workload=work,
            kept=kept,
            not_kept=why,
        )

    @cached_property
    def _lm(self) -> Any:
        return meta_lm(self._config, self._backbone)

    def _kept(
        self, settings: Settings, work: Workload, trace: MetaTrace, zero: Zero3Settings, config: dict[str, Any]
    ) -> tuple[KeptStates | None, list[StagePlan], list[Flow], str | None]:
        """What ``train.cache_frozen`` does, the stages and the traffic of a step with it; or why it does nothing."""
        longest = max(work.stages, key=lambda stage: stage.steps)

        def steps(of: MetaTrace) -> tuple[list[StagePlan], list[Flow]]:
            simulation = simulate(of, zero)
            stages = [self._stage(stage, work, of, zero, simulation) for stage in work.stages]
            return stages, flows(of, zero, simulation, micro_steps=longest.micro_steps)

        stages, traffic = steps(trace)
        mode = settings.train.cache_frozen
        if mode == "off":
            return None, stages, traffic, None
        text = self._config.get_text_config()
        try:
            sequences = kept_sequences(
                settings,
                self._rows,
                work,
                layers=text.num_hidden_layers,
                width=text.hidden_size,
                itemsize=trace.bytes_per_element,
            )
        except Unusable as why:
            if mode == "on":
                raise SettingsError(f"train.cache_frozen is on, but {why}") from None
            return None, stages, traffic, str(why)
        short = self._trace(settings, work, config, zero.ranks, known=True)
        kept_stages, kept_traffic = steps(short)
        at = work.stages.index(longest)
        kept = KeptStates(
            sequences=sequences,
            fill_seconds=fill_seconds(
                sequences.tokens / zero.ranks, work.row_tokens, (trace, short), zero, self._config, self.cluster
            ),
            step_seconds=kept_stages[at].time.total,
            computed_step_seconds=stages[at].time.total,
            gathered_bytes=gathered(kept_traffic),
            computed_gathered_bytes=gathered(traffic),
        )
        return kept, kept_stages, kept_traffic, None

    def _workload(self, settings: Settings, ranks: int) -> Workload:
        if self._rows is not None:
            return workload.workload_of_rows(settings, self._rows, ranks=ranks)
        return workload.assumed_workload(settings, ranks=ranks, **dataclasses.asdict(self.assumptions))

    def _trace(
        self, settings: Settings, work: Workload, config: dict[str, Any], ranks: int, *, known: bool = False
    ) -> MetaTrace:
        model, objectives, bf16 = settings.model, settings.objectives, config["bf16"]["enabled"]
        lengths, supervised, texts = work.full_micro_batch()
        terms = objectives.terms_that_run_more(model.decide)
        options: dict[str, Any] = {
            "sequence_lengths": lengths,
            "supervised": supervised,
            "activation_checkpointing": settings.train.activation_checkpointing,
            "attention": attention_on_gpu(model.attention),
            "texts": texts,
            "head_ranks": self._head_ranks(settings, config, ranks),
            "known": known,
            "stores_logits": objectives.stored_logits_gib > 0,
        }
        key = repr((model, bf16, options, terms and [objectives.preference, objectives.retention]))
        if key not in self._traces:
            spec = ModelSpec.from_settings(model, backbone=self._backbone, classes=self._classes, bf16=bf16)
            self._traces[key] = trace_micro_step(spec, terms=terms, **options)
        return self._traces[key]

    def _head_ranks(self, settings: Settings, config: dict[str, Any], ranks: int) -> int:
        """Over how many ranks the LM head stays sharded; 0: it is gathered."""
        return ranks if shards_lm_head(settings, self._lm, config, ranks) else 0

    def _stage(
        self, stage: StageLoad, work: Workload, trace: MetaTrace, zero: Zero3Settings, simulation: Simulation
    ) -> StagePlan:
        time = step_time(
            trace,
            self._config,
            zero,
            flows(trace, zero, simulation, micro_steps=stage.micro_steps),
            self.cluster,
            stage,
            row_tokens=min(work.row_tokens, stage.fullest),
        )
        hours = time.total * stage.steps / 3600
        return StagePlan(
            name=stage.name,
            steps=stage.steps,
            rows=stage.rows,
            tokens=stage.tokens,
            micro_steps=stage.micro_steps,
            time=time,
            mfu=time.mfu,
            tokens_per_second=stage.tokens / (hours * 3600),
            hours=hours,
            gpu_hours=hours * zero.ranks,
        )
