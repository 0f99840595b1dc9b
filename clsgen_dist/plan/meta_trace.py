"""What the meta-device trace of one micro-step records: parameters, ZeRO-3 units, events, FLOPs and bytes.

:func:`clsgen_dist.plan.tracer.trace_micro_step` makes it; :mod:`clsgen_dist.plan.zero3_simulation` replays its events.
Weights are not in its byte counts: under ZeRO-3 they are gathered and freed, which only the simulation knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Moment(Enum):
    """When an event happens to a module or to a parameter."""

    PRE_FORWARD = "pre_forward"
    POST_FORWARD = "post_forward"
    PRE_BACKWARD = "pre_backward"
    POST_BACKWARD = "post_backward"
    GRADIENT = "gradient"
    """A parameter's gradient is complete; ``index`` counts parameters."""


@dataclass(frozen=True, slots=True)
class Event:
    """A hook that fires, and the bytes allocated up to it."""

    moment: Moment
    index: int
    """Index of the module in :attr:`MetaTrace.units`, or of the parameter in :attr:`MetaTrace.weights`."""
    peak: int
    """Most bytes allocated between the previous event and this one."""
    allocated: int
    """Bytes allocated at this event."""
    loss_peak: int
    """The part of ``peak`` that the loss allocated."""
    loss_allocated: int
    """The part of ``allocated`` that the loss allocated."""
    recompute: bool = False
    """Whether this is a forward inside the backward (activation checkpointing)."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter of the model."""

    name: str
    numel: int
    trainable: bool
    matrix: bool
    """Whether it has more than one dimension, and so is in an optimizer group with weight decay."""
    quantised: bool = False
    """Whether bitsandbytes keeps it in 4 bits."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A module that ZeRO-3 fetches: a leaf module with its subtree, or a module with only its own parameters."""

    weights: tuple[int, ...]
    """Indices of the parameters that are gathered for it."""
    subtree: tuple[int, ...]
    """Indices of all parameters of the module and its submodules."""
    leaf: bool


@dataclass(frozen=True, slots=True)
class HeadMove:
    """Collectives of one kind in a micro-step that a sharded LM head needs."""

    whole_bytes: int
    """Of the complete tensors, summed over the calls."""
    calls: int


@dataclass(frozen=True, kw_only=True)
class MetaTrace:
    """One micro-step. Bytes are those of one rank, weights excluded."""

    weights: list[Weight]
    units: list[Unit]
    events: list[Event]
    tail_peak: int
    """Most bytes allocated after the last event."""
    loss_workspace: int
    """Most bytes that the loss had allocated at once."""
    matmul_flops: float
    """FLOPs of matrix products, recomputation included; attention's are among them only if it is eager."""
    forward_flops: float
    """The part of them before the backward begins."""
    recomputed_flops: float
    """The part of them that activation checkpointing adds."""
    moved_bytes: float
    """Bytes that the backbone's other operations (norms, activations, additions) read and write, unfused."""
    forward_moved_bytes: float
    """The part of them before the backward begins."""
    launches: int
    """Operations of the backbone that launch a kernel: all but views and allocations."""
    forward_launches: int
    """The part of them before the backward begins."""
    tokens: int
    """Tokens of the micro-step."""
    terms: int
    """Of the loss, as traced."""
    bytes_per_element: int
    """Of weights, activations and gradients."""
    max_positions: int | None
    """``max_position_embeddings``, if the configuration has it."""
    learned_positions: bool
    """Whether a longer sequence would index past a table; rotary embeddings extrapolate."""
    head_moves: dict[str, HeadMove]
    """Collectives of an LM head that stays sharded, by name; empty: it is gathered."""
    eager_attention: bool
    """Whether attention's products are among the matrix products."""
    layers_run: float = 1.0
    """Share of the decoder's layers that the micro-step computes: below 1 where it starts from kept states."""

    @property
    def parameters(self) -> int:
        """Number of all parameters, classification head and adapters included."""
        return sum(w.numel for w in self.weights)

    @property
    def trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(w.numel for w in self.weights if w.trainable)

    @property
    def quantised(self) -> int:
        """Number of parameters kept in 4 bits."""
        return sum(w.numel for w in self.weights if w.quantised)

    @property
    def activation_peak(self) -> int:
        """Most bytes allocated at once: activations, workspace, gradients not yet reduced."""
        return max([self.tail_peak, *(e.peak for e in self.events)])
