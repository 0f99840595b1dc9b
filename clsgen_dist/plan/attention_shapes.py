"""Attention on the meta device: allocates what a run's kernels save and need, without computing.

``eager`` saves the scores of every pair, in fp32 and in the model's dtype, and its products count like all others.
Flash-attention saves queries, keys, values, output, and one number for each row and head; so does scaled-dot-product
attention on a GPU. On meta, torch's own would save the scores of every pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from clsgen_dist.model.attention import window_mask

# N packed tokens, T tokens of a sequence, H heads, K key-value heads, E head size

_PACKED = "clsgen_packed"
_PER_SEQUENCE = "clsgen_per_sequence"
_EAGER = "clsgen_eager"


def register_packed() -> str:
    """Register attention over all packed sequences in one kernel with transformers; returns its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(_PACKED, _packed_attention)
    return _PACKED


def _packed_attention(
    module: nn.Module, query_1HNE: Tensor, key_1KNE: Tensor, value_1KNE: Tensor, attention_mask: Any, **_: Any
) -> tuple[Tensor, None]:
    return _FlashShapes.apply(query_1HNE, key_1KNE, value_1KNE, None).transpose(1, 2), None


def register_per_sequence() -> str:
    """The same, one kernel per sequence, as :func:`clsgen_dist.model.attention.per_sequence_attention` runs it."""
    from transformers import AttentionInterface

    AttentionInterface.register(_PER_SEQUENCE, _per_sequence_attention)
    return _PER_SEQUENCE


def _per_sequence_attention(
    module: nn.Module, *packed_1HNE: Tensor, cu_seq_lens_q: Tensor, sliding_window: int | None = None, **_: Any
) -> tuple[Tensor, None]:
    outputs = [
        _FlashShapes.apply(query, key, value, window_mask(query.shape[2], sliding_window, query.device))
        for query, key, value in _sequences(packed_1HNE, cu_seq_lens_q)
    ]
    return torch.cat(outputs, 2).transpose(1, 2), None


def _sequences(packed_1HNE: tuple[Any, ...], cu_seq_lens_q: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Queries, keys and values of each sequence; the mask argument after them is ignored."""
    lengths = cu_seq_lens_q.diff().tolist()
    return zip(*(t.split(lengths, 2) for t in packed_1HNE[:3]), strict=True)


def register_eager() -> str:
    """Register attention that materializes all scores, sequence by sequence; returns its name.

    transformers runs it over rows padded to one length; the plan's rows have one length.
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
    """The allocations of flash-attention 2, forward and backward, for ``[1, H, T, E]``; values are not computed."""

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
            # The kernel's fp32 accumulator for the queries' gradient.
            torch.empty_like(q, dtype=torch.float32)
        return *(torch.empty_like(t).transpose(1, 2) for t in (q, k, v)), None
