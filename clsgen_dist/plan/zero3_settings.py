"""How ZeRO-3 partitions parameters over the ranks: DeepSpeed's settings, shard sizes, persistent parameters."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clsgen_dist.plan.meta_trace import Weight


@dataclass(frozen=True, kw_only=True)
class Zero3Settings:
    """DeepSpeed's settings and the number of ranks. Sizes are numbers of elements."""

    ranks: int
    ranks_per_node: int
    reduce_bucket: int
    prefetch_bucket: int
    persistence_threshold: int
    model_persistence_threshold: int
    max_live: int
    max_reuse_distance: int
    sub_group: int
    contiguous_gradients: bool
    overlap_comm: bool
    secondary_ranks: int
    """hpZ: ranks that share a second copy of the weights, for gathers inside a node; 1: no second copy."""
    quantised_weights: bool
    """qwZ: weights are gathered in 8 bits."""
    quantised_gradients: bool
    """qgZ: gradients are reduced in 4 bits, all-to-all in two hops."""
    offload_parameters: str
    """``none``, ``cpu`` or ``nvme``."""
    offload_optimizer: str
    """``none``, ``cpu`` or ``nvme``."""
    nvme_buffers: int
    """Elements of the host buffers through which weights on NVMe pass."""
    max_in_cpu: int
    """Elements of trained weights that a rank keeps in host memory even when it offloads to NVMe."""

    @property
    def nodes(self) -> int:
        """Nodes that the ranks span."""
        return -(-self.ranks // self.ranks_per_node)

    def shard_numel(self, numel: int) -> int:
        """Elements of a rank's padded shard of a parameter."""
        return -(-numel // self.ranks)


def zero3_settings(config: dict[str, Any], *, ranks: int, ranks_per_node: int) -> Zero3Settings:
    """Read DeepSpeed's configuration; DeepSpeed itself fills in the defaults."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = DeepSpeedZeroConfig(**config["zero_optimization"])
    return Zero3Settings(
        ranks=ranks,
        ranks_per_node=min(ranks, ranks_per_node),
        reduce_bucket=int(zero.reduce_bucket_size),
        prefetch_bucket=int(zero.prefetch_bucket_size),
        persistence_threshold=int(zero.param_persistence_threshold),
        model_persistence_threshold=int(zero.model_persistence_threshold or sys.maxsize),
        max_live=int(zero.max_live_parameters),
        max_reuse_distance=int(zero.max_reuse_distance),
        sub_group=int(zero.sub_group_size),
        contiguous_gradients=zero.contiguous_gradients,
        overlap_comm=bool(zero.overlap_comm),
        secondary_ranks=min(ranks, int(zero.zero_hpz_partition_size)),
        quantised_weights=zero.zero_quantized_weights,
        quantised_gradients=zero.zero_quantized_gradients,
        offload_parameters=_device(zero.offload_param),
        offload_optimizer=_device(zero.offload_optimizer),
        nvme_buffers=int(zero.offload_param.buffer_count * zero.offload_param.buffer_size) if zero.offload_param else 0,
        max_in_cpu=int(zero.offload_param.max_in_cpu) if zero.offload_param else 0,
    )


def _device(offload: Any) -> str:
    if offload is None:
        return "none"
    return str(getattr(offload.device, "value", offload.device))


def stored_numel(weight: Weight) -> int:
    """Elements in which a parameter is stored and gathered: four 4-bit weights share an element of 16 bits."""
    return -(-weight.numel // 4) if weight.quantised else weight.numel


def persistent_weights(weights: Sequence[Weight], zero: Zero3Settings) -> frozenset[int]:
    """Indices of the small parameters that every rank keeps complete (``mark_persistent_parameters``)."""
    kept, total = [], 0
    for index, weight in enumerate(weights):
        numel = stored_numel(weight)
        if numel <= zero.persistence_threshold and numel + total <= zero.model_persistence_threshold:
            kept.append(index)
            total += numel
    return frozenset(kept)
