"""Counts the bytes, FLOPs and kernel launches of operations on meta tensors, as torch dispatches them.

A storage is counted when an operation first returns it and until it is garbage-collected, so the peak is what eager
PyTorch would hold, without the allocator's rounding.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_MOVES_NOTHING = ("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach")


class TensorCounter(TorchDispatchMode):
    """Allocated bytes, FLOPs of matrix products, bytes moved by all other operations.

    On a GPU the loss moves its bytes inside one kernel, so moved bytes and launches are counted only ``in_backbone``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.allocated = self.peak = self.loss_allocated = self.loss_peak = self.loss_workspace = 0
        self.flops = self.recomputed_flops = self.moved_bytes = 0.0
        self.launches = 0
        self.in_backbone = self.recomputing = False
        self._alive: dict[int, Any] = {}
        self._ignored: set[int] = set()

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Do not count the storages of these tensors (weights, buffers)."""
        self._ignored |= {t.untyped_storage()._cdata for t in tensors}

    def pop_peak(self) -> tuple[int, int]:
        """Most bytes allocated since the last call, and the loss's part of them."""
        peak = self.peak, self.loss_peak
        self.peak, self.loss_peak = self.allocated, self.loss_allocated
        return peak

    def track_backbone(self, backbone: nn.Module) -> None:
        """Set ``in_backbone`` while the backbone runs, forward or backward."""

        def enter(*_: Any) -> None:
            self.in_backbone = True

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            self.in_backbone = False
            if output.last_hidden_state.requires_grad:
                output.last_hidden_state.register_hook(enter)

        backbone.register_forward_pre_hook(enter)
        backbone.register_forward_hook(leave)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        launches = self.in_backbone and not func.is_view and packet.__name__ not in _MOVES_NOTHING
        self.launches += launches
        if packet in flop_registry and "attention" not in packet.__name__:
            flops = flop_registry[packet](*args, **(kwargs or {}), out_val=out)
            self.flops += flops
            if self.recomputing or forward_inside_backward():
                self.recomputed_flops += flops
        elif launches:
            self.moved_bytes += sum(_bytes(t) for t in torch.utils._pytree.tree_leaves((args, kwargs, out)))
        torch.utils._pytree.tree_map_only(Tensor, self._count, out)
        return out

    def _count(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == "meta":
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._alive and key not in self._ignored:
                size = storage.nbytes()
                loss_size = 0 if self.in_backbone else size
                self._alive[key] = weakref.finalize(storage, self._free, key, size, loss_size)
                self.allocated += size
                self.loss_allocated += loss_size
                self.loss_workspace = max(self.loss_workspace, self.loss_allocated)
                if self.allocated > self.peak:
                    self.peak, self.loss_peak = self.allocated, self.loss_allocated
        return tensor

    def _free(self, key: int, size: int, loss_size: int) -> None:
        self._alive.pop(key, None)
        self.allocated -= size
        self.loss_allocated -= loss_size


def in_backward() -> bool:
    """Whether autograd runs a backward."""
    return torch._C._current_graph_task_id() != -1


def forward_inside_backward() -> bool:
    """Whether a forward runs inside the backward: activation checkpointing recomputes."""
    return in_backward() and torch.is_grad_enabled()


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
