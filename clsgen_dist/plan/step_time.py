"""How long an optimizer step takes, by the model stated here; docs/plan_validation.md compares it with published runs.

    compute   a roofline whose parts run one after another: matrix products of the traced micro-step at
              peak · achievable; attention, which the trace excludes, at peak · achievable_attention: causal, over
              sequences of t tokens, 2·t²·H·E FLOPs forward in each layer, 2.5 times that backward (flash-attention
              recomputes the scores: Dao 2023, arXiv 2307.08691), and the forward again under checkpointing; and what
              all other operations of the backbone read and write, unfused as transformers runs them, at the
              bandwidth of the GPU's memory; 4-bit weights are dequantised to bf16 at each use. But no less than the
              host takes to launch the kernels, one after another
    links     :func:`clsgen_dist.plan.communication.flows`; forward and backward each take
              max(compute, links) + (1 - overlap)·min(compute, links): with overlap_comm gathers and reductions run
              during the compute except for the share (1 - overlap); without it, one after the other
    optimizer 50 bytes moved in GPU memory for each trained element of the rank (unfused AdamW: gradient, moments,
              master and their intermediates). Offloaded: a node's elements at the rate of CPU Adam; gradients to the
              host in each micro-step and weights back at the rate that offloading reaches, which is far below PCIe's;
              none of it overlapped. Offloaded weights pass PCIe for each gather; on NVMe they are read from it, and
              written back once a step, if the cluster's file has its rate
    data      the loader is a thread three steps ahead: training waits only where a step's rows take longer than the
              step

MFU = model FLOPs / (ranks · time · peak), model FLOPs being those above without recomputation, for the tokens of all
ranks (the fullest rank sets the time), attention's backward counted as twice its forward. The peak is that of the
precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clsgen_dist.plan.cluster import Cluster
from clsgen_dist.plan.communication import HEAD_KINDS, Flow, FlowKind
from clsgen_dist.plan.meta_trace import MetaTrace
from clsgen_dist.plan.optimizer_groups import nvme_placement
from clsgen_dist.plan.workload import StageLoad
from clsgen_dist.plan.zero3_settings import Zero3Settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PLANNED_OVER_PUBLISHED = (0.93, 1.42)
"""10th and 90th percentile of planned speed over published speed, for the 68 runs of benchmarks/published_runs.csv that
were held out when the constants were set (benchmarks/plan.py prints them)."""
_ADAM_DEVICE_BYTES = 50


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step by part."""

    compute: float
    exposed_links: float
    """Communication that no compute hides."""
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


def attention_flops(config: PreTrainedConfig, lengths: Sequence[float]) -> float:
    """Forward FLOPs of all layers' scores and weighted sums over packed causal sequences, within sliding windows.

    A configuration that has a window and does not name the layers that use it (Mistral, Phi-3) uses it in all of them.
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
            span = min(length, window) if kind == "sliding_attention" and window else length
            # Pairs (query, key): a triangle of the window, then a band as wide as it.
            total += 4 * heads * size * (span * span / 2 + (length - span) * span)
    return total


def step_time(
    trace: MetaTrace,
    config: PreTrainedConfig,
    zero: Zero3Settings,
    flows: Sequence[Flow],
    cluster: Cluster,
    stage: StageLoad,
    *,
    row_tokens: float,
) -> StepTime:
    """How long a step of a stage takes, by part.

    Args:
        trace: one micro-step of the model, of any number of tokens: costs are scaled to the fullest rank's.
        config: the backbone's configuration, for attention, which the trace excludes.
        zero: partitions and offloading.
        flows: all collectives of the step, from :func:`clsgen_dist.plan.communication.flows`.
        cluster: rates of its GPUs, links and hosts.
        stage: micro-steps, tokens of the fullest rank, and rows and tokens of all ranks.
        row_tokens: length that every sequence is assumed to have, in tokens.

    Raises:
        SettingsError: the cluster does not name the chip's peak in the precision of the trace.
    """
    micro_steps, rows, tokens = stage.micro_steps, stage.rows / stage.steps, stage.tokens / stage.steps
    attention = 0.0 if trace.eager_attention else attention_flops(config, [row_tokens]) / row_tokens * trace.layers_run
    forward, total = compute_seconds(trace, cluster, tokens=stage.fullest, attention_per_token=attention)
    overlap = cluster.overlap if zero.overlap_comm else 0.0

    def links(*kinds: FlowKind) -> float:
        return sum(f.seconds(cluster) for f in flows if f.kind in kinds)

    in_forward = links(FlowKind.GATHER_FORWARD)
    in_backward = links(FlowKind.GATHER_BACKWARD, FlowKind.REDUCE)
    after = links(FlowKind.GATHER_PERSISTENT, FlowKind.SUMS, *HEAD_KINDS.values())
    exposed = (
        _exposed(forward * micro_steps, in_forward, overlap)
        + _exposed((total - forward) * micro_steps, in_backward, overlap)
        + after
    )
    compute = total * micro_steps
    optimizer, offload = _update(trace, zero, flows, cluster, micro_steps)
    busy = compute + exposed + optimizer + offload
    flops_per_token = (trace.matmul_flops - trace.recomputed_flops) / trace.tokens + 3 * attention
    return StepTime(
        compute=compute,
        exposed_links=exposed,
        links=in_forward + in_backward + after,
        optimizer=optimizer,
        offload=offload,
        data_wait=max(0.0, rows / zero.ranks / cluster.batched_rows_s - busy),
        model_flops=flops_per_token * tokens / zero.ranks,
        peak=cluster.peak(trace.bytes_per_element),
    )


def compute_seconds(
    trace: MetaTrace, cluster: Cluster, *, tokens: float, attention_per_token: float
) -> tuple[float, float]:
    """Seconds of a micro-step of ``tokens``: of its forward, and of forward and backward together."""
    checkpointed = trace.recomputed_flops > 0
    share = tokens / trace.tokens
    attention = attention_per_token * tokens
    peak = cluster.peak(trace.bytes_per_element)
    products, scores, bandwidth = peak * cluster.achievable, peak * cluster.achievable_attention, _bandwidth(cluster)
    dequantising = trace.quantised * 1e-9 / cluster.unpacked_g_s
    forward = (trace.forward_flops * share / products + attention / scores
               + trace.forward_moved_bytes * share / bandwidth + dequantising)  # fmt: skip
    total = (trace.matmul_flops * share / products + attention * (3.5 + checkpointed) / scores
             + trace.moved_bytes * share / bandwidth + (2 + checkpointed) * dequantising)  # fmt: skip
    launch = 1e-6 * cluster.launch_us
    forward_launches, launches = trace.forward_launches * launch, trace.launches * launch
    total = max(forward, forward_launches) + max(total - forward, launches - forward_launches)
    return max(forward, forward_launches), total


def _bandwidth(cluster: Cluster) -> float:
    """Bytes a second that plain operations move in a GPU's memory."""
    return cluster.hbm_gb_s * 1e9 * cluster.achievable_hbm


def _exposed(compute: float, links: float, overlap: float) -> float:
    return max(0.0, links - compute) + (1 - overlap) * min(compute, links)


def _update(
    trace: MetaTrace, zero: Zero3Settings, flows: Sequence[Flow], cluster: Cluster, micro_steps: float
) -> tuple[float, float]:
    """Seconds of the optimizer's step, and of transfers between GPU, host and NVMe."""
    size = trace.bytes_per_element
    trained = trace.trainable / zero.ranks
    on_node = min(zero.ranks_per_node, zero.ranks)
    offload = 0.0
    if zero.offload_parameters != "none":
        gathered = sum(f.whole_bytes / f.ranks for f in flows if f.kind.is_gather)
        offload += gathered / (cluster.pcie_gb_s * 1e9)
        if zero.offload_parameters == "nvme" and cluster.nvme_gb_s is not None:
            placement = nvme_placement(trace, zero)
            on_disk = placement.frozen_on_disk + placement.trained_on_disk
            read = gathered * on_disk * zero.ranks / trace.parameters
            offload += (read + size * placement.trained_on_disk) * on_node / (cluster.nvme_gb_s * 1e9)
    if zero.offload_optimizer == "none":
        return _ADAM_DEVICE_BYTES * trained / _bandwidth(cluster), offload
    offload += size * trained * (micro_steps + 1) / (cluster.offload_gb_s * 1e9)
    return trained * on_node / (cluster.host_adam_b_s * 1e9), offload
