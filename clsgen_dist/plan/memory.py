"""Memory of a rank by part, as DeepSpeed 0.19.8 allocates it under ZeRO-3 (``runtime/zero/stage3.py``).

With P elements in all, of which T are trained, over W ranks, e bytes an element (2 in bf16, 4 in fp32), each parameter
padded to W:

    weights         e·P/W, and e·p for each of the p elements that every rank keeps complete (persistent ones)
    master          4·T/W: an fp32 copy, made even where the model is fp32
    gradients       e·T/W (the accumulation buffer has the model's dtype)
    optimizer       8·T/W for Adam in fp32; 2·T/W and 8 bytes a block of 256 for bitsandbytes' 8-bit Adam
    reduce bucket   e·reduce_bucket_size, allocated once
    peak            either of the micro-step: activations, gathered weights, gradients being reduced
                    (:func:`clsgen_dist.plan.zero3_simulation.simulate`), or of one optimizer sub-group's step: its
                    gradient in fp32 (4 bytes; in bf16 2 more while it is made) and Adam's temporaries (4 on a GPU, 8
                    on CPU)

hpZ adds e·P/h for the second copy. 4-bit weights keep a quarter of the elements, and 4 bytes a block of 64 that
bitsandbytes does not shard. Offloaded parts are in host memory; for weights on NVMe the host holds the buffers that
they pass through, e·buffer_count·buffer_size (``partitioned_param_swapper.py``), and up to max_in_cpu elements of the
trained ones. A save that is written in the background holds a copy of what it writes. A GPU also has what the CUDA
context, NCCL and cuBLAS take outside the allocator, and an allowance for fragmentation: a share of everything except
weights, master, gradients and optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from clsgen_dist.plan.meta_trace import MetaTrace
from clsgen_dist.plan.optimizer_groups import nvme_placement, sub_group_sizes
from clsgen_dist.plan.zero3_settings import Zero3Settings, persistent_weights, stored_numel
from clsgen_dist.plan.zero3_simulation import Simulation

FRAGMENTATION = 0.1
"""Share of transient memory that the CUDA allocator may waste: an allowance, not a measurement."""
_QUANTISED_BLOCK = 256
_SMALLEST_QUANTISED = 4096
"""bitsandbytes keeps the state of smaller tensors in fp32."""
_NF4_BLOCK = 64


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank by part."""

    device: dict[str, int]
    """On the GPU (or, on CPU, in the process)."""
    host: dict[str, int] = field(default_factory=dict)
    """In the host's memory, of one rank."""
    disk: dict[str, int] = field(default_factory=dict)
    """On the node's NVMe disks, of one rank."""
    moment: str = ""
    """When the peak occurs: ``micro-step`` or ``optimizer step``."""

    @property
    def device_total(self) -> int:
        """Bytes on the GPU at the peak."""
        return sum(self.device.values())

    @property
    def host_total(self) -> int:
        """Bytes of one rank in the host's memory."""
        return sum(self.host.values())


def memory(
    trace: MetaTrace,
    zero: Zero3Settings,
    simulation: Simulation,
    *,
    optimizer: str,
    on_gpu: bool,
    outside_allocator: int = 0,
    checkpoint_copy: int = 0,
    stored_logits: int = 0,
) -> Memory:
    """All parts at the moment that needs most.

    Args:
        optimizer: as ``optim.name``.
        outside_allocator: bytes that CUDA, NCCL and cuBLAS take, on a GPU.
        checkpoint_copy: bytes of this rank's share of a checkpoint, where a save copies it to the host first.
        stored_logits: bytes of logits that the loss keeps for its backward on a GPU, which the trace does not see;
            taken to be there at the peak, so an upper bound.
    """
    states = _optimizer_states(trace, zero, optimizer)
    device = _resident(trace, zero, states)
    host, disk = _offload(trace, zero, states, device)
    if checkpoint_copy:
        host["checkpoint copy"] = checkpoint_copy
    peak = simulation.peak
    step_bytes = _step_bytes(trace, zero, optimizer, on_gpu=on_gpu)
    if peak.total + stored_logits >= step_bytes:
        moment = "micro-step"
        transient = {
            "activations": peak.activations,
            "loss workspace": peak.loss,
            "stored logits": stored_logits,
            "gathered weights": peak.gathered,
            "reducing": peak.reducing,
        }
    else:
        moment = "optimizer step"
        transient = {"optimizer step": step_bytes}
    device |= transient
    if on_gpu:
        device["fragmentation allowance"] = round(FRAGMENTATION * (sum(transient.values()) + device["reduce bucket"]))
        device["CUDA, NCCL, cuBLAS"] = outside_allocator
    device, host, disk = ({k: v for k, v in place.items() if v} for place in (device, host, disk))
    return Memory(device, host, disk, moment)


def _optimizer_states(trace: MetaTrace, zero: Zero3Settings, optimizer: str) -> dict[str, int]:
    trained = sum(zero.shard_numel(stored_numel(w)) for w in trace.weights if w.trainable)
    return {
        "master weights": 4 * trained,
        "gradients": trace.bytes_per_element * trained,
        "optimizer": sum(_state_bytes(optimizer, size) for size in sub_group_sizes(trace, zero)),
    }


def _resident(trace: MetaTrace, zero: Zero3Settings, states: dict[str, int]) -> dict[str, int]:
    """What is always allocated on the GPU, before anything is offloaded."""
    size, weights = trace.bytes_per_element, trace.weights
    persistent = persistent_weights(weights, zero) if zero.ranks > 1 else ()
    hpz = sum(-(-stored_numel(w) // zero.secondary_ranks) for w in weights) if zero.secondary_ranks > 1 else 0
    has_bucket = zero.contiguous_gradients and any(w.trainable for w in weights)
    return {
        "weights": size * sum(zero.shard_numel(stored_numel(w)) for w in weights),
        "persistent weights": size * sum(stored_numel(weights[n]) for n in persistent),
        "quantisation scales": sum(4 * -(-w.numel // _NF4_BLOCK) for w in weights if w.quantised),
        "hpZ copy": size * hpz,
        **states,
        "reduce bucket": size * zero.reduce_bucket if has_bucket else 0,
    }


def _offload(
    trace: MetaTrace, zero: Zero3Settings, states: dict[str, int], device: dict[str, int]
) -> tuple[dict[str, int], dict[str, int]]:
    """Move offloaded parts out of ``device``; returns those of the host and of the disk."""
    size = trace.bytes_per_element
    host: dict[str, int] = {}
    disk: dict[str, int] = {}
    if zero.offload_optimizer != "none":
        # The fp32 gradient of every sub-group stays allocated on the host.
        host |= {**states, "fp32 gradients": states["master weights"]}
        device |= dict.fromkeys(states, 0)
    if zero.offload_parameters == "nvme":
        placement = nvme_placement(trace, zero)
        disk["weights"] = size * (placement.frozen_on_disk + placement.trained_on_disk)
        host["NVMe buffers"] = size * zero.nvme_buffers
        host["weights"] = size * placement.trained_on_host
        device["weights"] = 0
    elif zero.offload_parameters == "cpu":
        host["weights"], device["weights"] = device["weights"], 0
    return host, disk


def _state_bytes(optimizer: str, elements: int) -> int:
    """Both of Adam's moments for a flat tensor."""
    if optimizer == "adamw_8bit" and elements >= _SMALLEST_QUANTISED:
        return 2 * (elements + 4 * -(-elements // _QUANTISED_BLOCK))
    return 8 * elements


def _step_bytes(trace: MetaTrace, zero: Zero3Settings, optimizer: str, *, on_gpu: bool) -> int:
    """Temporary bytes while the largest sub-group is updated, where ``device`` is."""
    offloaded = zero.offload_optimizer != "none"
    if offloaded and on_gpu:
        return 0
    gradient = 4 if trace.bytes_per_element == 4 else 4 + 2
    per_element = gradient if optimizer != "adamw" else max(gradient, 4 + (4 if on_gpu else 8))
    if offloaded:
        per_element -= 4  # the fp32 gradient is resident
    return max(sub_group_sizes(trace, zero), default=0) * per_element
