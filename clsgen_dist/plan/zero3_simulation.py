"""What ZeRO-3 gathers, holds and reduces in a micro-step: DeepSpeed's parameter coordinator walked over a rehearsal.

DeepSpeed (0.19.8, ``partitioned_param_coordinator.py``) fetches a module's parameters before it runs, prefetches the
next ones of the recorded order up to a bucket, and lets parameters go that are not used again within
``stage3_max_reuse_distance``. Gradients are copied into a bucket and reduce-scattered when the next would not fit
(``stage3.py``). The same rules are applied here to numbers of elements, in the steady state after the trace has been
recorded. A gather of several parameters holds its flat buffer besides the parameters cut from it, until each was used.

Cost: milliseconds for a model of 70B.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from clsgen_dist.plan.meta_trace import Event, MetaTrace, Moment, Weight, optimizer_group


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How ZeRO-3 cuts and moves: DeepSpeed's settings and the number of ranks."""

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
    """hpZ: ranks over which a second copy of the weights is cut, for gathers inside a node; 1: none."""
    quantised_weights: bool
    """qwZ: weights travel in 8 bits."""
    quantised_gradients: bool
    """qgZ: gradients travel in 4 bits, all-to-all in two hops."""
    offload_parameters: str
    """``none``, ``cpu`` or ``nvme``."""
    offload_optimizer: str
    """``none``, ``cpu`` or ``nvme``."""
    nvme_buffers: int
    """Elements of host memory through which weights on NVMe pass."""
    max_in_host: int
    """Elements of trained weights that a rank keeps in host memory all the same."""

    def part(self, numel: int) -> int:
        """Elements of a rank's padded share of a parameter."""
        return -(-numel // self.ranks)


def sharding(config: dict[str, Any], *, ranks: int, ranks_per_node: int) -> Sharding:
    """The settings as DeepSpeed reads them from its JSON, defaults filled in by DeepSpeed itself."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = DeepSpeedZeroConfig(**config["zero_optimization"])
    return Sharding(
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
        max_in_host=int(zero.offload_param.max_in_cpu) if zero.offload_param else 0,
    )


def _device(offload: Any) -> str:
    if offload is None:
        return "none"
    return str(getattr(offload.device, "value", offload.device))


def persistent(weights: Sequence[Weight], zero: Sharding) -> frozenset[int]:
    """Numbers of the small parameters that every rank keeps whole (``mark_persistent_parameters``)."""
    kept, total = [], 0
    for number, weight in enumerate(weights):
        numel = stored(weight)
        if numel <= zero.persistence_threshold and numel + total <= zero.model_persistence_threshold:
            kept.append(number)
            total += numel
    return frozenset(kept)


def stored(weight: Weight) -> int:
    """Elements in which a parameter is stored and gathered: 4-bit ones lie four to an element of 16 bits."""
    return -(-weight.numel // 4) if weight.quantised else weight.numel


@dataclass(frozen=True)
class Gather:
    """One all-gather."""

    elements: int
    """Of the whole, padded to the ranks."""
    backward: bool
    tensors: int


@dataclass(frozen=True)
class Reduction:
    """One reduce-scatter."""

    elements: int
    """Of the whole, padded to the ranks."""
    tensors: int


@dataclass(frozen=True)
class Peak:
    """Where a micro-step needs most, in bytes above what is always there."""

    activations: int
    """Activations, workspace of the backbone, and gradients of the layer in course."""
    loss: int
    """What the loss made and holds: a tile of logits, states of supervised tokens, gradients of heads and states."""
    gathered: int
    """Weights gathered, flat buffers of gathers included, persistent ones not."""
    reducing: int
    """Gradients too large for the bucket, and the copy that a reduction interleaves."""

    @property
    def total(self) -> int:
        """Their sum."""
        return self.activations + self.loss + self.gathered + self.reducing


@dataclass
class MicroStep:
    """What ZeRO-3 does in one micro-step."""

    gathers: list[Gather] = field(default_factory=list)
    reductions: list[Reduction] = field(default_factory=list)
    peak: Peak = field(default_factory=lambda: Peak(0, 0, 0, 0))


@dataclass(frozen=True)
class Walk:
    """The micro-steps of an optimizer step in the steady state."""

    first: MicroStep
    """After an optimizer step, which lets all weights go but the persistent ones."""
    later: MicroStep
    """After another micro-step, which may leave weights behind."""

    @property
    def peak(self) -> Peak:
        """The larger of both."""
        return max(self.first.peak, self.later.peak, key=lambda peak: peak.total)


def walk(rehearsal: MetaTrace, zero: Sharding) -> Walk:
    """The steady micro-steps of a rehearsed model."""
    coordinator = _Coordinator(rehearsal, zero)
    coordinator.micro_step(MicroStep())  # decides what is let go when, as DeepSpeed caches it
    coordinator.optimizer_step()
    first, later = MicroStep(), MicroStep()
    coordinator.micro_step(first)
    coordinator.micro_step(later)
    return Walk(first, later)


_ABSENT, _IN_FLIGHT, _HERE = range(3)


class _Buffer:
    """A gather's flat buffer, which lives until each of its parameters was waited for."""

    def __init__(self, parameters: Iterable[int], elements: int) -> None:
        self.parameters = frozenset(parameters)
        self.elements = elements


class _Coordinator:
    """``PartitionedParameterCoordinator`` in numbers of elements."""

    def __init__(self, rehearsal: MetaTrace, zero: Sharding) -> None:
        self.rehearsal, self.zero = rehearsal, zero
        self.numel = [stored(w) for w in rehearsal.weights]
        self.persistent = persistent(rehearsal.weights, zero)
        self.order = [
            e for e in rehearsal.events if e.moment in (Moment.PRE_FORWARD, Moment.PRE_BACKWARD)
        ]  # the trace: modules in the order in which they are fetched
        self.release_at: dict[tuple[int, int], set[int]] = {}

        self.optimizer_step()

    def optimizer_step(self) -> None:
        """All weights are let go but the persistent ones, which are gathered anew."""
        self.status = [_HERE if n in self.persistent else _ABSENT for n in range(len(self.numel))]
        self.size_here: dict[int, int] = {}
        self.flight: dict[int, _Buffer] = {}
        self.gathered = 0

    def micro_step(self, done: MicroStep) -> None:
        """Walk the events of one micro-step, and write into ``done`` what happens."""
        self.done = done
        self.active: list[set[int]] = [set() for _ in self.numel]
        for number in list(self.flight):  # prefetched for nothing by the micro-step before
            self._wait(number)
            self._let_go(number)
        self.recompute_of: dict[int, set[int]] = {}
        self.latest = [-1] * len(self.numel)
        self.queue = deque(
            (number, at) for at, event in enumerate(self.order) for number in self.rehearsal.units[event.at].weights
        )
        self.in_backward: dict[int, None] = {}
        self.step = self.live = 0
        self.bucket: list[int] = []
        self.unbucketed = 0
        for event in self.rehearsal.events:
            self._see(event.peak, event.peak_of_loss, 0)
            if event.moment is Moment.GRADIENT:
                self._collect(event)
            elif event.moment in (Moment.PRE_FORWARD, Moment.PRE_BACKWARD):
                self._fetch(event)
            else:
                self._release(event)
        self._reduce(self.rehearsal.events[-1])
        self._see(self.rehearsal.tail_peak, 0, 0)
        for at in self.in_backward:  # modules whose inputs carry no gradient never say that their backward is over
            for number in {*self.rehearsal.units[at].weights, *self.recompute_of.get(at, ())} - self.persistent:
                self.active[number].discard(at)
                self._let_go(number)

    def _see(self, held: int, of_loss: int, extra_elements: int) -> None:
        size = self.rehearsal.bytes_per_element
        now = Peak(held - of_loss, of_loss, self.gathered * size, (self.unbucketed + extra_elements) * size)
        if now.total > self.done.peak.total:
            self.done.peak = now

    # --- weights

    def _fetch(self, event: Event) -> None:
        unit = self.rehearsal.units[event.at]
        backward = event.moment is Moment.PRE_BACKWARD
        if backward:
            self.in_backward[event.at] = None
        self._gather([n for n in unit.weights if self.status[n] == _ABSENT], backward or event.recompute)
        self._see(event.held, event.held_of_loss, 0)
        for number in unit.weights:
            self.active[number].add(event.at)
            if event.recompute and not backward and self.in_backward and not self.rehearsal.weights[number].trainable:
                owner = next(reversed(self.in_backward))
                self.recompute_of.setdefault(owner, set()).add(number)
                self.active[number].add(owner)
            self._wait(number)
        self._see(event.held, event.held_of_loss, 0)
        needed = {n for n in unit.weights if self.latest[n] < self.step}
        taken: set[int] = set()
        while self.queue and len(taken) < len(needed):
            number, at = self.queue.popleft()
            self.latest[number] = at
            taken.add(number)
        self._prefetch(backward or event.recompute)
        self._see(event.held, event.held_of_loss, 0)
        self.step += 1

    def _prefetch(self, backward: bool) -> None:
        room = min(self.zero.max_live - self.live, self.zero.prefetch_bucket)
        ahead: dict[int, None] = {}
        elements = 0
        while self.queue and elements < room:
            number, at = self.queue.popleft()
            wanted = self.status[number] == _ABSENT and number not in ahead
            self.latest[number] = max(self.latest[number], at)
            if wanted:
                ahead[number] = None
                elements += self.numel[number]
        self._gather(list(ahead), backward)

    def _gather(self, numbers: list[int], backward: bool) -> None:
        if not numbers:
            return
        whole = sum(self.zero.part(self.numel[n]) for n in numbers) * self.zero.ranks
        self.live += sum(self.numel[n] for n in numbers)
        for number in numbers:
            self.status[number] = _IN_FLIGHT
        if self.zero.ranks == 1:  # a lone rank uses its share in place
            self.flight |= {number: _Buffer([number], 0) for number in numbers}
            return
        self.done.gathers.append(Gather(whole, backward, len(numbers)))
        buffer = _Buffer(numbers, whole)
        self.flight |= dict.fromkeys(numbers, buffer)
        self.gathered += whole

    def _wait(self, number: int) -> None:
        buffer = self.flight.pop(number, None)
        if buffer is None:
            return
        several = len(buffer.parameters) > 1
        for n in buffer.parameters:
            if self.status[n] == _IN_FLIGHT:
                self.status[n] = _HERE
                # Several are cut from the flat buffer into tensors of their own; a single one is a view of it.
                self.size_here[n] = self.numel[n] if several else buffer.elements
                self.gathered += self.numel[n] if several and buffer.elements else 0
        if several and not any(n in self.flight for n in buffer.parameters):
            self.gathered -= buffer.elements

    def _release(self, event: Event) -> None:
        unit = self.rehearsal.units[event.at]
        going = self._to_release(event.at)
        members = set(unit.weights)
        if event.moment is Moment.POST_BACKWARD:
            recomputed = self.recompute_of.pop(event.at, set())
            going |= {n for n in recomputed if n not in self.persistent}
            members |= recomputed
            self.in_backward.pop(event.at, None)
        for number in members:
            self.active[number].discard(event.at)
            if number in going:
                self._let_go(number)

    def _let_go(self, number: int) -> None:
        if self.status[number] != _HERE or self.active[number]:
            return
        self.status[number] = _ABSENT
        self.live -= self.numel[number]
        if self.zero.ranks > 1:
            self.gathered -= self.size_here.pop(number, 0)

    def _to_release(self, at: int) -> set[int]:
        """Which of a module's parameters are not needed soon; decided once for each place in the trace."""
        key = (at, self.step)
        if key not in self.release_at:
            unit = self.rehearsal.units[at]
            going = {n for n in unit.weights if n not in self.persistent and self.latest[n] <= self.step}
            passed = 0
            for event in self.order[self.step :]:
                if passed >= self.zero.max_reuse_distance:
                    break
                later = self.rehearsal.units[event.at]
                ahead = later.below if unit.leaf else later.weights
                going.difference_update(ahead)
                passed += sum(self.numel[n] for n in ahead)
            self.release_at[key] = going
        return self.release_at[key]

    # --- gradients

    def _collect(self, event: Event) -> None:
        numel = self.numel[event.at]
        filled = sum(self.numel[n] for n in self.bucket)
        if self.bucket and filled + numel > self.zero.reduce_bucket:
            self._reduce(event)
            filled = 0
        self.bucket.append(event.at)
        if not self.zero.contiguous_gradients or filled + numel > self.zero.reduce_bucket:
            self.unbucketed += numel

    def _reduce(self, event: Event) -> None:
        if not self.bucket:
            return
        whole = sum(self.zero.part(self.numel[n]) for n in self.bucket) * self.zero.ranks
        in_place = len(self.bucket) == 1 and self.numel[self.bucket[0]] % self.zero.ranks == 0
        self._see(event.held, event.held_of_loss, 0 if in_place else whole)
        self.done.reductions.append(Reduction(whole, len(self.bucket)))
        self.bucket, self.unbucketed = [], 0


def optimizer_groups(rehearsal: MetaTrace, zero: Sharding) -> list[int]:
    """Elements of this rank's optimizer sub-groups: matrices and vectors of backbone and head apart."""
    return [size for group in _groups(rehearsal, zero) for size in _sub_groups(group, zero.sub_group)]


def _groups(rehearsal: MetaTrace, zero: Sharding) -> list[list[int]]:
    """Elements of this rank's share of each trained parameter, by optimizer group."""
    by_group: dict[tuple[bool, bool], list[int]] = {}
    for weight in rehearsal.weights:
        if weight.trainable:
            key = optimizer_group(weight.name, matrix=weight.matrix)
            by_group.setdefault(key, []).append(zero.part(stored(weight)))
    return list(by_group.values())


@dataclass(frozen=True)
class OnNVMe:
    """Where a rank's weights are when they are offloaded to NVMe, in elements."""

    frozen: int
    """On the disk."""
    trained: int
    """On the disk."""
    host: int
    """Host memory taken for trained weights, up to ``max_in_cpu`` (``_create_param_groups_fp16_flat_cpu_memory``)."""


def on_nvme(rehearsal: MetaTrace, zero: Sharding) -> OnNVMe:
    """Frozen weights are on the disk; of the trained ones the sub-groups that found no room in host memory."""
    frozen = sum(zero.part(stored(w)) for w in rehearsal.weights if not w.trainable)
    trained = host = before = 0
    for group in _groups(rehearsal, zero):
        size = sum(group)
        room = min(size, max(0, zero.max_in_host - before))
        before += size
        host += room
        filled = 0
        for sub_group in _sub_groups(group, zero.sub_group):
            filled += sub_group
            trained += sub_group if filled > room else 0
    return OnNVMe(frozen, trained, host)


def _sub_groups(parts: Sequence[int], limit: int) -> list[int]:
    """Elements of the optimizer's sub-groups, which a step updates one after another (``_create_fp16_sub_groups``)."""
    if limit >= sum(parts):
        return [sum(parts)]
    groups: list[int] = []
    filled = 0
    for number, part in enumerate(parts):
        filled += part
        if filled >= limit or number == len(parts) - 1:
            groups.append(filled)
            filled = 0
    return groups
