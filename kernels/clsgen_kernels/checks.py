"""Input validation of :func:`clsgen_kernels.dual_head_loss`: each error gives value, expectation and remedy.

Ranges are checked on the CPU only: on an accelerator the check would synchronise with the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clsgen_kernels.inputs import IGNORE, Call, ClassOptions, Execution, Tensors
from clsgen_kernels.vocab_shards import VocabShards

# N tokens, n supervised tokens, S sequences, D hidden, V vocabulary, C classes

_FLOATS = (torch.float32, torch.float64)


def check(given: Tensors, call: Call) -> None:
    """ValueError for tensors or options that do not match; ``call.impl`` is not ``"auto"``."""
    shards = call.execution.vocab_shards
    check_tensors(given, None if shards is None else shards.vocabulary)
    check_shards(given.lm_weight_VD, shards, call.impl)
    check_labels(given.label_S, given.class_index_S, given.head_weight_CD.shape[0], call.classification)
    check_options(given, call.execution, call.impl)


def check_tensors(given: Tensors, vocabulary: int | None = None) -> None:
    """Shapes, dtypes and index ranges; ``vocabulary``: its size, where the LM weight holds only some of its rows."""
    hidden_ND, lm_weight_VD, head_weight_CD, head_bias_C = given[:4]
    supervised_index_n, target_n, class_index_S = given.supervised_index_n, given.target_n, given.class_index_S
    if hidden_ND.dim() != 2:
        _refuse(
            f"hidden_ND has shape {tuple(hidden_ND.shape)}, expected [tokens, hidden]; flatten batch and time first"
        )
    width = hidden_ND.shape[1]
    for name, weight in (("lm_weight_VD", lm_weight_VD), ("head_weight_CD", head_weight_CD)):
        if weight.numel() == 0:
            _refuse(f"{name} has 0 elements: under ZeRO-3 call this inside the engine's forward, where it is gathered")
        if weight.dim() != 2 or weight.shape[1] != width:
            _refuse(f"{name} has shape {tuple(weight.shape)}, expected [*, {width}] as hidden_ND is {width} wide")
    if lm_weight_VD.dtype != hidden_ND.dtype:
        _refuse(f"lm_weight_VD is {lm_weight_VD.dtype}, hidden_ND {hidden_ND.dtype}; cast one of them")
    if head_bias_C.shape != head_weight_CD.shape[:1]:
        _refuse(f"head_bias_C has shape {tuple(head_bias_C.shape)}, expected [{head_weight_CD.shape[0]}]")
    for name, index, other in (
        ("supervised_index_n", supervised_index_n, target_n),
        ("class_index_S", class_index_S, class_index_S),
    ):
        if index.dim() != 1 or index.shape != other.shape or index.dtype != torch.int64 or other.dtype != torch.int64:
            _refuse(
                f"{name} is {index.dtype} {tuple(index.shape)} with {other.dtype} {tuple(other.shape)}; "
                "expected two int64 vectors of equal length"
            )
    if _sees_values(hidden_ND):
        _check_range("supervised_index_n", supervised_index_n, 0, hidden_ND.shape[0])
        _check_range("class_index_S", class_index_S, 0, hidden_ND.shape[0])
        _check_range("target_n", target_n[target_n != IGNORE], 0, vocabulary or lm_weight_VD.shape[0])


def check_labels(label_S: Tensor, class_index_S: Tensor, outputs: int, options: ClassOptions) -> None:
    """Shapes and ranges of labels and head for this kind of label space."""
    rows = class_index_S.shape[0]
    shape = (rows, outputs) if options.kind in ("multilabel", "soft") else (rows,)
    dtypes = {"multilabel": (torch.int64, *_FLOATS), "soft": _FLOATS}.get(options.kind, (torch.int64,))
    if label_S.shape != shape or label_S.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        _refuse(
            f"label_S is {label_S.dtype} {tuple(label_S.shape)}, expected {expected} {shape} for kind {options.kind!r}"
        )
    if options.kind == "sigmoid" and outputs != 1:
        _refuse(f"the head has {outputs} outputs, expected 1 for kind 'sigmoid'; use 'multilabel' or 'softmax'")
    if options.class_weight is not None and len(options.class_weight) != outputs:
        _refuse(f"class_weight has {len(options.class_weight)} values, expected one for each of {outputs} outputs")
    if _sees_values(label_S):
        if label_S.is_floating_point():
            _check_range("label_S", label_S, -1, 1, inclusive=True)
        else:
            _check_range("label_S", label_S, -1, {"softmax": outputs, "ordinal": outputs + 1}.get(options.kind, 2))


def check_shards(lm_weight_VD: Tensor, shards: VocabShards | None, impl: str) -> None:
    """That this rank's rows are those that the shards say it has."""
    if shards is not None and lm_weight_VD.shape[0] != shards.held:
        _refuse(f"lm_weight_VD has {lm_weight_VD.shape[0]} rows, expected the {shards.held} that vocab_shards give it")
    if shards is not None and impl == "reference":
        _refuse("impl is 'reference' with vocab_shards, which it does not know; use 'torch' or 'triton'")


def check_options(given: Tensors, execution: Execution, impl: str) -> None:
    """Shapes and dtypes of bias and gradient accumulator against the LM weight."""
    hidden_ND, lm_weight_VD, lm_bias_V = given.hidden_ND, given.lm_weight_VD, given.lm_bias_V
    lm_weight_grad_VD = execution.lm_weight_grad_VD
    if impl == "triton" and hidden_ND.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        _refuse(f"impl 'triton' supports fp32, fp16 and bf16, hidden_ND is {hidden_ND.dtype}; use impl='torch'")
    if lm_bias_V is not None and lm_bias_V.shape != lm_weight_VD.shape[:1]:
        _refuse(f"lm_bias_V has shape {tuple(lm_bias_V.shape)}, expected [{lm_weight_VD.shape[0]}], a value a token")
    if lm_weight_grad_VD is not None and (
        lm_weight_grad_VD.shape != lm_weight_VD.shape
        or lm_weight_grad_VD.dtype != torch.float32
        or not lm_weight_grad_VD.is_contiguous()
    ):
        _refuse(
            f"lm_weight_grad_VD is {lm_weight_grad_VD.dtype} {tuple(lm_weight_grad_VD.shape)}, expected "
            f"torch.float32 {tuple(lm_weight_VD.shape)}, contiguous"
        )


def _sees_values(tensor: Tensor) -> bool:
    """Whether values can be read without waiting for a device or breaking a graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _refuse(why: str) -> None:
    raise ValueError(f"dual_head_loss: {why}")


def _check_range(name: str, values: Tensor, low: int, end: int, *, inclusive: bool = False) -> None:
    last = end if inclusive else end - 1
    if values.numel() and (values.min() < low or values.max() > last or values.isnan().any()):
        raise ValueError(
            f"dual_head_loss: {name} holds values from {values.min()} to {values.max()}, expected {low}..{last}"
        )
