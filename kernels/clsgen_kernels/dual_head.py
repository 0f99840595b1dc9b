"""Both heads' losses from one call: per-token generation losses, class logits, per-row classification losses.

Equivalent plain torch (``impl="reference"``, read :mod:`clsgen_kernels.reference`), without options::

    generation_loss = cross_entropy((hidden @ lm_weight.T)[supervised_index], target, reduction="none")
    class_logits    = hidden[class_index] @ head_weight.T + head_bias
    class_loss      = cross_entropy(class_logits, label, reduction="none", ignore_index=-1)

The other implementations compact supervised rows first and iterate over the vocabulary in tiles, so that no tokens x
vocabulary tensor is ever materialised: :mod:`clsgen_kernels.tiled` in plain torch, :mod:`clsgen_kernels.fused` in
Triton. The classification head is an ``S x D x C`` product, whose cost is negligible next to the vocabulary's.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from clsgen_kernels import compiled, reference
from clsgen_kernels.autograd import DualHead, forward, without_autocast
from clsgen_kernels.checks import check
from clsgen_kernels.implementation import resolve_impl
from clsgen_kernels.inputs import Call, ClassOptions, Execution, GenerationOptions, Results, Tensors, Wants

# N tokens, n supervised tokens, S sequences, D hidden, V vocabulary, C classes


class DualHeadOutput(NamedTuple):
    """Losses and class logits; fp32 (fp64 for fp64 inputs)."""

    generation_loss: Tensor
    """``[n]`` loss per supervised token in nats, or with ``reduction="sum"`` their weighted sum, a scalar."""
    class_logits: Tensor
    """``[S, C]`` logits of the classification head; differentiable."""
    class_loss: Tensor
    """``[S]`` loss per row in nats, 0 for rows without label; or with ``reduction="sum"`` their sum, a scalar."""
    token_hit: Tensor
    """bool ``[n]``: no token is more likely than the target (its mean is the token accuracy); not differentiable."""


def dual_head_loss(
    hidden_ND: Tensor,
    lm_weight_VD: Tensor,
    head_weight_CD: Tensor,
    head_bias_C: Tensor,
    *,
    supervised_index_n: Tensor,
    target_n: Tensor,
    class_index_S: Tensor,
    label_S: Tensor,
    lm_bias_V: Tensor | None = None,
    dropout_scale_SD: Tensor | None = None,
    token_weight_n: Tensor | None = None,
    generation: GenerationOptions = GenerationOptions(),  # noqa: B008, it is frozen
    classification: ClassOptions = ClassOptions(),  # noqa: B008
    reduction: Literal["none", "sum"] = "none",
    impl: str = "auto",
    execution: Execution = Execution(),  # noqa: B008
) -> DualHeadOutput:
    """Both heads' losses on the final-norm hidden states of a batch of packed or padded tokens.

    Args:
        hidden_ND: ``[N, D]`` hidden states after the final norm, any float dtype.
        lm_weight_VD: ``[V, D]`` output embedding (tied or not), same dtype as ``hidden_ND``.
        head_weight_CD, head_bias_C: the classification head; computed in fp32 whatever their dtype.
        supervised_index_n: int64 ``[n]`` positions in ``N`` that predict a supervised token; distinct; may be empty.
        target_n: int64 ``[n]`` the tokens they predict, in ``[0, V)``; -100 for one to ignore.
        class_index_S: int64 ``[S]`` position in ``N`` of each row's classification token; distinct; may be empty.
        label_S: int64 ``[S]`` class of each row in ``[0, C)``, or -1 for a row without label. ``"ordinal"``: in
            ``[0, C]``. ``"multilabel"``: ``[S, C]`` of 0 and 1 (or floats between), negative for unknown. ``"soft"``:
            float ``[S, C]``, each row a distribution, or negative throughout for a row without label.
        lm_bias_V: ``[V]`` bias of the LM head, or None.
        dropout_scale_SD: ``[S, D]`` factor on the pooled states (a scaled dropout mask), or None.
        token_weight_n: ``[n]`` weights of the generation losses; only with ``reduction="sum"``.
        generation: what the LM does to its logits (scale, soft cap), label smoothing, z-loss.
        classification: kind of label space, class weights, focal factor.
        reduction: ``"none"`` for losses per token and per row, ``"sum"`` for their (weighted) sums.
        impl: ``"auto"``, ``"triton"``, ``"torch"`` (vocabulary tiles) or ``"reference"`` (all logits; for tests).
        execution: tiles, memory, an LM weight in shards, accumulators of gradients.

    Under autocast the states and the LM's weights are taken in autocast's dtype, as its matrix products would; the
    class head's product and all losses stay in fp32.

    Under ``torch.compile`` it is one operator, see :mod:`clsgen_kernels.compiled`, without breaking the graph.

    Gradients flow to ``hidden_ND``, ``lm_weight_VD``, ``head_weight_CD``, ``head_bias_C`` and ``lm_bias_V``, exactly,
    for any upstream gradient of the outputs. Double backward is refused, but for ``impl="reference"``.

    Raises:
        ValueError: shapes, dtypes or options that do not match; target or label out of range (checked on CPU only; on
            an accelerator the check would synchronise with the device).
    """
    if reduction not in ("none", "sum"):
        raise ValueError(f"reduction is {reduction!r}, expected 'none' or 'sum'; fix it")
    if token_weight_n is not None and (reduction != "sum" or token_weight_n.shape != target_n.shape):
        raise ValueError(
            f"token_weight_n of shape {tuple(token_weight_n.shape)} with reduction={reduction!r}: expected shape "
            f"{tuple(target_n.shape)} and reduction='sum'; with reduction='none' multiply the returned losses"
        )
    given = Tensors(
        hidden_ND=hidden_ND,
        lm_weight_VD=lm_weight_VD,
        head_weight_CD=head_weight_CD,
        head_bias_C=head_bias_C,
        lm_bias_V=lm_bias_V,
        supervised_index_n=supervised_index_n,
        target_n=target_n,
        class_index_S=class_index_S,
        label_S=label_S,
        dropout_scale_SD=dropout_scale_SD,
        token_weight_n=token_weight_n,
    )
    call = Call(
        impl=impl,
        generation=generation,
        classification=classification,
        sums=reduction == "sum",
        execution=execution,
    )
    results = compute(given, call)
    return DualHeadOutput(*results[:4])


def compute(given: Tensors, call: Call) -> Results:
    """The losses of checked tensors; without autograd where no gradient is asked for."""
    given = _as_autocast_casts(given)
    differentiable = [t is not None and t.requires_grad for t in given[: len(Wants._fields)]]
    wants = Wants(*differentiable) if torch.is_grad_enabled() else Wants()
    if torch.compiler.is_compiling() and call.impl != "reference":
        return compiled.call(given, call, wants)
    with without_autocast(given.hidden_ND.device.type):
        call = dataclasses.replace(call, impl=resolve_impl(call.impl, given.hidden_ND.device))
        check(given, call)
        if call.impl == "reference":
            return reference.both(given, call)
        if any(wants):
            return Results(*DualHead.apply(*given, call))
        results, _, _ = forward(given, call, wants)
        return results


def _as_autocast_casts(given: Tensors) -> Tensors:
    """States and LM weights in autocast's dtype where it is on (fp64 stays); gradients return in their own."""
    device = given.hidden_ND.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return given
    if torch.float64 in (given.hidden_ND.dtype, given.lm_weight_VD.dtype):
        return given
    dtype = torch.get_autocast_dtype(device)
    return given._replace(hidden_ND=given.hidden_ND.to(dtype), lm_weight_VD=given.lm_weight_VD.to(dtype))
