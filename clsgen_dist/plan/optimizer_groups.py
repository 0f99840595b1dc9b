"""A rank's optimizer groups and sub-groups under ZeRO-3, and which of them stay on NVMe, in elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clsgen_dist.engine.optim import group_name
from clsgen_dist.plan.meta_trace import MetaTrace
from clsgen_dist.plan.zero3_settings import Zero3Settings, stored_numel


def sub_group_sizes(trace: MetaTrace, zero: Zero3Settings) -> list[int]:
    """Sizes of this rank's optimizer sub-groups."""
    return [size for group in _groups(trace, zero) for size in _split(group, zero.sub_group)]


@dataclass(frozen=True)
class NvmePlacement:
    """Where a rank's weights are when they are offloaded to NVMe, in elements."""

    frozen_on_disk: int
    trained_on_disk: int
    trained_on_host: int
    """Host memory for trained weights, up to ``max_in_cpu`` (``_create_param_groups_fp16_flat_cpu_memory``)."""


def nvme_placement(trace: MetaTrace, zero: Zero3Settings) -> NvmePlacement:
    """Frozen weights are on the disk, and of the trained ones the sub-groups that do not fit ``max_in_cpu``."""
    frozen = sum(zero.shard_numel(stored_numel(w)) for w in trace.weights if not w.trainable)
    on_disk = on_host = before = 0
    for group in _groups(trace, zero):
        size = sum(group)
        fits = min(size, max(0, zero.max_in_cpu - before))
        before += size
        on_host += fits
        filled = 0
        for sub_group in _split(group, zero.sub_group):
            filled += sub_group
            on_disk += sub_group if filled > fits else 0
    return NvmePlacement(frozen, on_disk, on_host)


def _groups(trace: MetaTrace, zero: Zero3Settings) -> list[list[int]]:
    """Shard sizes of the trained parameters, by optimizer group."""
    groups: dict[str, list[int]] = {}
    for weight in trace.weights:
        if weight.trainable:
            group = group_name(weight.name, matrix=weight.matrix)
            groups.setdefault(group, []).append(zero.shard_numel(stored_numel(weight)))
    return list(groups.values())


def _split(shards: Sequence[int], limit: int) -> list[int]:
    """Sizes of the sub-groups, which a step updates one after another (``_create_fp16_sub_groups``)."""
    if limit >= sum(shards):
        return [sum(shards)]
    sizes: list[int] = []
    filled = 0
    for index, shard in enumerate(shards):
        filled += shard
        if filled >= limit or index == len(shards) - 1:
            sizes.append(filled)
            filled = 0
    return sizes
