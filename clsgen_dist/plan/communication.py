"""What an optimizer step moves between ranks, and how long the links take.

An LM head that stays sharded moves states instead (:mod:`clsgen_dist.engine.lm_head`): nothing overlaps with that.
Per micro-step (ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054, section 7): weights are gathered for the forward, and
again for the backward unless they were kept; gradients of trained weights are reduce-scattered in every micro-step. Per
step: the persistent weights are gathered again, DeepSpeed all-reduces one norm for each optimizer sub-group, and the
trainer all-reduces a few numbers, by term of the loss and beside them.

A collective over W ranks on n nodes of g GPUs, of a complete tensor of S bytes, as a ring over all of them (NCCL):

    each rank receives S·(W-1)/W, each node S·(n-1)/n through its g cards
    time = max(S·(W-1)/W / inside, S·(n-1)/n / (g·between)) + hops·latency

ZeRO++ (Wang et al. 2023, arXiv 2306.10209): with hpZ only the first gather of a weight after a step leaves the node
(of frozen weights, only the first of all); qwZ gathers one byte an element; qgZ sends half a byte an element
all-to-all, first inside the node, then a g-th of it between nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from clsgen_dist.plan.cluster import Cluster
from clsgen_dist.plan.meta_trace import MetaTrace
from clsgen_dist.plan.optimizer_groups import sub_group_sizes
from clsgen_dist.plan.zero3_settings import Zero3Settings, persistent_weights, stored_numel
from clsgen_dist.plan.zero3_simulation import Simulation

_QUANTISATION_GROUP = 8000
"""Elements that share an fp32 scale (``CUDAQuantizer.target_group_size``)."""


def _trainer_sums_bytes(terms: int) -> int:
    """Counts and sums of a step in float64, and squared gradient norms in fp32, of so many terms of the loss."""
    return 8 * (4 + terms + 3 + terms) + 4 * (terms + 1)


class FlowKind(StrEnum):
    """Why collectives run."""

    GATHER_FORWARD = "gather forward"
    GATHER_BACKWARD = "gather backward"
    REDUCE = "reduce"
    GATHER_PERSISTENT = "gather persistent"
    HEAD_GATHER = "gather states"
    """Of supervised tokens, for an LM head that stays sharded."""
    HEAD_REDUCE = "reduce states"
    """Their gradients."""
    HEAD_SUMS = "sums of shards"
    """Its maxima and sums over the vocabulary."""
    HEAD_EXCHANGE = "look up"
    """Rows of a tied embedding that stays sharded, and their gradients."""
    SUMS = "sums"
    """All-reduces of single numbers."""

    @property
    def is_gather(self) -> bool:
        """Whether weights are gathered."""
        return self in (FlowKind.GATHER_FORWARD, FlowKind.GATHER_BACKWARD, FlowKind.GATHER_PERSISTENT)


HEAD_KINDS = {
    "all_gather": FlowKind.HEAD_GATHER,
    "reduce_scatter": FlowKind.HEAD_REDUCE,
    "all_reduce": FlowKind.HEAD_SUMS,
    "exchange": FlowKind.HEAD_EXCHANGE,
}
"""By the method of :class:`clsgen_kernels.Ranks`."""


@dataclass(frozen=True)
class Flow:
    """Collectives of one kind in an optimizer step."""

    kind: FlowKind
    whole_bytes: float
    """Of the complete tensors, summed over the calls."""
    calls: float
    ranks: int
    nodes: int
    """Nodes that one collective spans."""

    @property
    def received_bytes(self) -> float:
        """What each rank receives."""
        return self.whole_bytes * (self.ranks - 1) / self.ranks

    def seconds(self, cluster: Cluster) -> float:
        """Time on the cluster's links."""
        if self.ranks == 1:
            return 0.0
        inside = self.received_bytes / (cluster.inside_gb_s * 1e9)
        gpus_per_node = max(1, self.ranks // self.nodes)
        between = self.whole_bytes * (self.nodes - 1) / self.nodes / (gpus_per_node * cluster.between_gb_s * 1e9)
        hops = (self.nodes - 1) + 0.1 * (gpus_per_node - 1)
        return max(inside, between) + self.calls * hops * cluster.latency_us * 1e-6


def flows(trace: MetaTrace, zero: Zero3Settings, simulation: Simulation, *, micro_steps: float) -> list[Flow]:
    """All collectives of one optimizer step.

    Args:
        trace: one micro-step; its element size gives the bytes.
        zero: ranks, nodes, quantisation and hpZ.
        simulation: gathers and reductions of the first micro-step after an optimizer step, and of later ones.
        micro_steps: of an optimizer step, a mean over steps, so it may be a fraction.

    Returns:
        One flow for each purpose and group of ranks, without empty ones; bytes and calls summed over the step.
    """
    found = [
        flow
        for kind in (FlowKind.GATHER_FORWARD, FlowKind.GATHER_BACKWARD)
        for flow in _gathers(trace, zero, simulation, micro_steps, kind)
    ]
    found += _reductions(trace, zero, simulation, micro_steps)
    found += [
        Flow(HEAD_KINDS[name], micro_steps * move.whole_bytes, micro_steps * move.calls, zero.ranks, zero.nodes)
        for name, move in trace.head_moves.items()
    ]
    persistent = persistent_weights(trace.weights, zero) if zero.ranks > 1 else frozenset()
    elements = sum(zero.shard_numel(stored_numel(trace.weights[n])) for n in persistent) * zero.ranks
    size = elements * trace.bytes_per_element
    found.append(Flow(FlowKind.GATHER_PERSISTENT, size, len(persistent), zero.ranks, zero.nodes))
    norms = len(sub_group_sizes(trace, zero))
    norm_bytes = 8 if zero.offload_optimizer == "none" else 4
    sums = norm_bytes * norms + _trainer_sums_bytes(trace.terms)
    found.append(Flow(FlowKind.SUMS, sums, norms + 3, zero.ranks, zero.nodes))
    return [f for f in found if f.calls]


def gathered(found: Sequence[Flow]) -> float:
    """Bytes of weights that a rank receives in these collectives."""
    return sum(flow.received_bytes for flow in found if flow.kind.is_gather)


def _gathers(
    trace: MetaTrace, zero: Zero3Settings, simulation: Simulation, micro_steps: float, kind: FlowKind
) -> list[Flow]:
    backward = kind is FlowKind.GATHER_BACKWARD
    size = 1 + 4 / _QUANTISATION_GROUP if zero.quantised_weights else trace.bytes_per_element

    def flow(first: float, later: float, ranks: int, nodes: int) -> Flow:
        total = calls = 0.0
        for step, times in ((simulation.first, first), (simulation.later, later)):
            gathers = [g for g in step.gathers if g.backward is backward]
            total += times * size * sum(g.elements for g in gathers)
            calls += times * len(gathers)
        return Flow(kind, total, calls, ranks, nodes)

    if zero.secondary_ranks == 1:
        return [flow(1, micro_steps - 1, zero.ranks, zero.nodes)]
    # A trained weight's second copy expires at the step; the first forward gathers it from all ranks.
    from_all = 0.0 if backward else trace.trainable / trace.parameters
    secondary_nodes = -(-zero.secondary_ranks // zero.ranks_per_node)
    return [
        flow(from_all, 0, zero.ranks, zero.nodes),
        flow(1 - from_all, micro_steps - 1, zero.secondary_ranks, secondary_nodes),
    ]


def _reductions(trace: MetaTrace, zero: Zero3Settings, simulation: Simulation, micro_steps: float) -> list[Flow]:
    elements = sum(r.elements for r in simulation.first.reductions) * micro_steps
    calls = len(simulation.first.reductions) * micro_steps
    if not zero.quantised_gradients or zero.nodes == 1:
        return [Flow(FlowKind.REDUCE, elements * trace.bytes_per_element, calls, zero.ranks, zero.nodes)]
    in_node = min(zero.ranks_per_node, zero.ranks)
    return [
        Flow(FlowKind.REDUCE, elements / 2, calls, in_node, 1),
        Flow(FlowKind.REDUCE, elements / 2 / in_node, calls, zero.nodes, zero.nodes),
    ]
