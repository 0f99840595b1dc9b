"""Records which module runs when, at the places where DeepSpeed's ZeRO-3 has its hooks.

As ``parameter_offload.py`` of DeepSpeed 0.19.8: a hook before and after each module's forward; identity functions
around its outputs and inputs, whose backward marks where the module's backward begins and ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from clsgen_dist.engine.optim import group_name
from clsgen_dist.model.dual_head import DualHeadModel
from clsgen_dist.plan.meta_trace import Event, Moment, Unit
from clsgen_dist.plan.tensor_counter import TensorCounter, in_backward


class ModuleRecorder:
    """Registers the hooks on ``model``; ``units`` and ``events`` are what they record.

    A leaf module's gradients wait until its backward is over, and are then reduced in the optimizer's order, group by
    group (``stage3.py``, ``create_reduce_and_remove_grad_hooks``); others are reduced once complete.
    """

    def __init__(self, model: DualHeadModel, counter: TensorCounter) -> None:
        self.units: list[Unit] = []
        self.events: list[Event] = []
        self._counter = counter
        self._index = {id(p): index for index, p in enumerate(model.parameters())}
        self._reduction_order = _optimizer_order(model)
        self._waiting: dict[int, list[nn.Parameter]] = {}
        self._visit(model)

    def record(self, moment: Moment, index: int) -> None:
        """Append an event with the bytes allocated since the last one."""
        recompute = moment in (Moment.PRE_FORWARD, Moment.POST_FORWARD) and in_backward()
        counter = self._counter
        peak, loss_peak = counter.pop_peak()
        self.events.append(Event(moment, index, peak, counter.allocated, loss_peak, counter.loss_allocated, recompute))

    def end_backward(self, unit: int) -> None:
        """A module's backward is over: its gradients are reduced."""
        for parameter in sorted(self._waiting.pop(unit, []), key=lambda p: self._reduction_order[id(p)]):
            self._reduce(parameter)
        self.record(Moment.POST_BACKWARD, unit)

    def _reduce(self, parameter: nn.Parameter) -> None:
        self.record(Moment.GRADIENT, self._index[id(parameter)])
        parameter.grad = None

    def _visit(self, module: nn.Module) -> None:
        from deepspeed.utils import z3_leaf_module

        leaf = z3_leaf_module(module)
        for parameter in module.parameters(recurse=leaf):
            self._reduce_when_complete(parameter, leaf_unit=len(self.units) if leaf else None)
        self._add_unit(module, leaf)
        if not leaf:
            for child in module.children():
                self._visit(child)

    def _add_unit(self, module: nn.Module, leaf: bool) -> None:
        unit = len(self.units)
        external = [p for _, p in module.ds_external_parameters()] if hasattr(module, "_external_params") else []  # type: ignore[operator]
        subtree = [*module.parameters(), *external]
        own = subtree if leaf else [*module.parameters(recurse=False), *external]
        self.units.append(Unit(self._indices(own), self._indices(subtree), leaf))
        backward = _BackwardHooks(self, unit)
        module.register_forward_pre_hook(lambda *_: self.record(Moment.PRE_FORWARD, unit))
        module.register_forward_pre_hook(lambda _, inputs: backward.wrap_inputs(inputs))
        module.register_forward_hook(lambda *_: self.record(Moment.POST_FORWARD, unit))
        module.register_forward_hook(lambda _, __, output: backward.wrap_outputs(output))

    def _indices(self, parameters: Iterable[nn.Parameter]) -> tuple[int, ...]:
        return tuple(sorted({self._index[id(p)] for p in parameters}))

    def _reduce_when_complete(self, parameter: nn.Parameter, leaf_unit: int | None) -> None:
        if not parameter.requires_grad or hasattr(parameter, "_clsgen_recorded"):
            return
        parameter._clsgen_recorded = True  # type: ignore[attr-defined]

        def complete(p: Tensor) -> None:
            if leaf_unit is not None:
                self._waiting.setdefault(leaf_unit, []).append(parameter)
            else:
                self._reduce(parameter)

        parameter.register_post_accumulate_grad_hook(complete)


def _optimizer_order(model: nn.Module) -> dict[int, tuple[int, int]]:
    """Sort key of each trained parameter, by id: the index of its optimizer group, and its own."""
    groups: dict[str, int] = {}
    order = {}
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.requires_grad:
            group = groups.setdefault(group_name(name, matrix=parameter.dim() > 1), len(groups))
            order[id(parameter)] = (group, index)
    return order


class _BackwardHooks:
    """Marks where a module's backward begins and ends, by identity functions around its outputs and inputs."""

    def __init__(self, recorder: ModuleRecorder, unit: int) -> None:
        self.recorder, self.unit = recorder, unit
        self.outputs_left = self.inputs_left = 0

    def wrap_outputs(self, output: Any) -> Any:
        """The backward begins with the first gradient of an output."""
        from deepspeed.runtime.zero.utils import apply_to_tensors_only

        def begin() -> None:
            if self.outputs_left > 0:
                self.outputs_left -= 1
                self.recorder.record(Moment.PRE_BACKWARD, self.unit)

        def wrap(tensor: Tensor) -> Tensor:
            self.outputs_left += 1
            return _Identity.apply(tensor, begin)

        return apply_to_tensors_only(wrap, output)

    def wrap_inputs(self, inputs: tuple[Any, ...]) -> Any:
        """The backward ends with the last gradient of an input."""
        from deepspeed.runtime.zero.utils import apply_to_tensors_only

        self.inputs_left = 0

        def end() -> None:
            self.inputs_left -= 1
            if self.inputs_left == 0:
                self.recorder.end_backward(self.unit)

        def wrap(tensor: Tensor) -> Tensor:
            if tensor.requires_grad:
                self.inputs_left += 1
            return _Identity.apply(tensor, end)

        return apply_to_tensors_only(wrap, inputs)


class _Identity(torch.autograd.Function):
    """The identity, whose backward calls ``then``."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, then: Callable[[], None]) -> Tensor:
        ctx.then = then
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.then()
        return *grads, None
