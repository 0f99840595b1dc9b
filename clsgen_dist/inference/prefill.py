"""Prompts through the backbone: padded on the left, so that every prompt ends in the last column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clsgen_dist.data.encode import Ids
from clsgen_dist.model.attention import accepted_inputs

# N texts, S sequences of a batch, T padded length, D hidden

_MOST_TOKENS = 8192


def fit_together(lengths: Sequence[int], *, may_pad: bool) -> bool:
    """Whether prompts are put through the model at once: few enough tokens, padding included; of one length, where
    padding changes a row's states. One prompt always is.
    """
    few = len(lengths) * max(lengths) <= _MOST_TOKENS
    return len(lengths) == 1 or (few and (may_pad or len(set(lengths)) == 1))


def left_padded(prompts: Sequence[Ids], pad_token: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask ``[S, T]`` with every prompt ending in the last column."""
    length = max(map(len, prompts))
    ids_ST = torch.full((len(prompts), length), pad_token)
    mask_ST = torch.zeros_like(ids_ST)
    for row, prompt in enumerate(prompts):
        ids_ST[row, length - len(prompt) :] = torch.from_numpy(prompt)
        mask_ST[row, length - len(prompt) :] = 1
    return ids_ST.to(device), mask_ST.to(device)


def prefill(lm: Any, ids_ST: Tensor, mask_ST: Tensor, *, use_cache: bool) -> Any:
    """The backbone's outputs for left-padded prompts; ``last_hidden_state[:, -1]`` are the classification states."""
    position_ST = (mask_ST.cumsum(dim=1) - 1).clamp(min=0)
    inputs = {"input_ids": ids_ST, "attention_mask": mask_ST, "position_ids": position_ST, "use_cache": use_cache}
    return lm.base_model(**accepted_inputs(lm.base_model, inputs))


@torch.inference_mode()
def classification_states(lm: Any, prompts: Sequence[Ids], pad_token: int, batch_size: int = 32) -> np.ndarray:
    """``[N, D]`` final-norm states at the classification tokens, the features of a linear probe."""
    states = []
    for start in range(0, len(prompts), batch_size):
        ids_ST, mask_ST = left_padded(prompts[start : start + batch_size], pad_token, lm.device)
        states.append(prefill(lm, ids_ST, mask_ST, use_cache=False).last_hidden_state[:, -1].float().cpu())
    return torch.cat(states).numpy()
