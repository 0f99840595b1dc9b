"""Attention over packed sequences: no sequence attends to another, and no N x N mask is materialised.

On a GPU, flash-attention takes the cumulative sequence lengths ("varlen"): that of the flash-attn package, or torch's
own where it is not installed and the attention has no dropout, soft cap or sinks. Elsewhere, scaled-dot-product
attention runs once per sequence with a causal mask: Σ Tᵢ² work instead of N². On two cores this is faster than one call
over padded sequences or with a block-diagonal mask: 14, 20 and 205 ms per layer, forward and backward, for 34 sequences
of 60 tokens; 27, 178 and 203 ms for 20 of 60 and three of 200 to 350 (9 heads of 64).

transformers calls this through its attention interface; positions are part of the batch. The reference is ``eager``,
transformers' own, with a block-diagonal mask.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import MutableMapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from clsgen_dist.errors import ModelError, first_line

# N packed tokens, S sequences, T tokens of the longest, H heads, K key-value heads, E head size

_PER_SEQUENCE = "clsgen_per_sequence"


def per_sequence_attention(
    module: nn.Module,
    query_SHTE: Tensor,
    key_SKTE: Tensor,
    value_SKTE: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence, ``[S, T, H, E]``; the arguments are those of transformers' interface.

    Packed (``S = 1``): one call per sequence of ``cu_seq_lens_q``, or one for all where torch's kernels take lengths.
    Without it, each of the S rows is a sequence, padded on the right if at all, so that the causal mask suffices.

    Raises:
        ValueError: the model passes a mask of its own.
    """
    if attention_mask is not None:
        raise ValueError(
            f"{type(module).__name__} passes an attention mask, expected none: this attention would ignore it; set "
            "model.attention to eager"
        )
    plain = not dropout and softcap is None and s_aux is None
    if cu_seq_lens_q is not None and plain and _varlen_runs(query_SHTE, value_SKTE):
        packed = query_SHTE, key_SKTE, value_SKTE
        return _in_one_call(packed, cu_seq_lens_q, max_length_q, scaling, sliding_window), None
    lengths = [query_SHTE.shape[2]] if cu_seq_lens_q is None else _lengths(cu_seq_lens_q)
    outputs = [
        _attend(query, key, value, mask, dropout, scaling, softcap, s_aux)
        for query, key, value in zip(
            query_SHTE.split(lengths, 2), key_SKTE.split(lengths, 2), value_SKTE.split(lengths, 2), strict=True
        )
        for mask in [window_mask(query.shape[2], sliding_window, query.device)]
    ]
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


def _in_one_call(
    packed_1HNE: tuple[Tensor, Tensor, Tensor],
    cu_seq_lens: Tensor,
    longest: int | None,
    scale: float | None,
    sliding_window: int | None,
) -> Tensor:
    """``[1, N, H, E]`` attention of all sequences, by torch's kernels."""
    query_NHE, key_NKE, value_NKE = (t[0].transpose(0, 1) for t in packed_1HNE)
    longest = longest or max(_lengths(cu_seq_lens))
    output_NHE: Tensor = _varlen_attn()(
        query_NHE,
        key_NKE,
        value_NKE,
        cu_seq_lens,
        cu_seq_lens,
        longest,
        longest,
        scale=scale,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=query_NHE.shape[1] != key_NKE.shape[1],
    )
    return output_NHE[None]


@functools.cache
def _varlen_attn() -> Any:
    """torch's flash-attention for sequences of many lengths, with its windows; None if this torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None


def _varlen_runs(query: Tensor, value: Tensor) -> bool:
    """Whether :func:`_varlen_attn` has kernels for these tensors: NVIDIA, half precision, equal heads of some sizes."""
    size = query.shape[-1]
    return (
        _varlen_attn() is not None
        and query.is_cuda
        and (_capability() or (0, 0)) >= (8, 0)
        and query.dtype in (torch.bfloat16, torch.float16)
        and size == value.shape[-1] <= _WIDEST_HEAD
        and size % 8 == 0
    )


_lengths_of: MutableMapping[Tensor, list[int]] = WeakTensorKeyDictionary()


def _lengths(cu_seq_lens: Tensor) -> list[int]:
    """Tokens of each sequence; read from a GPU once per micro-batch, not in every layer, where the host would wait."""
    if cu_seq_lens not in _lengths_of:
        _lengths_of[cu_seq_lens] = cu_seq_lens.diff().tolist()
    return _lengths_of[cu_seq_lens]


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scale: float | None,
    softcap: float | None,
    sinks_H: Tensor | None,
) -> Tensor:
    """Causal attention; written out if scores have a soft cap (Gemma 2) or sinks (gpt-oss), which SDPA lacks."""
    if softcap is None and sinks_H is None:
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    scores_SHTT = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores_SHTT = softcap * torch.tanh(scores_SHTT / softcap)
    length = query.shape[2]
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    scores_SHTT = scores_SHTT.masked_fill(~mask, torch.finfo(scores_SHTT.dtype).min)
    if sinks_H is not None:
        sinks = sinks_H.reshape(1, -1, 1, 1).expand(len(query), -1, length, 1)
        scores_SHTT = torch.cat([scores_SHTT, sinks.to(scores_SHTT.dtype)], dim=-1)
    weights_SHTT = scores_SHTT.softmax(dim=-1, dtype=torch.float32).to(query.dtype)[..., :length]
    return F.dropout(weights_SHTT, dropout) @ value


def window_mask(length: int, sliding_window: int | None, device: torch.device) -> Tensor | None:
    """``[T, T]`` boolean mask of a sliding window; None if the causal mask suffices."""
    if sliding_window is None or length <= sliding_window:
        return None
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < sliding_window)


def register_per_sequence_attention() -> str:
    """Register :func:`per_sequence_attention` with transformers; returns its ``attn_implementation``."""
    from transformers import AttentionInterface

    AttentionInterface.register(_PER_SEQUENCE, per_sequence_attention)
    return _PER_SEQUENCE


def supports_custom_attention(lm: Any) -> bool:
    """Whether the model uses transformers' attention interface, where ours is registered."""
    return bool(getattr(lm, "_supports_attention_backend", False))


def accepted_inputs(module: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments that a backbone's forward accepts."""
    parameters = inspect.signature(module.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return inputs
    return {name: value for name, value in inputs.items() if name in parameters}


def packed_inputs(input_ids_N: Tensor, position_N: Tensor, sequence_start_S1: Tensor, longest: int) -> dict[str, Any]:
    """Keyword arguments of a transformers backbone for packed sequences.

    Args:
        input_ids_N: ``[N]`` tokens of all sequences, end to end.
        position_N: ``[N]`` position of each token in its sequence, from 0.
        sequence_start_S1: ``[S + 1]`` where each sequence begins, and N; int32.
        longest: tokens of the longest sequence.
    """
    return {
        "input_ids": input_ids_N[None],
        "position_ids": position_N[None],
        "attention_mask": None,
        "use_cache": False,
        "cu_seq_lens_q": sequence_start_S1,
        "cu_seq_lens_k": sequence_start_S1,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def rows_of_tokens(sequence_start_S1: Tensor, total: int) -> Tensor:
    """``[N]`` the sequence that each of the ``total`` packed tokens belongs to."""
    rows = torch.arange(len(sequence_start_S1) - 1, device=sequence_start_S1.device)
    return rows.repeat_interleave(sequence_start_S1.diff(), output_size=total)


def padded_inputs(input_ids_N: Tensor, position_N: Tensor, row_N: Tensor, rows: int, longest: int) -> dict[str, Any]:
    """Keyword arguments for the same sequences as rows of a batch, padded on the right.

    A causal model needs no mask: padding follows the tokens, so it cannot change their states.

    Args:
        input_ids_N: ``[N]`` tokens of all sequences, end to end.
        position_N: ``[N]`` position of each token in its sequence, from 0.
        row_N: ``[N]`` the row of each token.
        rows: number of rows.
        longest: tokens of the longest row.
    """
    ids_ST = input_ids_N.new_full((rows, longest), int(input_ids_N[0]))
    ids_ST[row_N, position_N] = input_ids_N
    positions_ST = torch.arange(longest, device=input_ids_N.device).expand(rows, -1)
    return {"input_ids": ids_ST, "position_ids": positions_ST, "attention_mask": None, "use_cache": False}


def choose_attention(
    wanted: str, *, on_gpu: bool, dtype: torch.dtype | None = None, packed: bool = False, lm: Any = None
) -> str:
    """The attention kernel for ``attn_implementation``; ModelError if the requested one is not available.

    ``dtype``: of the states, which flash-attention takes in half precision only; None: not known. ``packed``: for
    packed sequences, where SDPA runs once per sequence. ``lm``: the model, which must support the kernel; it may be on
    the meta device.
    """
    faults = {
        "flash_attention_3": _flash_fault(3, on_gpu, dtype, lm),
        "flash_attention_2": _flash_fault(2, on_gpu, dtype, lm),
        # Ours for packed sequences also knows what SDPA lacks (Gemma 2's soft cap of scores, gpt-oss's sinks).
        "sdpa": None
        if lm is None or getattr(lm, "_supports_sdpa", False) or (packed and supports_custom_attention(lm))
        else f"which {type(lm).__name__} does not support",
        "eager": None,
    }
    if wanted == "auto":
        wanted = next(name for name, fault in faults.items() if fault is None)
    if fault := faults[wanted]:
        raise ModelError(f"model.attention is {wanted!r}, {fault}; use model.attention=auto")
    return (
        register_per_sequence_attention()
        if packed and wanted == "sdpa" and (lm is None or supports_custom_attention(lm))
        else wanted
    )


_CAPABILITIES = {2: (8, 99), 3: (8, 9)}
"""First and last compute capability, major, of NVIDIA chips that a version of flash-attention has kernels for."""
_WIDEST_HEAD = 256
"""Largest head size of flash-attention 2 and 3."""
_WRONG = {"gpt_neo", "gptj"}
"""Model types whose class for flash-attention in transformers computes something else than eager: GPT-Neo's scales
scores and has no local windows; GPT-J's takes no sequence lengths, so packed rows see each other."""


def _flash_fault(version: int, on_gpu: bool, dtype: torch.dtype | None, lm: Any) -> str | None:
    """Why this version of flash-attention cannot be used here, as the end of a sentence; None if it can."""
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    installed = is_flash_attn_2_available() if version == 2 else is_flash_attn_3_available()
    if not (on_gpu and installed):
        return "which needs a GPU and the flash-attn package (pip install '.[gpu]')"
    first, last = _CAPABILITIES[version]
    if (found := _capability()) is not None and not first <= found[0] <= last:
        return f"which has no kernels for compute capability {found[0]}.{found[1]}"
    if dtype is not None and dtype not in (torch.bfloat16, torch.float16):
        return f"which computes in half precision, not in {str(dtype).removeprefix('torch.')}"
    return None if lm is None else _model_fault(f"flash_attention_{version}", lm)


def _capability() -> tuple[int, int] | None:
    """Compute capability of this process's NVIDIA GPU; None on other chips."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() and torch.version.hip is None else None


def _model_fault(name: str, lm: Any) -> str | None:
    """Why a model cannot use this version of flash-attention; asks transformers, which would fail or load another."""
    unsupported = f"which {type(lm).__name__} does not support"
    compatible = getattr(lm, "_compatible_flash_implementations", None)
    # Outside its list (attention sinks: gpt-oss) transformers loads another kernel from the hub instead.
    supported = getattr(lm, "_supports_flash_attn", False) and lm.config.model_type not in _WRONG
    if not supported or (compatible is not None and name not in compatible):
        return unsupported
    if (widest := _widest_head(lm)) > _WIDEST_HEAD:
        return f"which takes heads of at most {_WIDEST_HEAD}, and {type(lm).__name__} has {widest}"
    try:
        found = lm._check_and_adjust_attn_implementation(name, is_init_check=True)
    except (ValueError, ImportError) as error:
        return f"{unsupported} here ({first_line(error)})"
    return None if found == name else unsupported


def _widest_head(lm: Any) -> int:
    """The largest head size of any layer."""
    sizes = [getattr(module, name, 0) for module in lm.modules() for name in ("head_dim", "qk_head_dim")]
    return max((size for size in sizes if isinstance(size, int)), default=0)
