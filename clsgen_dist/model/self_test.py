"""Self-test of a loaded backbone before the first step, on three short sequences.

1. Is it causal? Two rows with the same beginning must have the same states there; else the head would see the label.
2. Are its logits what :mod:`clsgen_dist.model.lm_head` makes of the states? That is what the loss computes.
3. Are packed sequences independent? Linear attention, convolutions and state-space layers carry state from token to
   token, and not every implementation resets it where a sequence begins. So the first sequence is replaced by another:
   the states of those after it must not change. If they do, the rows of a batch are padded instead: more tokens, the
   same losses.

Cost: five forward passes of at most 60 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from clsgen_dist.data.pack import Sample, collate
from clsgen_dist.errors import ModelError, first_line
from clsgen_dist.model.attention import accepted_inputs, packed_inputs, padded_inputs
from clsgen_dist.model.dual_head import DualHeadModel
from clsgen_dist.model.unsupported import Unsupported, UnsupportedBackboneError

# N packed tokens, S sequences, T tokens of the longest, D hidden, V vocabulary

ROUNDING = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest relative difference of a state computed in two ways: rounding over many layers."""
ROUNDING_SAME_SHAPES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""The same for one computation repeated with equal shapes: nearly none."""
_SHARED = 6
"""Length of the common prefix of the first and the last sequence, in tokens."""


@dataclass(frozen=True)
class SelfTest:
    """Largest differences of states (or logits) that should be equal, relative to their norm."""

    causal: float
    logits: float
    padded: float
    """A padded row against the same row alone."""
    packed: float
    """Packed against padded; infinite if the backbone does not accept packed sequences."""
    leak: float
    """Change of the later packed sequences when the first is replaced."""
    rounding: float
    """Tolerance of ``causal``, ``logits``, ``padded`` and ``packed``."""
    leak_tolerance: float
    """Tolerance of ``leak``."""
    embedded: float = 0.0
    """States from embeddings that the LM head looks up, where it is sharded and tied, against those from tokens."""
    refusal: str | None = None
    """Why packed sequences were not accepted."""

    @property
    def layout(self) -> Literal["packed", "padded"]:
        """How the backbone gets the sequences of a batch."""
        return "packed" if self.packed <= self.rounding and self.leak <= self.leak_tolerance else "padded"

    def require_trainable(self, name: str) -> None:
        """UnsupportedBackboneError if the backbone cannot be trained in either layout."""
        if self.causal == float("inf"):
            raise UnsupportedBackboneError(
                Unsupported.NAN,
                f"{name} returns NaN for plain text although its weights are finite; use another backbone or precision",
            )
        if not self.causal <= self.rounding:
            raise UnsupportedBackboneError(
                Unsupported.NOT_CAUSAL,
                f"{name} is not causal: earlier states depend on later tokens (relative change {self.causal:.1e}), "
                "so the head would see the label; use a causal language model",
            )
        if not self.logits <= self.rounding:
            raise UnsupportedBackboneError(
                Unsupported.CHANGED_LOGITS,
                f"{name} makes other logits of its last hidden states than LM head, bias, scale and soft cap do "
                f"(relative change {self.logits:.1e}), which the loss does not support; use another backbone",
            )
        if not self.embedded <= self.rounding:
            raise ModelError(
                f"{name} computes other states from embeddings than from tokens (relative difference "
                f"{self.embedded:.1e}), and objectives.lm_head keeps its embedding sharded; set it to gathered",
            )
        if self.layout == "padded" and not self.padded <= self.rounding:
            raise UnsupportedBackboneError(
                Unsupported.BATCH_DEPENDENT,
                f"{name} computes different states for a row in a batch than alone (relative difference "
                f"{self.padded:.1e}), packed or padded, so it cannot be trained in batches; use another backbone",
            )


def self_test(model: DualHeadModel, sample: Sample) -> SelfTest:
    """Test a model in evaluation mode; ``sample`` is plain text of 24 tokens or more.

    Collective under ZeRO-3, through ``engine(inside=...)``. If ``refusal`` is set, a forward pass was interrupted.

    Raises:
        UnsupportedBackboneError: the backbone fails even on padded rows.
    """
    lm: Any = model.lm
    backbone = lm.base_model
    tokens = np.concatenate([sample.prompt, sample.explanation])
    third = max(len(tokens) // 3, _SHARED + 1)
    first, second = tokens[: 2 * third], tokens[third : 2 * third]
    like_first = np.concatenate([first[:_SHARED], tokens[::-1][: third + 1]])
    batch = _batch([first, second, like_first], lm)
    ids_N, position_N, start_S1, longest = batch
    row_N = torch.arange(3, device=ids_N.device).repeat_interleave(start_S1.diff())

    inputs = padded_inputs(ids_N, position_N, row_N, 3, longest)
    short_N, short_position_N, _, length = _batch([second], lm)
    alone = padded_inputs(short_N, short_position_N, torch.zeros_like(short_position_N), 1, length)
    try:
        padded_STD = backbone(**accepted_inputs(backbone, inputs)).last_hidden_state
        logits_NV = lm(**accepted_inputs(lm, inputs)).logits[row_N, position_N]
        alone_TD = backbone(**accepted_inputs(backbone, alone)).last_hidden_state[0]
    except FAULTS as error:
        raise UnsupportedBackboneError(
            Unsupported.NEEDS_MORE_THAN_TEXT,
            f"{type(lm).__name__} does not run on plain text with attention {lm.config._attn_implementation!r}: "
            f"{first_line(error)}; set model.attention to eager, or use another backbone",
        ) from error
    padded_ND = padded_STD[row_N, position_N]
    with model.lm_head.whole() as lm_head:
        vocabulary, width = getattr(lm_head.weight_VD, "ds_shape", None) or lm_head.weight_VD.shape
        fits = (logits_NV.shape[-1], padded_ND.shape[-1]) == (vocabulary, width)
        logits = relative_difference(lm_head.logits(padded_ND), logits_NV) if fits else float("inf")

    embedded = 0.0
    with_rows = model.embedded(inputs)
    if with_rows is not inputs:
        from_rows_STD = backbone(**accepted_inputs(backbone, with_rows)).last_hidden_state
        embedded = relative_difference(from_rows_STD[row_N, position_N], padded_ND)

    packed = leak = float("inf")
    refusal = None
    inputs = packed_inputs(*batch)
    if accepted_inputs(backbone, inputs) == inputs:
        try:
            packed_ND = backbone(**inputs).last_hidden_state[0]
            packed = relative_difference(packed_ND, padded_ND)
            other = packed_inputs(*_batch([first[::-1], second, like_first], lm))
            after = len(first)
            leak = relative_difference(backbone(**other).last_hidden_state[0, after:], packed_ND[after:])
        except FAULTS as error:
            refusal = first_line(error)
    return SelfTest(
        causal=relative_difference(padded_STD[0, :_SHARED], padded_STD[2, :_SHARED]),
        logits=logits,
        padded=relative_difference(padded_STD[1, :length], alone_TD),
        packed=packed,
        leak=leak,
        rounding=ROUNDING.get(padded_ND.dtype, 1e-1),
        leak_tolerance=ROUNDING_SAME_SHAPES.get(padded_ND.dtype, 2e-2),
        embedded=embedded,
        refusal=refusal,
    )


FAULTS = (ValueError, TypeError, RuntimeError, NotImplementedError, AttributeError, KeyError, IndexError)
"""Exceptions of models that do not support such inputs."""


def _batch(rows: Sequence[np.ndarray], lm: Any) -> tuple[Tensor, Tensor, Tensor, int]:
    """Ids ``[N]``, positions ``[N]``, starts ``[S + 1]`` and longest length of the rows, on the model's device."""
    nothing = np.zeros(0, dtype=np.int32)
    batch = collate([Sample(row, nothing, -1) for row in rows]).inputs(next(lm.parameters()).device)
    return batch["input_ids_N"], batch["position_N"], batch["sequence_start_S1"], batch["longest"]


def relative_difference(one_ND: Tensor, other_ND: Tensor) -> float:
    """Largest row norm of the difference over the larger of the row's norms; infinite for NaN."""
    one_ND, other_ND = one_ND.float(), other_ND.float()
    scale_N = torch.maximum(one_ND.norm(dim=-1), other_ND.norm(dim=-1)).clamp(min=1e-30)
    worst = ((one_ND - other_ND).norm(dim=-1) / scale_N).max().item()
    return worst if worst == worst else float("inf")
