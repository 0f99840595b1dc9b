"""``train.cache_frozen`` in a plan: what the frozen layers give is computed once and kept on the disk.

The micro-step that starts from kept states is traced like any other (:mod:`clsgen_dist.plan.tracer`), so what it
computes and gathers is read off. Before the first step each rank computes its share of the sequences: their forward
pass is what the two traces differ by, and so are its gathers; reading tokens and writing states are not timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from clsgen_dist.config import Settings
from clsgen_dist.data.curriculum.stages import plan_stages
from clsgen_dist.data.tables.dataset import RowDataset
from clsgen_dist.model.frozen_layers import content_bytes
from clsgen_dist.plan.cluster import Cluster
from clsgen_dist.plan.communication import FlowKind, flows
from clsgen_dist.plan.meta_trace import MetaTrace
from clsgen_dist.plan.step_time import attention_flops, compute_seconds
from clsgen_dist.plan.workload import Workload
from clsgen_dist.plan.zero3_settings import Zero3Settings
from clsgen_dist.plan.zero3_simulation import simulate
from clsgen_dist.training.datasets import Datasets
from clsgen_dist.training.frozen_cache import require_possible, require_worthwhile
from clsgen_dist.training.sampling_plan import plan_stream, total_steps
from clsgen_dist.training.visited_sequences import visited_sequences

# E sequences


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """What a run keeps."""

    number: int
    tokens: int
    bytes: int
    """On the disk."""


@dataclass(frozen=True, kw_only=True)
class KeptStates:
    """Steps that start from kept states, beside the same steps without."""

    sequences: Sequences
    fill_seconds: float
    """Before the first step, on all ranks at once."""
    step_seconds: float
    computed_step_seconds: float
    """Of the longest stage, were the frozen layers computed in each step."""
    gathered_bytes: float
    computed_gathered_bytes: float
    """What a rank receives of weights in such a step."""


def kept_sequences(
    settings: Settings, rows: Datasets | None, work: Workload, *, layers: int, width: int, itemsize: int
) -> Sequences:
    """What the run would keep, of its rows or, without them, of as many as are stated.

    Raises:
        Unusable: the settings forbid it, no sequence comes twice, or the states are more than is allowed.
    """
    model = settings.model
    trained = 0 if model.finetune == "head" else model.top_layers or layers
    require_possible(settings, layers=layers, first=layers - trained)
    if rows is not None and isinstance(rows.train, RowDataset):
        stream = plan_stream(settings, rows, rank=0, world_size=1)
        visited = visited_sequences(stream, rows.train, total_steps(stream, settings))
        length_E, answer_E, visits, repeats = visited.length_E, visited.answer_E, visited.visits, 1
    else:
        stages = plan_stages(
            settings.curriculum.stages,
            rows=work.rows,
            batch_size=settings.train.batch_size,
            epochs=settings.train.epochs,
            max_steps=settings.train.max_steps,
        )
        total = settings.train.max_steps or stages[-1].end
        visits = sum(min(s.positions, s.steps_before(total) * settings.train.batch_size) for s in stages)
        length_E = np.array([round(work.row_tokens)])
        answer_E, repeats = np.round(work.supervised_share * length_E).astype(int), min(work.rows, visits)
    bytes_E = content_bytes(length_E, answer_E, width, itemsize, all_frozen=trained == 0)
    number, size = len(length_E) * repeats, int(bytes_E.sum()) * repeats
    require_worthwhile(settings.train, visits=visits, sequences=number, size=size)
    return Sequences(number=number, tokens=int(length_E.sum()) * repeats, bytes=size)


def fill_seconds(
    tokens: float, row: float, traces: tuple[MetaTrace, MetaTrace], zero: Zero3Settings, config: Any, cluster: Cluster
) -> float:
    """Seconds in which a rank computes the frozen layers for its sequences, in full passes.

    Args:
        tokens: of its sequences.
        row: tokens of a row.
        traces: of a micro-step that computes the frozen layers, and of one that does not.
        zero, config, cluster: DeepSpeed's settings, the backbone's configuration, the machines.
    """
    whole, _ = traces
    each = attention_flops(config, [row]) / row if not whole.eager_attention else 0.0
    forward, links = [], []
    for trace in traces:
        attention = each * trace.layers_run
        forward.append(compute_seconds(trace, cluster, tokens=trace.tokens, attention_per_token=attention)[0])
        one = flows(trace, zero, simulate(trace, zero), micro_steps=1)
        links.append(sum(flow.seconds(cluster) for flow in one if flow.kind is FlowKind.GATHER_FORWARD))
    return tokens / whole.tokens * max(forward[0] - forward[1], links[0] - links[1], 0.0)
