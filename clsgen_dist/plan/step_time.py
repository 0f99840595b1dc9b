"""How long an optimizer step takes, by a model that is stated here and checked in docs/plan.md.

    compute   a roofline whose parts come one after another: matrix products of the rehearsed micro-step at
              peak · achievable; attention, which the rehearsal leaves out, at peak · achievable_attention: causal, over
              sequences of t tokens, 2·t²·H·E FLOPs forward in each layer, 2.5 times that backward (flash-attention
              recomputes the scores: Dao 2023, arXiv 2307.08691), and the forward again under checkpointing; and what
              all other operations of the backbone read and write, unfused as transformers runs them, at the
              bandwidth of the GPU's memory; 4-bit weights are turned into bf16 at each use. But no less than the host
              takes to start the kernels, one after another
    links     :func:`clsgen_dist.plan.communication.flows`; forward and backward each take
              max(compute, links) + (1 - overlap)·min(compute, links): with overlap_comm gathers and reductions run
              beside the compute but for the share (1 - overlap); without it, one after the other
    optimizer 50 bytes moved in GPU memory for each trained element of the rank (unfused AdamW: gradient, moments,
              master and their intermediates). Offloaded: a node's elements at the rate of CPU Adam; gradients down in
              each micro-step and weights up at the rate that offloading reaches, which is far below PCIe's; nothing of
              it overlapped. Offloaded weights pass PCIe for each gather; on NVMe they are read from it, and written
              back once a step, if the cluster's file says how fast
    data      the loader is a thread three steps ahead: waited for only where a step's rows take longer than the step

MFU = model FLOPs / (ranks · time · peak), model FLOPs being those above without recomputation, for the tokens of all
ranks (the fuller ones set the time), attention's backward counted twice its forward. The peak is that of the precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clsgen_dist.plan.cluster import Cluster
from clsgen_dist.plan.communication import Flow
from clsgen_dist.plan.meta_trace import MetaTrace
from clsgen_dist.plan.zero3_simulation import Sharding, on_nvme

PLANNED_OVER_PUBLISHED = (0.93, 1.42)
"""Lowest and highest tenth of planned speed against published speed, over the 68 runs of
benchmarks/published_runs.csv that were kept back when the constants were set (benchmarks/plan.py prints it)."""
_ADAM_DEVICE_BYTES = 50


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step by part."""

    compute: float
    exposed_links: float
    """Communication that nothing hides."""
    links: float
    """All communication, hidden or not; not part of the sum."""
    optimizer: float
    offload: float
    data_wait: float
    model_flops: float
    """Of the mean rank, without recomputation."""
    peak: float
    """FLOP/s of a GPU in the precision of the run."""

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.compute + self.exposed_links + self.optimizer + self.offload + self.data_wait

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation of the peak."""
        return self.model_flops / (self.total * self.peak)


def attention_flops(config: Any, lengths: Sequence[float]) -> float:
    """Forward FLOPs of all layers' scores and sums over packed causal sequences, sliding windows cut.

    A configuration that has a window and does not say which layers (Mistral, Phi-3) means all of them.
    """
    text = config.get_text_config()
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    layers = text.num_hidden_layers
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * layers
    total = 0.0
    for kind in kinds:
        for length in lengths:
            seen = min(length, window) if kind == "sliding_attention" and window else length
            # Pairs (query, key): a triangle of the window, then a band as wide as it.
            total += 4 * heads * size * (seen * seen / 2 + (length - seen) * seen)
    return total


def step_time(
    rehearsal: MetaTrace,
    config: Any,
    zero: Sharding,
    flows: Sequence[Flow],
    cluster: Cluster,
    *,
    micro_steps: float,
    fullest_tokens: float,
    row_tokens: float,
    rows: float,
    tokens: float,
) -> StepTime:
    """Seconds of a step of ``micro_steps`` micro-steps whose fullest rank has ``fullest_tokens``.

    ``rows``, ``tokens``: of the whole step, all ranks. Sequences are taken to have ``row_tokens`` each.
    """
    checkpointed = rehearsal.recomputed_flops > 0
    share = fullest_tokens / rehearsal.tokens
    attention_per_token = 0.0 if rehearsal.eager else attention_flops(config, [row_tokens]) / row_tokens
    attention = attention_per_token * fullest_tokens
    peak = cluster.peak(rehearsal.bytes_per_element)
    products, scores, bandwidth = peak * cluster.achievable, peak * cluster.achievable_attention, _hbm(cluster)
    unpacking = rehearsal.quantised * 1e-9 / cluster.unpacked_g_s
    forward = (rehearsal.forward_flops * share / products + attention / scores
               + rehearsal.forward_moved_bytes * share / bandwidth + unpacking)  # fmt: skip
    whole = (rehearsal.matmul_flops * share / products + attention * (3.5 + checkpointed) / scores
             + rehearsal.moved_bytes * share / bandwidth + (2 + checkpointed) * unpacking)  # fmt: skip
    launch = 1e-6 * cluster.launch_us
    forward_launches, launches = rehearsal.forward_launches * launch, rehearsal.launches * launch
    whole = max(forward, forward_launches) + max(whole - forward, launches - forward_launches)
    forward = max(forward, forward_launches)
    overlap = cluster.overlap if zero.overlap_comm else 0.0
    sent_forward = sum(f.seconds(cluster) for f in flows if f.kind == "gather forward")
    sent_backward = sum(f.seconds(cluster) for f in flows if f.kind in ("gather backward", "reduce"))
    after = sum(f.seconds(cluster) for f in flows if f.kind in ("gather persistent", "sums"))
    exposed = (
        _exposed(forward * micro_steps, sent_forward, overlap)
        + _exposed((whole - forward) * micro_steps, sent_backward, overlap)
        + after
    )
    optimizer, offload = _update(rehearsal, zero, flows, cluster, micro_steps)
    per_token = (rehearsal.matmul_flops - rehearsal.recomputed_flops) / rehearsal.tokens + 3 * attention_per_token
    compute = whole * micro_steps
    busy = compute + exposed + optimizer + offload
    wait = max(0.0, rows / zero.ranks / cluster.batched_rows_s - busy)
    return StepTime(
        compute, exposed, sent_forward + sent_backward + after, optimizer, offload, wait,
        per_token * tokens / zero.ranks, peak,
    )  # fmt: skip


def _hbm(cluster: Cluster) -> float:
    """Bytes a second that plain operations move in a GPU's memory."""
    return cluster.hbm_gb_s * 1e9 * cluster.achievable_hbm


def _exposed(compute: float, links: float, overlap: float) -> float:
    return max(0.0, links - compute) + (1 - overlap) * min(compute, links)


def _update(
    rehearsal: MetaTrace, zero: Sharding, flows: Sequence[Flow], cluster: Cluster, micro_steps: float
) -> tuple[float, float]:
    """Seconds of the optimizer's step, and of what is moved between GPU and host."""
    size = rehearsal.bytes_per_element
    share = rehearsal.trainable / zero.ranks
    pcie = cluster.pcie_gb_s * 1e9
    on_node = min(zero.ranks_per_node, zero.ranks)
    moved = 0.0
    if zero.offload_parameters != "none":
        gathered = sum(f.whole_bytes / f.ranks for f in flows if f.kind.startswith("gather"))
        moved += gathered / pcie
        if zero.offload_parameters == "nvme" and cluster.nvme_gb_s is not None:
            there = on_nvme(rehearsal, zero)
            read = gathered * (there.frozen + there.trained) * zero.ranks / rehearsal.parameters
            moved += (read + size * there.trained) * on_node / (cluster.nvme_gb_s * 1e9)
    if zero.offload_optimizer == "none":
        return _ADAM_DEVICE_BYTES * share / _hbm(cluster), moved
    moved += size * share * (micro_steps + 1) / (cluster.offload_gb_s * 1e9)
    return share * on_node / (cluster.host_adam_b_s * 1e9), moved
