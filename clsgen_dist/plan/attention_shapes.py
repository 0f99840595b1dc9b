"""Attention on the meta device: what the kernels of a run keep and need, without the work.

``eager`` keeps the scores of every pair, once in fp32 and once in the model's dtype, and its products are like others.
Flash-attention keeps queries, keys, values, output, and one number a row and head; so does scaled-dot-product attention
on every real device. On meta it would keep the scores of every pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from clsgen_dist.model.attention import window_mask

# N packed tokens, T tokens of a sequence, H heads, K key-value heads, E head size

_ONE_PIECE = "clsgen_one_piece"
_APART = "clsgen_apart"
_EAGER = "clsgen_eager"


def one_piece() -> str:
    """Make the attention over all packed sequences at once known to transformers; returns its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(_ONE_PIECE, _one_piece_attention)
    return _ONE_PIECE


def _one_piece_attention(
    module: nn.Module, query_1HNE: Tensor, key_1KNE: Tensor, value_1KNE: Tensor, attention_mask: Any, **_: Any
) -> tuple[Tensor, None]:
    return _FlashShapes.apply(query_1HNE, key_1KNE, value_1KNE, None).transpose(1, 2), None


def apart() -> str:
    """The same, once per sequence, as :func:`clsgen_dist.model.attention.per_sequence_attention` runs it."""
    from transformers import AttentionInterface

    AttentionInterface.register(_APART, _apart_attention)
    return _APART


def _apart_attention(
    module: nn.Module, *packed_1HNE: Tensor, cu_seq_lens_q: Tensor, sliding_window: int | None = None, **_: Any
) -> tuple[Tensor, None]:
    outputs = [
        _FlashShapes.apply(query, key, value, window_mask(query.shape[2], sliding_window, query.device))
        for query, key, value in _sequences(packed_1HNE, cu_seq_lens_q)
    ]
    return torch.cat(outputs, 2).transpose(1, 2), None


def _sequences(packed_1HNE: tuple[Any, ...], cu_seq_lens_q: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Queries, keys and values of each sequence; a mask that follows them is left out."""
    lengths = cu_seq_lens_q.diff().tolist()
    return zip(*(t.split(lengths, 2) for t in packed_1HNE[:3]), strict=True)


def eager() -> str:
    """Make the attention that writes all scores down known to transformers, once per sequence; returns its name.

    transformers runs it over rows padded to one length, which rows of one length are.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(_EAGER, _eager_attention)
    return _EAGER


def _eager_attention(
    module: nn.Module, *packed_1HNE: Tensor, cu_seq_lens_q: Tensor, scaling: float = 1.0, **_: Any
) -> tuple[Tensor, None]:
    outputs = []
    for query, key, value in _sequences(packed_1HNE, cu_seq_lens_q):
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
        score = query @ key.mT * scaling
        score = score + torch.empty_like(score[:, :1])  # the mask
        outputs.append(score.softmax(-1, dtype=torch.float32).to(query.dtype) @ value)
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


class _FlashShapes(torch.autograd.Function):
    """Shapes of flash-attention 2, forward and backward, of ``[1, H, T, E]``; values are not computed."""

    @staticmethod
    def forward(ctx: Any, query_1HTE: Tensor, key_1KTE: Tensor, value_1KTE: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (t.transpose(1, 2).contiguous() for t in (query_1HTE, key_1KTE, value_1KTE))
        out = torch.empty_like(q)
        lse = torch.empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32, device=q.device)
        ctx.save_for_backward(q, k, v, out, lse, mask)
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, *_ = ctx.saved_tensors
        if q.dtype != torch.float32:
            # An fp32 accumulator for the queries' gradient, as the kernel keeps one.
            torch.empty_like(q, dtype=torch.float32)
        return *(torch.empty_like(t).transpose(1, 2) for t in (q, k, v)), None
