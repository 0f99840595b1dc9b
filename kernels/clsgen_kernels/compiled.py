"""The loss under ``torch.compile``: two custom operators, at which no graph breaks.

The compiler sees their shapes only; inside they run as without it, checks included. Options are constants of the
graph. Of :class:`clsgen_kernels.Execution` only ``vocab_tile`` may be set: what adds to other tensors, or talks to
other ranks, is to be called outside of the compiled function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clsgen_kernels.autograd import (
    Kept,
    Plan,
    backward,
    carries_expectation,
    drops_states,
    forward,
    marked,
    without_autocast,
)
from clsgen_kernels.checks import check
from clsgen_kernels.implementation import resolve_impl
from clsgen_kernels.inputs import Call, ClassOptions, Execution, GenerationOptions, Results, Tensors, Wants
from clsgen_kernels.tiled import tile_rows

# N tokens, n supervised tokens, S sequences, D hidden, V vocabulary, C classes

_TENSORS = (
    "Tensor hidden, Tensor lm_weight, Tensor head_weight, Tensor head_bias, Tensor? lm_bias, Tensor supervised_index, "
    "Tensor target, Tensor class_index, Tensor label, Tensor? dropout_scale, Tensor? token_weight"
)
_OPTIONS = (
    "str impl, float label_smoothing, float z_loss, float? softcap, float logit_scale, str kind, "
    "float[]? class_weight, float focal_gamma, bool sums, int? vocab_tile, bool[] wants"
)
_N_TENSORS = len(Tensors._fields)


def call(given: Tensors, asked: Call, wants: Wants) -> Results:
    """The losses, as one operator; ValueError for options that it does not have."""
    execution = asked.execution
    for name in ("launch", "vocab_shards", "lm_weight_grad_VD", "hidden_grad_square"):
        if getattr(execution, name) is not None:
            raise ValueError(f"Execution.{name} is set inside torch.compile; call the loss outside, or leave it out")
    generation, classes = asked.generation, asked.classification
    options = (
        asked.impl,
        generation.label_smoothing,
        generation.z_loss,
        generation.softcap,
        generation.logit_scale,
        classes.kind,
        None if classes.class_weight is None else list(classes.class_weight),
        classes.focal_gamma,
        asked.sums,
        execution.vocab_tile,
        list(wants),
    )
    return Results(*_dual_head(*given, *options)[: len(Results._fields)])


def _call_of(options: tuple[Any, ...], device: torch.device) -> tuple[Call, Wants]:
    impl, smoothing, z_loss, softcap, scale, kind, class_weight, gamma, sums, tile, wants = options
    return Call(
        resolve_impl(impl, device),
        GenerationOptions(smoothing, z_loss, softcap, scale),
        ClassOptions(kind, None if class_weight is None else tuple(class_weight), gamma),
        sums,
        Execution(vocab_tile=tile, store_bytes=0),  # how many logits are kept would depend on data
    ), Wants(*wants)


@torch.library.custom_op(
    "clsgen::dual_head",
    mutates_args=(),
    schema=f"({_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _dual_head(*args: Any) -> tuple[Tensor, ...]:
    """Results, and what is kept and not given: compacted states, expected embeddings, pooled states, slopes."""
    given = Tensors(*args[:_N_TENSORS])
    asked, wants = _call_of(args[_N_TENSORS:], given.hidden_ND.device)
    with without_autocast(given.hidden_ND.device.type):
        check(given, asked)
        results, kept, _ = forward(given, asked, wants)
    if kept is None:
        return (*results, *(given.hidden_ND.new_empty(0) for _ in range(4)))
    expected_nD = given.hidden_ND.new_empty(0) if kept.expected_nD is None else kept.expected_nD
    return (*results, kept.hidden_nD.clone(), expected_nD, kept.pooled_SD.clone(), kept.class_slope_SC)


@_dual_head.register_fake
def _shapes(*args: Any) -> tuple[Tensor, ...]:
    given = Tensors(*args[:_N_TENSORS])
    asked, wants = _call_of(args[_N_TENSORS:], given.hidden_ND.device)
    hidden_ND, (n,), (rows,) = given.hidden_ND, given.target_n.shape, given.class_index_S.shape
    width, outputs = hidden_ND.shape[1], given.head_weight_CD.shape[0]
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    pooled = hidden_ND.dtype
    if given.dropout_scale_SD is not None:
        pooled = torch.promote_types(wide, given.dropout_scale_SD.dtype)
    fused = asked.impl == "triton"
    of_classes = torch.float32 if fused else torch.promote_types(pooled, torch.float32)

    def new(*shape: Any, dtype: torch.dtype = wide) -> Tensor:
        return hidden_ND.new_empty(shape, dtype=dtype)

    results = (
        new(*(() if asked.sums else (n,))),
        new(rows, outputs, dtype=of_classes),
        new(*(() if asked.sums else (rows,)), dtype=of_classes),
        new(n, dtype=torch.bool),
        new(n),
    )
    if not any(wants):
        return (*results, *(new(0, dtype=hidden_ND.dtype) for _ in range(4)))
    carries = not fused and carries_expectation(asked.generation, wants)
    return (
        *results,
        new(0 if drops_states(carries, wants) else n, width, dtype=hidden_ND.dtype),
        new(n, width) if carries else new(0, dtype=hidden_ND.dtype),
        new(rows, width, dtype=pooled),
        new(rows, outputs, dtype=of_classes),
    )


@torch.library.custom_op(
    "clsgen::dual_head_backward",
    mutates_args=(),
    schema=f"(Tensor? grad_loss, Tensor? grad_logits, Tensor? grad_class_loss, Tensor lse, Tensor compacted, "
    f"Tensor expected, Tensor pooled, Tensor slope, {_TENSORS}, {_OPTIONS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _dual_head_backward(*args: Any) -> tuple[Tensor, ...]:
    """Gradients of the five differentiable tensors, empty where none is asked for."""
    grads, (lse_n, hidden_nD, expected_nD, pooled_SD, slope_SC), rest = args[:3], args[3:8], args[8:]
    given = Tensors(*rest[:_N_TENSORS])
    asked, wants = _call_of(rest[_N_TENSORS:], given.hidden_ND.device)
    fused = asked.impl == "triton"
    carries = not fused and carries_expectation(asked.generation, wants)
    weight_VD = given.lm_weight_VD
    kept = Kept(
        hidden_nD=hidden_nD,
        lm_weight_VD=weight_VD if weight_VD.stride(1) == 1 else weight_VD.contiguous(),
        target_n=marked(given.target_n),
        lm_bias_V=given.lm_bias_V,
        lse_n=lse_n,
        expected_nD=expected_nD if carries else None,
        logits=None,
        offset_Tn=None,
        token_weight_n=given.token_weight_n,
        pooled_SD=pooled_SD,
        head_weight_CD=given.head_weight_CD,
        class_slope_SC=slope_SC,
        dropout_scale_SD=given.dropout_scale_SD,
        supervised_index_n=given.supervised_index_n,
        class_index_S=given.class_index_S,
    )
    plan = Plan(
        fused=fused,
        tile=asked.execution.vocab_tile or tile_rows(len(given.target_n), len(weight_VD)),
        storage=None,
        gathered=None,
        vocabulary=len(weight_VD),
        tokens=len(given.hidden_ND),
        hidden_dtype=given.hidden_ND.dtype,
        head_dtype=given.head_bias_C.dtype,
    )
    with without_autocast(given.hidden_ND.device.type):
        found = backward(kept, plan, asked, wants, *grads)
    return tuple(_or_zero(grad, of, wanted, lse_n) for grad, of, wanted in zip(found, given, wants, strict=False))


def _or_zero(grad: Tensor | None, of: Tensor | None, wanted: bool, device: Tensor) -> Tensor:
    assert of is not None or not wanted
    if not wanted or of is None:
        return device.new_empty(0)
    return torch.zeros_like(of, memory_format=torch.contiguous_format) if grad is None else grad.contiguous()


@_dual_head_backward.register_fake
def _gradient_shapes(*args: Any) -> tuple[Tensor, ...]:
    given, wants = Tensors(*args[8 : 8 + _N_TENSORS]), args[-1]
    return tuple(
        args[3].new_empty(0)
        if of is None or not wanted
        else torch.empty_like(of, memory_format=torch.contiguous_format)
        for of, wanted in zip(given, wants, strict=False)
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # Of all tokens' states the backward needs the number alone.
    ctx.tokens = inputs[0].shape[0]
    ctx.save_for_backward(*inputs[1:_N_TENSORS], *output[4:])
    ctx.options = inputs[_N_TENSORS:]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[3:])


def _gradients(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    given, kept = ctx.saved_tensors[: _N_TENSORS - 1], ctx.saved_tensors[_N_TENSORS - 1 :]
    compacted, wants = kept[1], ctx.options[-1]
    states = compacted.new_empty((1, 1)).expand(ctx.tokens, compacted.shape[1])
    found = _dual_head_backward(*grads[:3], *kept, states, *given, *ctx.options)
    wanted = [grad if wanted else None for grad, wanted in zip(found, wants, strict=True)]
    return (*wanted, *[None] * (_N_TENSORS + len(ctx.options) - len(wanted)))


_dual_head.register_autograd(_gradients, setup_context=_keep)
