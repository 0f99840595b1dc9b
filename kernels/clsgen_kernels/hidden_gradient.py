"""Both heads' gradients at the hidden states: where they meet, and their sum at all positions."""

from __future__ import annotations

import torch
from torch import Tensor

# N tokens, n supervised tokens, S sequences, D hidden


def scatter(
    grad_nD: Tensor, supervised_index_n: Tensor, grad_SD: Tensor, class_index_S: Tensor, tokens: int, dtype: torch.dtype
) -> Tensor:
    """``[N, D]`` in ``dtype``: both heads' gradients at their positions, summed in their own dtype where they meet.

    Positions are distinct within each head, so none is written twice: no atomics.
    """
    grad_ND = torch.zeros((tokens, grad_SD.shape[1]), dtype=dtype, device=grad_nD.device)
    if grad_nD.shape[0]:
        grad_ND[supervised_index_n] = grad_nD.to(dtype)
        grad_SD = grad_SD + meeting(grad_nD, supervised_index_n, class_index_S, tokens)
    grad_ND[class_index_S] = grad_SD.to(dtype)
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
