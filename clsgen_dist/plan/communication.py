"""What an optimizer step moves between ranks, and how long the links take.

Per micro-step (ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054, section 7): weights are gathered for the forward, and
again for the backward unless they stayed; gradients of what is trained are reduce-scattered, in every micro-step. Per
step: the small weights that stay whole are gathered anew, DeepSpeed all-reduces one norm for each optimizer sub-group,
and the trainer sums five numbers and three (fp64).

A collective over W ranks on n nodes of g, whole tensor S bytes, as a ring over all of them (NCCL):

    each rank receives S·(W-1)/W, each node S·(n-1)/n through its g cards
    time = max(S·(W-1)/W / inside, S·(n-1)/n / (g·between)) + hops·latency

ZeRO++ (Wang et al. 2023, arXiv 2306.10209): with hpZ only the first gather of a weight after a step leaves the node
(of frozen weights, only the first of all); qwZ gathers one byte an element; qgZ sends half a byte an element
all-to-all, first inside the node, then a g-th of it between nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

from clsgen_dist.plan.cluster import Cluster
from clsgen_dist.plan.meta_trace import MetaTrace
from clsgen_dist.plan.zero3_simulation import Sharding, Walk, optimizer_groups, persistent, stored

_QUANTISATION_GROUP = 8000
"""Elements that share an fp32 scale (``CUDAQuantizer.target_group_size``)."""
_TRAINER_SUMS = (5 + 3) * 8


@dataclass(frozen=True)
class Flow:
    """Collectives of one kind in an optimizer step."""

    kind: str
    """``gather forward``, ``gather backward``, ``reduce``, ``gather persistent`` or ``sums``."""
    whole_bytes: float
    """Of the whole tensors, summed over the calls."""
    calls: float
    ranks: int
    nodes: int
    """Nodes that one collective spans."""

    @property
    def received_bytes(self) -> float:
        """What each rank receives."""
        return self.whole_bytes * (self.ranks - 1) / self.ranks

    def seconds(self, cluster: Cluster) -> float:
        """On the cluster's links."""
        if self.ranks == 1:
            return 0.0
        inside = self.received_bytes / (cluster.inside_gb_s * 1e9)
        here = max(1, self.ranks // self.nodes)
        between = self.whole_bytes * (self.nodes - 1) / self.nodes / (here * cluster.between_gb_s * 1e9)
        hops = (self.nodes - 1) + 0.1 * (here - 1)
        return max(inside, between) + self.calls * hops * cluster.latency_us * 1e-6


def flows(rehearsal: MetaTrace, zero: Sharding, walked: Walk, *, micro_steps: float) -> list[Flow]:
    """All collectives of one optimizer step of ``micro_steps`` micro-steps."""
    nodes = -(-zero.ranks // zero.ranks_per_node)
    found = [flow for backward in (False, True) for flow in _gathers(rehearsal, zero, walked, micro_steps, backward)]
    found += _reductions(rehearsal, zero, walked, micro_steps)
    small = persistent(rehearsal.weights, zero) if zero.ranks > 1 else frozenset()
    whole_small = sum(zero.part(stored(rehearsal.weights[n])) for n in small) * zero.ranks
    found.append(Flow("gather persistent", whole_small * rehearsal.bytes_per_element, len(small), zero.ranks, nodes))
    norms = len(optimizer_groups(rehearsal, zero))
    norm_bytes = 8 if zero.offload_optimizer == "none" else 4
    found.append(Flow("sums", norm_bytes * norms + _TRAINER_SUMS, norms + 2, zero.ranks, nodes))
    return [f for f in found if f.calls]


def _gathers(rehearsal: MetaTrace, zero: Sharding, walked: Walk, micro_steps: float, backward: bool) -> list[Flow]:
    kind = f"gather {'backward' if backward else 'forward'}"
    size = 1 + 4 / _QUANTISATION_GROUP if zero.quantised_weights else rehearsal.bytes_per_element
    nodes = -(-zero.ranks // zero.ranks_per_node)

    def flow(first: float, later: float, ranks: int, spanned: int) -> Flow:
        whole = calls = 0.0
        for step, times in ((walked.first, first), (walked.later, later)):
            mine = [g for g in step.gathers if g.backward is backward]
            whole += times * size * sum(g.elements for g in mine)
            calls += times * len(mine)
        return Flow(kind, whole, calls, ranks, spanned)

    if zero.secondary_ranks == 1:
        return [flow(1, micro_steps - 1, zero.ranks, nodes)]
    # A trained weight's second copy expires at the step; the first forward gathers it from all ranks.
    far = 0.0 if backward else rehearsal.trainable / rehearsal.parameters
    spanned = -(-zero.secondary_ranks // zero.ranks_per_node)
    return [flow(far, 0, zero.ranks, nodes), flow(1 - far, micro_steps - 1, zero.secondary_ranks, spanned)]


def _reductions(rehearsal: MetaTrace, zero: Sharding, walked: Walk, micro_steps: float) -> list[Flow]:
    nodes = -(-zero.ranks // zero.ranks_per_node)
    whole = sum(r.elements for r in walked.first.reductions) * micro_steps
    calls = len(walked.first.reductions) * micro_steps
    if not zero.quantised_gradients or nodes == 1:
        return [Flow("reduce", whole * rehearsal.bytes_per_element, calls, zero.ranks, nodes)]
    here = min(zero.ranks_per_node, zero.ranks)
    return [Flow("reduce", whole / 2, calls, here, 1), Flow("reduce", whole / 2 / here, calls, nodes, nodes)]
