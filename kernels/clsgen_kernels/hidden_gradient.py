"""Both heads' gradients at the hidden states: where they meet, and their sum at all positions."""

from __future__ import annotations

import torch
from torch import Tensor

# N tokens, n supervised tokens, S sequences, D hidden


def with_sums(
    tokens: int, rows: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """``[tokens, width]`` for a gradient, and fp32 ``[rows, width]`` in its memory; None where that has no room.

    There is room in two bytes an element if at most half of the tokens are rows. Neither is initialised.
    """
    if dtype.itemsize != 2 or 2 * rows > tokens or tokens * width % 2:
        return None
    grad_ND = torch.empty((tokens, width), dtype=dtype, device=device)
    return grad_ND, grad_ND.view(-1).view(torch.float32)[: rows * width].view(rows, width)


def scatter(
    grad_nD: Tensor, supervised_index_n: Tensor, grad_SD: Tensor, class_index_S: Tensor, grad_ND: Tensor
) -> Tensor:
    """Both heads' gradients at their positions of ``grad_ND``, summed in their own dtype where they meet; else 0.

    Positions are distinct within each head, so none is written twice: no atomics. ``grad_nD`` may lie in the memory of
    ``grad_ND``, see :func:`with_sums`.
    """
    if grad_nD.shape[0]:
        grad_SD = grad_SD + meeting(grad_nD, supervised_index_n, class_index_S, len(grad_ND))
    grad_nD = grad_nD.to(grad_ND.dtype)  # a copy, if it lies there: with 4 bytes an element of 2
    grad_ND.zero_()
    grad_ND[supervised_index_n] = grad_nD
    grad_ND[class_index_S] = grad_SD.to(grad_ND.dtype)
    return grad_ND


def meeting(grad_nD: Tensor, supervised_index_n: Tensor, class_index_S: Tensor, tokens: int) -> Tensor:
    """``[S, D]`` the LM head's gradient at the classification tokens, 0 where none is supervised."""
    n = grad_nD.shape[0]
    if not n:
        return grad_nD.new_zeros((len(class_index_S), grad_nD.shape[1]))
    row_N = torch.full((tokens,), -1, device=grad_nD.device)
    row_N[supervised_index_n] = torch.arange(n, device=grad_nD.device)
    row_S = row_N[class_index_S]
    return torch.where((row_S >= 0)[:, None], grad_nD[row_S.clamp(min=0)], 0)
