"""Memory of a rank by part, as DeepSpeed 0.19.8 allocates it under ZeRO-3 (``runtime/zero/stage3.py``).

With P elements in all, of which T are trained, over W ranks, e bytes an element (2 in bf16, 4 in fp32), each parameter
padded to W:

    weights         e·P/W, and e·p for each of the p elements that stay whole on every rank (persistent ones)
    master          4·T/W: an fp32 copy, made even where the model is fp32
    gradients       e·T/W (the accumulation buffer has the model's dtype)
    optimizer       8·T/W for Adam in fp32; 2·T/W and 8 bytes a block of 256 for bitsandbytes' 8-bit Adam
    reduce bucket   e·reduce_bucket_size, allocated once
    peak of         either the micro-step: activations, gathered weights, gradients being reduced
                    (:func:`clsgen_dist.plan.zero3_simulation.walk`), or the step of one optimizer sub-group: its
                    gradient in fp32 (4 bytes; in bf16 2 more while it is made) and what Adam computes on the way (4 on
                    a GPU, 8 on CPU)

hpZ adds e·P/h for the second copy. 4-bit weights keep a quarter of the elements, and 4 bytes a block of 64 that
bitsandbytes does not shard. Offloaded parts are the host's; of weights on NVMe the host holds the buffers that they
pass through, e·buffer_count·buffer_size (``partitioned_param_swapper.py``), and of the trained ones up to max_in_cpu
elements. A save that is written while training goes
on holds a copy of what it writes. On a GPU come what the CUDA context, NCCL and cuBLAS take
outside the allocator, and an allowance for fragmentation: a share of all but weights, master, gradients, and optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from clsgen_dist.plan.meta_trace import MetaTrace
from clsgen_dist.plan.zero3_simulation import Sharding, Walk, on_nvme, optimizer_groups, persistent, stored

FRAGMENTATION = 0.1
"""Share of what comes and goes that the CUDA allocator is allowed to waste: an allowance, not a measurement."""
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
    """What the peak belongs to: the micro-step or the optimizer's step."""

    @property
    def device_total(self) -> int:
        """Bytes on the GPU at the peak."""
        return sum(self.device.values())

    @property
    def host_total(self) -> int:
        """Bytes of one rank in the host's memory."""
        return sum(self.host.values())


def memory(
    rehearsal: MetaTrace,
    zero: Sharding,
    walked: Walk,
    *,
    optimizer: str,
    on_gpu: bool,
    outside_allocator: int = 0,
    checkpoint_copy: int = 0,
) -> Memory:
    """All parts at the moment that needs most.

    ``optimizer``: as ``optim.name``. ``outside_allocator``: bytes that CUDA, NCCL and cuBLAS take, on a GPU.
    ``checkpoint_copy``: bytes of this rank's share of a checkpoint, where a save copies it to the host first.
    """
    size = rehearsal.bytes_per_element
    parts = {number: zero.part(stored(w)) for number, w in enumerate(rehearsal.weights)}
    trained = [number for number, w in enumerate(rehearsal.weights) if w.trainable]
    share = sum(parts[n] for n in trained)
    groups = optimizer_groups(rehearsal, zero)
    weights = size * sum(parts.values())
    optimizer_parts = {
        "master weights": 4 * share,
        "gradients": size * share,
        "optimizer": sum(_state_bytes(optimizer, group) for group in groups),
    }
    device = {
        "weights": weights,
        "persistent weights": size * sum(stored(rehearsal.weights[n]) for n in persistent(rehearsal.weights, zero))
        if zero.ranks > 1
        else 0,
        "quantisation scales": sum(4 * -(-w.numel // _NF4_BLOCK) for w in rehearsal.weights if w.quantised),
        "hpZ copy": size * sum(-(-stored(w) // zero.secondary_ranks) for w in rehearsal.weights)
        if zero.secondary_ranks > 1
        else 0,
        **optimizer_parts,
        "reduce bucket": size * zero.reduce_bucket if zero.contiguous_gradients and trained else 0,
    }
    host: dict[str, int] = {}
    disk: dict[str, int] = {}
    offloaded = zero.offload_optimizer != "none"
    if offloaded:
        # The fp32 gradient of every sub-group stays allocated on the host.
        host |= {**optimizer_parts, "fp32 gradients": 4 * share}
        device |= dict.fromkeys(optimizer_parts, 0)
    if zero.offload_parameters == "nvme":
        there = on_nvme(rehearsal, zero)
        disk["weights"], device["weights"] = size * (there.frozen + there.trained), 0
        host["NVMe buffers"] = size * zero.nvme_buffers
        host["weights"] = size * there.host
    elif zero.offload_parameters == "cpu":
        host["weights"], device["weights"] = weights, 0
    if checkpoint_copy:
        host["checkpoint copy"] = checkpoint_copy
    peak = walked.peak
    step_bytes = max(groups, default=0) * _step_bytes(optimizer, size, on_gpu=on_gpu)
    in_step = 0 if offloaded else step_bytes
    if offloaded and not on_gpu:
        in_step = max(groups, default=0) * (step_bytes // max(1, max(groups, default=1)) - 4)
    if peak.total >= in_step:
        moment = "micro-step"
        moving = {
            "activations": peak.activations,
            "loss workspace": peak.loss,
            "gathered weights": peak.gathered,
            "reducing": peak.reducing,
        }
    else:
        moment = "optimizer step"
        moving = {"optimizer step": in_step}
    device |= moving
    if on_gpu:
        device["fragmentation allowance"] = round(FRAGMENTATION * (sum(moving.values()) + device["reduce bucket"]))
        device["CUDA, NCCL, cuBLAS"] = outside_allocator
    device, host, disk = ({k: v for k, v in place.items() if v} for place in (device, host, disk))
    return Memory(device, host, disk, moment)


def _state_bytes(optimizer: str, elements: int) -> int:
    """Both of Adam's moments for a flat tensor."""
    if optimizer == "adamw_8bit" and elements >= _SMALLEST_QUANTISED:
        return 2 * (elements + 4 * -(-elements // _QUANTISED_BLOCK))
    return 8 * elements


def _step_bytes(optimizer: str, size: int, *, on_gpu: bool) -> int:
    """Bytes an element that come and go while a sub-group is updated."""
    gradient = 4 if size == 4 else 4 + 2
    if optimizer != "adamw":
        return gradient
    return max(gradient, 4 + (4 if on_gpu else 8))
