"""A test double of flash-attn 2.8 and of flash_attn_interface (3): their published signatures, computed by plain torch.

It refuses what the kernels refuse or would read wrongly in silence: dtypes other than fp16 and bf16, strided heads,
heads wider than 256, ``cu_seqlens`` that are not int32, on another device or do not span the tokens, a wrong
``max_seqlen``, a call that is not causal. ``Kernels.exact`` lets fp32 through, which the real kernels never do: only so
can a test compare with another implementation to six digits.

Sources: Dao-AILab/flash-attention, ``flash_attn/flash_attn_interface.py`` (2.8) and ``hopper/flash_attn_interface.py``
(3); ``csrc/flash_attn/flash_api.cpp`` for the checks.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

# N tokens of all queries, M of all keys, S sequences, H heads, K key-value heads, E head size


@dataclass
class Kernels:
    """The two packages, and what was asked of them."""

    exact: bool = False
    """Whether fp32 is let through."""
    varlen: list[dict[str, Any]] = field(default_factory=list)
    """Keyword arguments of each call for sequences of many lengths, with the shape of its queries."""
    batched: int = 0
    """Calls for a batch of equal lengths."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, **options: Any) -> Tensor:
        """``[N, H, E]`` attention of each sequence."""
        self._check(q, k, v)
        lengths_q = _lengths(cu_q, len(q), options["max_seqlen_q"], q.device, "q")
        lengths_k = _lengths(cu_k, len(k), options["max_seqlen_k"], q.device, "k")
        _require(len(lengths_q) == len(lengths_k), f"{len(lengths_q)} sequences of queries, {len(lengths_k)} of keys")
        _require(options["causal"], "causal=False: a decoder's queries would see what follows")
        parts = zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True)
        return torch.cat([_attend(*part, options) for part in parts])

    def _check(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        halves = (torch.float16, torch.bfloat16) + ((torch.float32,) if self.exact else ())
        _require(q.dtype in halves, f"FlashAttention only supports fp16 and bf16 data type, got {q.dtype}")
        _require(q.dtype == k.dtype == v.dtype, f"query and key must have the same dtype: {q.dtype}, {k.dtype}")
        _require(q.device == k.device == v.device, "query and key are on different devices")
        _require(q.dim() == k.dim() == v.dim() == 3, f"expected [tokens, heads, size], got {tuple(q.shape)}")
        _require(k.shape == v.shape, f"keys {tuple(k.shape)}, values {tuple(v.shape)}")
        _require(q.shape[2] == k.shape[2] <= 256, f"head size {q.shape[2]}; at most 256 are supported")
        _require(q.shape[1] % k.shape[1] == 0, f"{q.shape[1]} heads over {k.shape[1]} key-value heads")
        for name, tensor in {"query": q, "key": k, "value": v}.items():
            _require(tensor.stride(-1) == 1, f"{name} must have contiguous last dimension")

    def modules(self, version: int) -> dict[str, types.ModuleType]:
        """What ``import`` finds: ``flash_attn`` and its ``bert_padding``, or ``flash_attn_interface``."""
        functions = _version_2(self) if version == 2 else _version_3(self)
        name = "flash_attn" if version == 2 else "flash_attn_interface"
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__dict__.update({function.__name__: function for function in functions})
        if version == 3:
            return {name: module}
        from transformers.modeling_flash_attention_utils import _pad_input, _unpad_input

        padding = types.ModuleType("flash_attn.bert_padding")
        padding.__dict__.update(pad_input=_pad_input, unpad_input=_unpad_input)
        return {name: module, "flash_attn.bert_padding": padding}


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise RuntimeError(message)


def _lengths(cu: Tensor, total: int, longest: Any, device: torch.device, name: str) -> list[int]:
    _require(isinstance(cu, Tensor) and cu.dtype == torch.int32, f"cu_seqlens_{name} must have dtype int32")
    _require(cu.device == device, f"cu_seqlens_{name} is on {cu.device}, expected {device}")
    _require(cu.dim() == 1 and cu.is_contiguous(), f"cu_seqlens_{name} must be contiguous")
    # The real operators' schema takes a tensor of one element for an int, and reads it: transformers relies on that.
    _require(type(longest) is int or longest.dtype == torch.int32, f"max_seqlen_{name} is {longest!r}, expected int")
    lengths: list[int] = cu.diff().tolist()
    _require(int(cu[0]) == 0 and int(cu[-1]) == total, f"cu_seqlens_{name} spans {cu.tolist()}, of {total} tokens")
    _require(min(lengths) >= 0 and max(lengths) == longest, f"max_seqlen_{name} is {longest}, of lengths {lengths}")
    return lengths


def _attend(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
    """Causal to the bottom right, as flash-attn 2.1 and later: the last query sees the last key."""
    groups = q.shape[1] // k.shape[1]
    q, k, v = q.transpose(0, 1), *(t.transpose(0, 1).repeat_interleave(groups, 0) for t in (k, v))
    scale, cap = options["softmax_scale"], options["softcap"]
    scores = (q @ k.transpose(1, 2)).float() * (q.shape[-1] ** -0.5 if scale is None else scale)
    if cap:
        scores = cap * torch.tanh(scores / cap)
    behind = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1] - torch.arange(k.shape[1])[None]
    left, _ = options["window_size"]  # causal: nothing on the right
    scores = scores.masked_fill((behind < 0) | ((behind > left) if left >= 0 else False), -torch.inf)
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(0, 1)


def _batch(kernels: Kernels, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    kernels.batched += 1
    _require(q.dim() == 4, f"expected [rows, tokens, heads, size], got {tuple(q.shape)}")
    cu = [torch.arange(len(t) + 1, dtype=torch.int32) * t.shape[1] for t in (q, k)]
    sizes = {"max_seqlen_q": q.shape[1], "max_seqlen_k": k.shape[1]}
    return kernels.attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), *cu, **options, **sizes).view_as(q)


def _varlen(kernels: Kernels, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, **options: Any) -> Tensor:
    kernels.varlen.append({"shape": tuple(q.shape), "cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k, **options})
    return kernels.attend(q, k, v, cu_q, cu_k, **options)


def _version_2(kernels: Kernels) -> list[Any]:
    def flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
        alibi_slopes=None, deterministic=False, return_attn_probs=False,
    ):  # fmt: skip
        return _batch(
            kernels, q, k, v, softmax_scale=softmax_scale, causal=causal, window_size=window_size, softcap=softcap
        )

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
        return_attn_probs=False, block_table=None,
    ):  # fmt: skip
        return _varlen(
            kernels, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k,
            softmax_scale=softmax_scale, causal=causal, window_size=window_size, softcap=softcap,
        )  # fmt: skip

    def flash_attn_with_kvcache(q, k_cache, v_cache, k=None, v=None, cache_seqlens=None, block_table=None):
        raise AssertionError("paged attention, which nothing here asks for")

    return [flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache]


def _version_3(kernels: Kernels) -> list[Any]:
    def flash_attn_func(
        q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0, return_attn_probs=False,
    ):  # fmt: skip
        return _batch(
            kernels, q, k, v, softmax_scale=softmax_scale, causal=causal, window_size=window_size, softcap=softcap
        )

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
        softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0, return_attn_probs=False,
    ):  # fmt: skip
        return _varlen(
            kernels, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k,
            softmax_scale=softmax_scale, causal=causal, window_size=window_size, softcap=softcap,
        )  # fmt: skip

    def flash_attn_with_kvcache(q, k_cache, v_cache, k=None, v=None, cache_seqlens=None, page_table=None):
        raise AssertionError("paged attention, which nothing here asks for")

    return [flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache]


def install_torch(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """A double of torch 2.13's ``varlen_attn``, without flash-attn; fp32 passes, and the CPU counts as a GPU."""
    from clsgen_dist.model import attention

    kernels = Kernels(exact=True)

    def varlen_attn(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
        enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
    ):  # fmt: skip
        _require(enable_gqa or query.shape[1] == key.shape[1], "Try setting enable_gqa=True for GQA")
        _require(query.shape[2] % 8 == 0, f"head size {query.shape[2]}, expected a multiple of 8")
        return _varlen(
            kernels, query, key, value, cu_seq_q, cu_seq_k, max_seqlen_q=max_q, max_seqlen_k=max_k, softmax_scale=scale,
            causal=window_size[1] == 0, window_size=window_size, softcap=0.0,
        )  # fmt: skip

    monkeypatch.setattr(attention, "_varlen_attn", lambda: varlen_attn)
    monkeypatch.setattr(attention, "_varlen_runs", lambda query, value: query.shape[-1] % 8 == 0)
    return kernels


def _with_classes_of_their_own() -> list[types.ModuleType]:
    """Loaded families that call flash-attention themselves, and import it only if it is there when they are loaded."""
    loaded = [
        module for name, module in sys.modules.items() if ".modeling_" in name and name.startswith("transformers.")
    ]
    return [module for module in loaded if any(name.endswith("FlashAttention2") for name in vars(module))]


def install(monkeypatch: pytest.MonkeyPatch, version: int, *, exact: bool = False) -> Kernels:
    """Make transformers find the double of this version, and a device for it; the other version is not installed."""
    import transformers.modeling_flash_attention_utils as flash
    import transformers.modeling_utils
    import transformers.utils

    kernels = Kernels(exact)
    for name, module in kernels.modules(version).items():
        monkeypatch.setitem(sys.modules, name, module)
    for number in (2, 3):
        found = lambda *_, here=number == version, **__: here  # noqa: E731
        for place in (flash, transformers.utils):
            monkeypatch.setattr(place, f"is_flash_attn_{number}_available", found)
        entry = {
            **flash.FLASH_ATTENTION_COMPATIBILITY_MATRIX[number],
            "general_availability_check": found,
            "pkg_availability_check": found,
            "supported_devices": ((lambda: True, "cpu"),),
        }
        monkeypatch.setitem(flash.FLASH_ATTENTION_COMPATIBILITY_MATRIX, number, entry)
    monkeypatch.setattr(transformers.modeling_utils, "is_flash_attn_greater_or_equal", lambda _: version == 2)
    for module in _with_classes_of_their_own():
        monkeypatch.setattr(module, "_flash_attention_forward", flash._flash_attention_forward, raising=False)
    for name in ("_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_flash_with_kvcache_fn", "_pad_fn",
                 "_unpad_fn", "_process_flash_kwargs_fn", "_process_with_kvcache_kwargs_fn"):  # fmt: skip
        monkeypatch.setattr(flash, name, None)
    return kernels
