"""What DeepSpeed and torch cannot do on fake tensors, and what replaces it during a dry run.

- Ranks comparing their lists of modules with rank 0's (``assert_ints_same_as_other_ranks``) is left out: no data
  arrives.
- Gathered weights and gradients are not cut into a piece for each rank, which takes DeepSpeed longer than the model
  itself from some hundred ranks on: one piece represents all (``AllGatherCoalescedHandle.wait``,
  ``reduce_scatter_coalesced``, ``Tensor.narrow``), of the same size, in the same collective.
- Ranks that ask each other how many tokens they have (``EqualRanks``) get this one's number.
- ``Module.to`` on a fake parameter sets its data; torch would swap the parameter's identity, which has watchers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from clsgen_kernels import Ranks
from torch import nn

from clsgen_dist.plan.equal_ranks import EqualRanks


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of a class or module, and restore it at the end."""
    own, original = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:  # it was inherited
            delattr(owner, name)


@contextlib.contextmanager
def operations_for_fake_tensors() -> Iterator[None]:
    """All replacements that the module's docstring lists."""
    from deepspeed.runtime.zero import partition_parameters, partitioned_param_coordinator, stage3

    with (
        replaced(partitioned_param_coordinator, "assert_ints_same_as_other_ranks", lambda *_: None),
        replaced(partition_parameters.AllGatherCoalescedHandle, "wait", _fake_allgather_wait),
        replaced(stage3, "reduce_scatter_coalesced", _fake_reduce_scatter),
        replaced(torch.Tensor, "narrow", _narrow_once(torch.Tensor.narrow)),
        replaced(nn.Module, "_apply", _apply_in_place),
        replaced(Ranks, "counts", EqualRanks.counts),
        replaced(Ranks, "route", EqualRanks.route),
    ):
        yield


def _fake_allgather_wait(handle: Any, handle_dependency: bool = True) -> None:
    """Weights that were gathered together have arrived."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    if handle.complete:
        return
    if handle.allgather_handle is not None:
        handle.allgather_handle.wait()
    for parameter in handle.params:
        parameter.data = torch.empty(parameter.ds_shape, dtype=parameter.ds_tensor.dtype)
        parameter.ds_status = ZeroParamStatus.AVAILABLE
    handle.complete = True


def _fake_reduce_scatter(tensors: list[torch.Tensor], group: Any = None) -> list[torch.Tensor]:
    """This rank's pieces of gradients that are reduced together."""
    from deepspeed import comm

    ranks = comm.get_world_size(group)
    parts = [-(-t.numel() // ranks) for t in tensors]
    whole = tensors[0].new_empty(sum(parts) * ranks)
    mine = whole[: sum(parts)]
    comm.reduce_scatter_tensor(mine, whole, group=group)
    return [mine[: min(part, t.numel())] for part, t in zip(parts, tensors, strict=True)]


def _narrow_once(narrow: Any) -> Any:
    """``Tensor.narrow`` that cuts a buffer into pieces of one length only once: on fake tensors they look alike."""
    last: list[Any] = [None, -1, None]

    def once(tensor: torch.Tensor, dim: int, start: Any, length: int) -> torch.Tensor:
        if tensor.dim() != 1 or tensor.requires_grad:
            return narrow(tensor, dim, start, length)  # type: ignore[no-any-return]
        if last[0] is not tensor or last[1] != length:
            last[:] = [tensor, length, narrow(tensor, dim, start, length)]
        return last[2]  # type: ignore[no-any-return]

    return once


def _apply_in_place(module: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """``Module._apply`` that sets the data of parameters."""
    for child in module.children() if recurse else ():
        child._apply(fn)
    with torch.no_grad():
        for parameter in module._parameters.values():
            if parameter is not None and (new := fn(parameter)) is not parameter:
                parameter.data = new
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = fn(buffer)
    return module
