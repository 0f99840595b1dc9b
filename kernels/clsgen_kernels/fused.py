"""The Triton path: forward, both heads in one launch; backward, slab by slab of the vocabulary.

Forward. ``row tiles x vocabulary splits`` programs plus the classification head's row tiles, all with the same loop.
Each keeps the online softmax (Milakov & Gimelshein 2018, arXiv 1805.02867) of its split; the split that finishes last
reduces all of them in order. One GEMM pass, no atomics but the arrival counters, bit-equal from run to run.

Backward, through one workspace ``G [n, slab]`` in the hidden states' dtype:

    G = g ∘ (∂loss/∂logits)        from the log-sum-exps and recomputed logits: one GEMM pass, none if they are stored
    dW_slab = Gᵀ·H                 written once; skipped if W is frozen
    dH     += G·W_slab             in fp32

The last two are plain products: the vendor's library on an NVIDIA GPU, our kernel elsewhere.

No ``n x V`` tensor is allocated here; :mod:`clsgen_kernels.stored_logits` says which logits are stored, and where.
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clsgen_kernels.inputs import Forward, HeadInputs, LMGradients, LMInputs
from clsgen_kernels.launch import Launch, Tile, choose

# n supervised tokens, S pooled rows, D hidden, V vocabulary, C class logits, K slab

_KINDS = {"softmax": 0, "sigmoid": 1, "multilabel": 1, "ordinal": 2, "soft": 3}


def interpreted() -> bool:
    """Whether Triton interprets its kernels in Python, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class _Kernels(NamedTuple):
    forward: Any
    gradient: Any
    matmul: Any


@functools.cache
def _kernels() -> _Kernels:
    """The Triton kernels; imported late, since ``TRITON_INTERPRET`` is read when they are defined."""
    from clsgen_kernels.triton_backward import gradient_kernel, matmul_kernel
    from clsgen_kernels.triton_forward import forward_kernel

    return _Kernels(forward_kernel, gradient_kernel, matmul_kernel)


class FusedForward(NamedTuple):
    """Both heads' results."""

    lm: Forward
    class_logits_SC: Tensor
    class_loss_S: Tensor
    tile_loss: Tensor
    """Sums over tiles of rows, the classification head's ``class_tiles`` first."""
    class_tiles: int

    @property
    def loss_sum(self) -> Tensor:
        """Sum of the losses, weighted if token weights were given."""
        return self.tile_loss[self.class_tiles :].sum()

    @property
    def class_loss_sum(self) -> Tensor:
        """Sum of the rows' losses."""
        return self.tile_loss[: self.class_tiles].sum()


def forward(
    lm: LMInputs,
    classes: HeadInputs,
    *,
    token_weight_n: Tensor | None = None,
    launch: Launch | None = None,
    stored_snK: Tensor | None = None,
) -> FusedForward:
    """Both heads' losses; logits of the first slabs are left in ``stored_snK``, in the hidden states' dtype."""
    launch = launch or choose(lm.hidden_nD.device, lm.hidden_nD.dtype)
    hidden_nD, weight_VD, options = lm.hidden_nD, lm.weight_VD, lm.options
    n, width = hidden_nD.shape
    vocabulary = weight_VD.shape[0]
    rows, outputs = classes.pooled_SD.shape[0], classes.weight_CD.shape[0]
    tile = _forward_tile(lm, launch)
    row_tiles, class_tiles = _tiles(n, tile.rows), _tiles(rows, tile.rows)
    column_tiles, group = _tiles(vocabulary, tile.columns), launch.group(tile, n, width, hidden_nD.element_size())
    tiles_per_split = _tiles(column_tiles, max(1, launch.programs // group))
    splits = _tiles(column_tiles, tiles_per_split)

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=hidden_nD.device)

    stored = [] if stored_snK is None else list(stored_snK)
    slab, slab_strides = (
        (tile.columns, (0, 0)) if stored_snK is None else (stored_snK.shape[2], stored_snK.stride()[:2])
    )
    assert slab % tile.columns == 0, f"a slab of {slab} columns does not consist of tiles of {tile.columns}"
    loss_n, lse_n, hit_n = new(n), new(n), new(n, dtype=torch.int8)
    class_logits_SC, class_loss_S = new(rows, outputs), new(rows)
    smooths = options.label_smoothing > 0
    parts_kPn, sums_kn = (new(4 if smooths else 3, splits, n), new(3 if smooths else 2, n))
    tile_loss = new(class_tiles + row_tiles)
    arrived = torch.zeros(row_tiles, dtype=torch.int32, device=hidden_nD.device)
    offset_Tn = None if stored_snK is None else new(column_tiles, n)
    unused, head_CD = tile_loss, classes.weight_CD.contiguous()
    class_weighted = classes.options.class_weight is not None
    if row_tiles + class_tiles:
        _launch(
            _kernels().forward, (class_tiles + row_tiles * splits,), hidden_nD,
            *_pointers(lm, unused), unused if token_weight_n is None else token_weight_n.contiguous(),
            classes.pooled_SD, head_CD, classes.bias_C.contiguous(), classes.label_S.contiguous(),
            classes.weights_C() if class_weighted else unused,
            *parts_kPn[:3], parts_kPn[-1], arrived, loss_n, lse_n, hit_n, *sums_kn[:2], sums_kn[-1],
            unused if stored_snK is None else stored_snK, unused if offset_Tn is None else offset_Tn,
            class_logits_SC, class_loss_S, tile_loss,
            n, vocabulary, width, rows, outputs, splits, tiles_per_split, row_tiles, class_tiles, group,
            len(stored) * slab, slab, *_strides(lm), *slab_strides, classes.pooled_SD.stride(0), head_CD.stride(0),
            *_scalars(lm), classes.options.focal_gamma,
            **_flags(lm),
            KIND=_KINDS[classes.options.kind],
            HAS_TOKEN_WEIGHT=token_weight_n is not None,
            HAS_CLASS_WEIGHT=class_weighted,
            HAS_FOCAL=classes.options.focal_gamma > 0,
            HAS_SMOOTHING=smooths,
            STORE_LOGITS=stored_snK is not None,
            DESCRIPTORS=_use_descriptors(tile, hidden_nD, weight_VD, *stored[:1]),
            **_blocks(tile, hidden_nD.dtype),
        )  # fmt: skip
    hit_n = hit_n.view(torch.bool)  # 0 and 1 as int8 are False and True: no launch to convert them
    logit_sum_n = sums_kn[2] if smooths else None
    lm_out = Forward(loss_n, lse_n, hit_n, sums_kn[0], sums_kn[1], logit_sum_n, offset_Tn=offset_Tn)
    return FusedForward(lm_out, class_logits_SC, class_loss_S, tile_loss, class_tiles)


def _launch(kernel: Any, grid: tuple[int, ...], near: Tensor, *arguments: Any, **constants: Any) -> None:
    """Launch on the GPU that holds ``near``, which need not be the process's current one."""
    with torch.cuda.device_of(near):
        kernel[grid](*arguments, **constants)


def backward(
    lm: LMInputs,
    lse_n: Tensor,
    upstream_n: Tensor,
    stored_snK: Tensor | None,
    *,
    offset_Tn: Tensor | None = None,
    weight_grad_VD: Tensor | None = None,
    accumulates: bool = False,
    hidden_grad_nD: Tensor | None = None,
    launch: Launch | None = None,
) -> LMGradients:
    """Gradients of the weighted losses; see :func:`clsgen_kernels.tiled.backward`, which has the same arguments.

    ``offset_Tn`` is the forward's: what is to be added to the logits in ``stored_snK``.
    """
    hidden_nD, weight_VD, dtype = lm.hidden_nD, lm.weight_VD, lm.hidden_nD.dtype
    launch = launch or choose(hidden_nD.device, dtype)
    n, width = hidden_nD.shape
    vocabulary = weight_VD.shape[0]
    slab = launch.slab(n, vocabulary, hidden_nD.element_size())
    workspace_nK = torch.empty((n, slab), dtype=dtype, device=hidden_nD.device)
    grad_nD = hidden_grad_nD
    if grad_nD is None:
        grad_nD = torch.empty((n, width), dtype=torch.float32, device=hidden_nD.device)
    grad_bias_V = None if lm.bias_V is None else torch.empty_like(lm.bias_V, dtype=torch.float32)
    if n == 0:
        for grad in (None if accumulates else weight_grad_VD, grad_bias_V):
            if grad is not None:
                grad.zero_()
        return LMGradients(grad_nD, weight_grad_VD, grad_bias_V)
    for number, first in enumerate(range(0, vocabulary, slab)):
        count = min(slab, vocabulary - first)
        grad_nK, part = workspace_nK[:, :count], slice(first, first + count)
        stored_nK = stored_snK[number] if stored_snK is not None and number < len(stored_snK) else None
        gradient_of_logits(lm, lse_n, upstream_n, stored_nK, grad_nK, first, launch, offset_Tn)
        if weight_grad_VD is not None:
            _matmul(grad_nK.T, hidden_nD, weight_grad_VD[part], launch.matmul, accumulate=accumulates)
        _matmul(grad_nK, weight_VD[part], grad_nD, launch.matmul, accumulate=first > 0)
        if grad_bias_V is not None:
            torch.sum(grad_nK, dim=0, dtype=torch.float32, out=grad_bias_V[part])
    return LMGradients(grad_nD, weight_grad_VD, grad_bias_V)


def gradient_of_logits(
    lm: LMInputs,
    lse_n: Tensor,
    upstream_n: Tensor,
    stored_nK: Tensor | None,
    grad_nK: Tensor,
    first: int,
    launch: Launch,
    offset_Tn: Tensor | None = None,
) -> None:
    """Write the gradient at the raw logits of columns ``first`` onwards into ``grad_nK``, from theirs if stored."""
    (n, count), width, vocabulary = grad_nK.shape, lm.hidden_nD.shape[1], lm.weight_VD.shape[0]
    tile, unused = launch.gradient_more if any(_flags(lm).values()) else launch.gradient, lse_n
    group = launch.group(tile, n, width, lm.hidden_nD.element_size())
    stored = [] if stored_nK is None else [stored_nK]
    _launch(
        _kernels().gradient, (_tiles(n, tile.rows) * _tiles(count, tile.columns),), lm.hidden_nD,
        *_pointers(lm, unused), lse_n, upstream_n, unused if stored_nK is None else stored_nK,
        unused if offset_Tn is None else offset_Tn, grad_nK, n, vocabulary, width, first, count, group, *_strides(lm),
        0 if stored_nK is None else stored_nK.stride(0), grad_nK.stride(0), *_scalars(lm),
        **_flags(lm),
        STORED=stored_nK is not None,
        STORED_COLUMNS=_forward_tile(lm, launch).columns,
        WIDTH_BY_16=count % 16 == 0,
        DESCRIPTORS=_use_descriptors(tile, lm.hidden_nD, lm.weight_VD, grad_nK, *stored),
        **_blocks(tile, lm.hidden_nD.dtype),
    )  # fmt: skip


def _use_descriptors(tile: Tile, *tensors: Tensor) -> bool:
    """Whether all can be read by descriptor: addresses and row strides are multiples of 16 bytes."""
    if not tile.descriptors or any(t.data_ptr() % 16 or t.stride(0) * t.element_size() % 16 for t in tensors):
        return False
    import triton

    # The kernel writes its descriptors to memory, which Triton asks this function for. It outlives the call, so it must
    # not hold the tensors.
    device = tensors[0].device
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=device))
    return True


def _pointers(lm: LMInputs, unused: Tensor) -> list[Tensor]:
    bias_V = unused if lm.bias_V is None else lm.bias_V.contiguous()
    return [lm.hidden_nD, lm.weight_VD, bias_V, lm.target_n.contiguous()]


def _strides(lm: LMInputs) -> list[int]:
    return [lm.hidden_nD.stride(0), lm.weight_VD.stride(0)]


def _scalars(lm: LMInputs) -> tuple[float, float, float, float]:
    options = lm.options
    return options.label_smoothing, options.label_smoothing / lm.vocabulary, options.z_loss, options.softcap or 1.0


def _flags(lm: LMInputs) -> dict[str, bool]:
    return {"HAS_BIAS": lm.bias_V is not None, "HAS_SOFTCAP": lm.options.softcap is not None}


def _matmul(a: Tensor, b: Tensor, out: Tensor, tile: Tile, *, accumulate: bool) -> None:
    """``out (+)= a @ b``: by the vendor's library on an NVIDIA GPU, under torch's global flags; else by our kernel.

    Sums are in fp32. The library may round partial sums of a split depth to bf16 where ``out`` is bf16
    (``torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction``), and multiplies fp32 without tensor cores
    unless ``torch.set_float32_matmul_precision`` allows TF32.
    """
    if a.is_cuda and not torch.version.hip:
        kind: dict[str, Any] = {} if out.dtype == a.dtype else {"out_dtype": out.dtype}
        if accumulate:
            torch.addmm(out, a, b, **kind, out=out)
        else:
            torch.mm(a, b, **kind, out=out)
        return
    rows, depth = a.shape
    columns = b.shape[1]
    blocks = _blocks(tile, a.dtype)
    _launch(
        _kernels().matmul, (_tiles(rows, tile.rows), _tiles(columns, tile.columns)), a,
        a, b, out, rows, columns, depth, *a.stride(), *b.stride(), out.stride(0),
        ACCUMULATE=accumulate,
        # Only of contiguous dimensions, which are the model's: the number of tokens must not compile new kernels.
        ROWS_BY_16=a.stride(0) == 1 and rows % 16 == 0,
        COLUMNS_BY_16=columns % 16 == 0,
        DEPTH_BY_16=a.stride(1) == 1 and depth % 16 == 0,
        BLOCK_M=blocks.pop("BLOCK_N"),
        BLOCK_N=blocks.pop("BLOCK_V"),
        BLOCK_K=blocks.pop("BLOCK_D"),
        **blocks,
    )  # fmt: skip


def _blocks(tile: Tile, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "BLOCK_N": tile.rows,
        "BLOCK_V": tile.columns,
        "BLOCK_D": tile.depth,
        # fp32 as three tf32 products: without tensor cores its tiles would spill. bf16 and fp16 ignore it.
        "PRECISION": "ieee" if torch.version.hip else "tf32x3",
        "WIDEN": interpreted() and dtype == torch.bfloat16,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _forward_tile(lm: LMInputs, launch: Launch) -> Tile:
    return launch.forward_more if lm.options.label_smoothing or any(_flags(lm).values()) else launch.forward


def _tiles(length: int, size: int) -> int:
    return -(-length // size)
