"""Which implementation runs where."""

from __future__ import annotations

import functools
import importlib.util
import logging

import torch

from clsgen_kernels import fused

IMPLEMENTATIONS = ("auto", "reference", "torch", "triton")
logger = logging.getLogger(__name__)


def resolve_impl(impl: str, device: torch.device | str = "cpu") -> str:
    """The implementation that ``impl`` selects on a device; ValueError if it is unknown or cannot run there.

    ``"auto"`` is Triton on a GPU and vocabulary tiles in torch elsewhere, never the reference; logged once.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl {impl!r} is not one of {', '.join(IMPLEMENTATIONS)}; use impl='auto' if unsure")
    kind = torch.device(device).type
    if impl == "triton" and kind != "cuda" and not fused.interpreted():
        raise ValueError(
            f"impl 'triton' needs tensors on a GPU, these are on {kind}; use 'auto' (or TRITON_INTERPRET=1 in tests)"
        )
    if impl != "auto":
        return impl
    return _auto(kind)


@functools.cache
def _auto(kind: str) -> str:
    chosen, why = "torch", f"tensors are on {kind}"
    if kind == "cuda" and importlib.util.find_spec("triton") is None:
        why = "Triton is not installed"
    elif kind == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        why = f"the kernels need compute capability 8.0, this GPU has {torch.cuda.get_device_capability()}"
    elif kind == "cuda":
        chosen, why = "triton", "a GPU and Triton are available"
    logger.info("dual_head_loss: impl 'auto' is %r, since %s", chosen, why)
    return chosen
