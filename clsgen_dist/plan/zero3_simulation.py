"""Simulates what ZeRO-3 gathers, holds and reduces in a micro-step: DeepSpeed's rules, applied to a meta-device trace.

DeepSpeed (0.19.8, ``partitioned_param_coordinator.py``) fetches a module's parameters before it runs, prefetches the
next ones of the recorded order up to a bucket, and releases parameters that are not reused within
``stage3_max_reuse_distance``. Gradients are copied into a bucket, which is reduce-scattered when the next one would not
fit (``stage3.py``). The same rules are applied here to numbers of elements, in the steady state after DeepSpeed has
recorded its own trace of modules. A gather of several parameters holds its flat buffer as well as the parameters cut
from it, until each has been used.

Cost: milliseconds for a model of 70B.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from clsgen_dist.plan.meta_trace import Event, MetaTrace, Moment
from clsgen_dist.plan.zero3_settings import Zero3Settings, persistent_weights, stored_numel


@dataclass(frozen=True)
class Gather:
    """One all-gather."""

    elements: int
    """Of the complete tensors, padded to the ranks."""
    backward: bool
    tensors: int


@dataclass(frozen=True)
class Reduction:
    """One reduce-scatter."""

    elements: int
    """Of the complete tensors, padded to the ranks."""
    tensors: int


@dataclass(frozen=True)
class Peak:
    """The moment of a micro-step that needs most memory, in bytes above what is always allocated."""

    activations: int
    """Activations, workspace of the backbone, and gradients of the current layer."""
    loss: int
    """Allocated by the loss: a tile of logits, supervised hidden states, gradients of heads and hidden states."""
    gathered: int
    """Gathered weights and flat buffers of gathers, persistent weights excluded."""
    reducing: int
    """Gradients too large for the bucket, and the interleaved copy that a reduction makes."""

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
class Simulation:
    """The micro-steps of an optimizer step in the steady state."""

    first: MicroStep
    """After an optimizer step, which releases all weights except the persistent ones."""
    later: MicroStep
    """After another micro-step, which may leave weights gathered."""

    @property
    def peak(self) -> Peak:
        """The larger of both."""
        return max(self.first.peak, self.later.peak, key=lambda peak: peak.total)


def simulate(trace: MetaTrace, zero: Zero3Settings) -> Simulation:
    """The steady-state micro-steps of a traced model."""
    coordinator = _Coordinator(trace, zero)
    coordinator.micro_step(MicroStep())  # decides where each parameter is released, which DeepSpeed caches
    coordinator.optimizer_step()
    first, later = MicroStep(), MicroStep()
    coordinator.micro_step(first)
    coordinator.micro_step(later)
    return Simulation(first, later)


class _Status(Enum):
    """As DeepSpeed's ``ZeroParamStatus``."""

    NOT_AVAILABLE = 0
    INFLIGHT = 1
    AVAILABLE = 2


class _FlatBuffer:
    """A gather's flat buffer, which is freed once each of its parameters has been waited for."""

    def __init__(self, parameters: Iterable[int], elements: int) -> None:
        self.parameters = frozenset(parameters)
        self.elements = elements


@dataclass
class _Now:
    """Where a micro-step is."""

    result: MicroStep
    """Receives gathers, reductions and peak."""
    active: list[set[int]]
    """Modules that use each parameter at this moment."""
    last_use: list[int]
    """Step of the order at which each parameter is next used, as far as the queue has been read."""
    queue: deque[tuple[int, int]]
    """Parameters still to be fetched, each with its step of the order."""
    recomputed: dict[int, set[int]] = field(default_factory=dict)
    """Frozen parameters that a module's backward gathers again."""
    in_backward: dict[int, None] = field(default_factory=dict)
    """Modules whose backward has begun, in order."""
    step: int = 0
    """Index into the order of modules."""
    live: int = 0
    """Elements that DeepSpeed counts as gathered."""
    bucket: list[int] = field(default_factory=list)
    """Gradients that wait for their reduction."""
    unbucketed: int = 0
    """Elements of gradients that do not fit the bucket."""


class _Coordinator:
    """``PartitionedParameterCoordinator`` in numbers of elements; parameters and modules are indices of the trace."""

    def __init__(self, trace: MetaTrace, zero: Zero3Settings) -> None:
        self.trace, self.zero = trace, zero
        self.numel = [stored_numel(w) for w in trace.weights]
        self.persistent = persistent_weights(trace.weights, zero)
        # Modules in the order in which they are fetched.
        self.order = [e for e in trace.events if e.moment in (Moment.PRE_FORWARD, Moment.PRE_BACKWARD)]
        self.release_at: dict[tuple[int, int], set[int]] = {}
        self.status = self._released()
        self.held_elements: dict[int, int] = {}
        self.inflight: dict[int, _FlatBuffer] = {}
        self.gathered = 0
        self.now = self._start(MicroStep())

    def _released(self) -> list[_Status]:
        return [_Status.AVAILABLE if n in self.persistent else _Status.NOT_AVAILABLE for n in range(len(self.numel))]

    def _start(self, result: MicroStep) -> _Now:
        units = self.trace.units
        queue = deque((n, step) for step, event in enumerate(self.order) for n in units[event.index].weights)
        return _Now(result, [set() for _ in self.numel], [-1] * len(self.numel), queue)

    def optimizer_step(self) -> None:
        """Release all weights except the persistent ones, which are gathered again."""
        self.status = self._released()
        self.held_elements.clear()
        self.inflight.clear()
        self.gathered = 0

    def micro_step(self, result: MicroStep) -> None:
        """Replay the events of one micro-step; ``result`` receives its gathers, reductions and peak."""
        for n in list(self.inflight):  # prefetched by the previous micro-step and never used
            self.now.active[n].clear()
            self._wait(n)
            self._free(n)
        self.now = self._start(result)
        for event in self.trace.events:
            self._update_peak(event.peak, event.loss_peak)
            if event.moment is Moment.GRADIENT:
                self._add_to_bucket(event)
            elif event.moment in (Moment.PRE_FORWARD, Moment.PRE_BACKWARD):
                self._fetch(event)
            else:
                self._release(event)
        self._reduce_bucket(self.trace.events[-1])
        self._update_peak(self.trace.tail_peak, 0)
        # A module whose inputs carry no gradient has no post-backward event.
        for module in self.now.in_backward:
            for n in {*self.trace.units[module].weights, *self.now.recomputed.get(module, ())} - self.persistent:
                self.now.active[n].discard(module)
                self._free(n)

    def _update_peak(self, allocated: int, of_loss: int, extra_elements: int = 0) -> None:
        size = self.trace.bytes_per_element
        gathered, reducing = self.gathered * size, (self.now.unbucketed + extra_elements) * size
        peak = Peak(allocated - of_loss, of_loss, gathered, reducing)
        if peak.total > self.now.result.peak.total:
            self.now.result.peak = peak

    # --- weights

    def _fetch(self, event: Event) -> None:
        unit = self.trace.units[event.index]
        backward = event.moment is Moment.PRE_BACKWARD
        if backward:
            self.now.in_backward[event.index] = None
        missing = [n for n in unit.weights if self.status[n] is _Status.NOT_AVAILABLE]
        self._gather(missing, backward or event.recompute)
        self._update_peak(event.allocated, event.loss_allocated)
        for n in unit.weights:
            self.now.active[n].add(event.index)
            if event.recompute and not backward and self.now.in_backward and not self.trace.weights[n].trainable:
                module = next(reversed(self.now.in_backward))
                self.now.recomputed.setdefault(module, set()).add(n)
                self.now.active[n].add(module)
            self._wait(n)
        self._update_peak(event.allocated, event.loss_allocated)
        self._advance_queue({n for n in unit.weights if self.now.last_use[n] < self.now.step})
        self._prefetch(backward or event.recompute)
        self._update_peak(event.allocated, event.loss_allocated)
        self.now.step += 1

    def _advance_queue(self, needed: set[int]) -> None:
        taken: set[int] = set()
        while self.now.queue and len(taken) < len(needed):
            n, step = self.now.queue.popleft()
            self.now.last_use[n] = step
            taken.add(n)

    def _prefetch(self, backward: bool) -> None:
        most = min(self.zero.max_live - self.now.live, self.zero.prefetch_bucket)
        prefetched: dict[int, None] = {}
        elements = 0
        while self.now.queue and elements < most:
            n, step = self.now.queue.popleft()
            wanted = self.status[n] is _Status.NOT_AVAILABLE and n not in prefetched
            self.now.last_use[n] = max(self.now.last_use[n], step)
            if wanted:
                prefetched[n] = None
                elements += self.numel[n]
        self._gather(list(prefetched), backward)

    def _gather(self, indices: list[int], backward: bool) -> None:
        if not indices:
            return
        total = sum(self.zero.shard_numel(self.numel[n]) for n in indices) * self.zero.ranks
        self.now.live += sum(self.numel[n] for n in indices)
        for n in indices:
            self.status[n] = _Status.INFLIGHT
        if self.zero.ranks == 1:  # a single rank uses its shard in place
            self.inflight |= {n: _FlatBuffer([n], 0) for n in indices}
            return
        self.now.result.gathers.append(Gather(total, backward, len(indices)))
        self.inflight |= dict.fromkeys(indices, _FlatBuffer(indices, total))
        self.gathered += total

    def _wait(self, index: int) -> None:
        buffer = self.inflight.pop(index, None)
        if buffer is None:
            return
        several = len(buffer.parameters) > 1
        for n in buffer.parameters:
            if self.status[n] is _Status.INFLIGHT:
                self.status[n] = _Status.AVAILABLE
                # Several are copied from the flat buffer into tensors of their own; a single one is a view of it.
                self.held_elements[n] = self.numel[n] if several else buffer.elements
                self.gathered += self.numel[n] if several and buffer.elements else 0
        if several and not any(n in self.inflight for n in buffer.parameters):
            self.gathered -= buffer.elements

    def _release(self, event: Event) -> None:
        unit = self.trace.units[event.index]
        releasable = self._releasable(event.index)
        members = set(unit.weights)
        if event.moment is Moment.POST_BACKWARD:
            recomputed = self.now.recomputed.pop(event.index, set())
            releasable |= {n for n in recomputed if n not in self.persistent}
            members |= recomputed
            self.now.in_backward.pop(event.index, None)
        for n in members:
            self.now.active[n].discard(event.index)
            if n in releasable:
                self._free(n)

    def _free(self, index: int) -> None:
        if self.status[index] is not _Status.AVAILABLE or self.now.active[index]:
            return
        self.status[index] = _Status.NOT_AVAILABLE
        self.now.live -= self.numel[index]
        if self.zero.ranks > 1:
            self.gathered -= self.held_elements.pop(index, 0)

    def _releasable(self, module: int) -> set[int]:
        """A module's parameters that are not reused soon; decided once for each position in the order."""
        key = (module, self.now.step)
        if key not in self.release_at:
            unit = self.trace.units[module]
            releasable = {n for n in unit.weights if n not in self.persistent and self.now.last_use[n] <= self.now.step}
            distance = 0
            for event in self.order[self.now.step :]:
                if distance >= self.zero.max_reuse_distance:
                    break
                later = self.trace.units[event.index]
                reused = later.subtree if unit.leaf else later.weights
                releasable.difference_update(reused)
                distance += sum(self.numel[n] for n in reused)
            self.release_at[key] = releasable
        return self.release_at[key]

    # --- gradients

    def _add_to_bucket(self, event: Event) -> None:
        numel = self.numel[event.index]
        filled = sum(self.numel[n] for n in self.now.bucket)
        if self.now.bucket and filled + numel > self.zero.reduce_bucket:
            self._reduce_bucket(event)
            filled = 0
        self.now.bucket.append(event.index)
        if not self.zero.contiguous_gradients or filled + numel > self.zero.reduce_bucket:
            self.now.unbucketed += numel

    def _reduce_bucket(self, event: Event) -> None:
        if not self.now.bucket:
            return
        total = sum(self.zero.shard_numel(self.numel[n]) for n in self.now.bucket) * self.zero.ranks
        in_place = len(self.now.bucket) == 1 and self.numel[self.now.bucket[0]] % self.zero.ranks == 0
        self._update_peak(event.allocated, event.loss_allocated, 0 if in_place else total)
        self.now.result.reductions.append(Reduction(total, len(self.now.bucket)))
        self.now.bucket, self.now.unbucketed = [], 0
