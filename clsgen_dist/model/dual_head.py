"""One backbone, two heads: both losses are computed from one pass of hidden states.

    h = final_norm(backbone(tokens))          [N, D]
    generation:     cross-entropy of softmax(h W_lmᵀ) at the supervised positions
    classification: cross-entropy of softmax(dropout(h_c) W_clsᵀ + b) at each row's classification token

The classification head is linear on the final-norm state, so that its rows can be folded into unused rows of the
vocabulary at export. CLSGen, arXiv 2604.11801, trains the two jointly.

Under ZeRO-3 everything here must run inside ``engine(...)``, where reading ``lm_head.weight`` gathers it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from clsgen_kernels import DualHeadOutput, dual_head_loss
from torch import Tensor, nn

from clsgen_dist.model.attention import accepted_inputs, packed_inputs, padded_inputs

# N packed tokens, S sequences, n supervised tokens, D hidden, C classes


class ClassificationHead(nn.Module):
    """``[C, D]`` weight and ``[C]`` bias; dropout on its input, in training only.

    Args:
        weight_CD: initial weight (copied, in fp32); the bias is initialised with zeros.
        dropout: probability of dropping an input.
    """

    def __init__(self, weight_CD: Tensor, dropout: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_CD.detach().to(torch.float32, copy=True))
        self.bias = nn.Parameter(torch.zeros_like(self.weight[:, 0]))
        self.dropout = dropout

    def dropout_scale(self, rows: int) -> Tensor | None:
        """A new ``[rows, D]`` mask of 0 and 1/(1-p), or None if nothing is dropped."""
        if not self.training or self.dropout == 0:
            return None
        keep = 1 - self.dropout
        width = self.weight.ds_shape[1] if hasattr(self.weight, "ds_shape") else self.weight.shape[1]
        return torch.full((rows, width), keep, device=self.weight.device).bernoulli_().div_(keep)


class DualHeadModel(nn.Module):
    """A causal LM and a classification head; ``forward`` returns both losses, unreduced.

    Args:
        lm: an ``AutoModelForCausalLM``, possibly with LoRA layers injected.
        head: the classification head.
        loss_impl: see :func:`clsgen_kernels.dual_head_loss`.

    ``layout`` is how the backbone gets the sequences of a batch: ``"packed"`` end to end, or ``"padded"`` as rows, for
    layers that carry state along the sequence (:mod:`clsgen_dist.model.self_test` decides).
    """

    def __init__(self, lm: nn.Module, head: ClassificationHead, loss_impl: str = "auto") -> None:
        super().__init__()
        self.lm = lm
        self.classification_head = head
        self.loss_impl = loss_impl
        self.layout: Literal["packed", "padded"] = "packed"

    def hidden_states(self, input_ids_N: Tensor, position_N: Tensor, sequence_start_S1: Tensor, longest: int) -> Tensor:
        """``[N, D]`` states after the final norm, in packed order whatever the layout."""
        lm: Any = self.lm
        backbone = lm.base_model
        if self.layout == "packed":
            inputs = packed_inputs(input_ids_N, position_N, sequence_start_S1, longest)
            return backbone(**inputs).last_hidden_state[0]
        rows = len(sequence_start_S1) - 1
        row_N = torch.arange(rows, device=input_ids_N.device).repeat_interleave(sequence_start_S1.diff())
        inputs = accepted_inputs(backbone, padded_inputs(input_ids_N, position_N, row_N, rows, longest))
        return backbone(**inputs).last_hidden_state[row_N, position_N]

    def forward(self, *, inside: Callable[[DualHeadModel], Any] | None = None, **batch: Any) -> Any:
        """Both losses of a batch; or ``inside(self)``, which under ZeRO-3 must run within ``forward``."""
        return self.losses(**batch) if inside is None else inside(self)

    def losses(
        self,
        input_ids_N: Tensor,
        position_N: Tensor,
        sequence_start_S1: Tensor,
        longest: int,
        supervised_index_n: Tensor,
        target_n: Tensor,
        class_index_S: Tensor,
        label_S: Tensor,
    ) -> DualHeadOutput:
        """Both losses of a batch (fields: see :class:`clsgen_dist.data.pack.Batch`)."""
        lm: Any = self.lm
        return dual_head_loss(
            self.hidden_states(input_ids_N, position_N, sequence_start_S1, longest),
            lm.get_output_embeddings().weight,
            self.classification_head.weight,
            self.classification_head.bias,
            supervised_index_n=supervised_index_n,
            target_n=target_n,
            class_index_S=class_index_S,
            label_S=label_S,
            dropout_scale_SD=self.classification_head.dropout_scale(label_S.shape[0]),
            impl=self.loss_impl,
        )
