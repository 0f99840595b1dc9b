"""One backbone, two heads: both losses are computed from one pass of hidden states.

    h = final_norm(backbone(tokens))          [N, D]
    generation:     cross-entropy of softmax(h W_lmᵀ) at the supervised positions
    classification: negative log-likelihood of the label at dropout(h_c) W_clsᵀ + b, h_c each row's classification token

The classification head is linear on the final-norm state, so that its rows can be folded into unused rows of the
vocabulary at export. CLSGen, arXiv 2604.11801, trains the two jointly.

Under ZeRO-3 everything here must run inside ``engine(...)``, where reading ``lm_head.weight`` gathers it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from clsgen_kernels import DualHeadOutput, GenerationOptions, dual_head_loss
from clsgen_kernels.inputs import HeadInputs
from torch import Tensor, nn

from clsgen_dist.model.attention import accepted_inputs, packed_inputs, padded_inputs, rows_of_tokens
from clsgen_dist.model.attention_probe import ARGUMENT, AttentionProbe
from clsgen_dist.model.classification_head import ClassificationHead, ClassLoss

# N packed tokens, S sequences, n supervised tokens, D hidden, K logits of the head


@dataclass(frozen=True)
class ForwardPass:
    """What a term of the loss sees of a micro-batch."""

    batch: dict[str, Any]
    """Fields of :class:`clsgen_dist.data.pack.Batch`."""
    hidden_ND: Tensor
    """``[N, D]`` states after the final norm; a term's gradient here is measured."""
    losses: DualHeadOutput
    """Per-token and per-row losses of the two heads."""
    lm: Any
    """The causal LM, for its output embedding; under ZeRO-3 gathered while it is used."""
    head: ClassificationHead
    affine: tuple[Tensor, Tensor]
    """Weight ``[K, D]`` and bias ``[K]`` of the class logits."""
    decided_index_S: Tensor
    """Position at which each row's decision is read."""
    class_loss: ClassLoss
    name_tokens: tuple[int, ...] | None
    """As in :class:`LossSpec`."""
    attention: AttentionProbe | None = None
    """Attention of the tokens where decisions are read, in the layers that terms ask for."""

    def mean_states(self, spans: Literal["evidence", "counter"]) -> tuple[Tensor, Tensor]:
        """``[S, D]`` fp32 mean of each row's last hidden states at these spans, and bool ``[S]`` whether it has any."""
        letter = spans[0]
        index_e, row_e = self.batch[f"{spans}_index_{letter}"], self.batch[f"{spans}_row_{letter}"]
        sum_SD = self.hidden_ND.new_zeros((len(self.decided_index_S), self.hidden_ND.shape[1]), dtype=torch.float32)
        sum_SD = sum_SD.index_add(0, row_e, self.hidden_ND[index_e].float())
        count_S = sum_SD.new_zeros(len(sum_SD)).index_add(0, row_e, torch.ones_like(row_e, dtype=sum_SD.dtype))
        return sum_SD / count_S.clamp(min=1)[:, None], count_S > 0

    def log_evidence_mass(self) -> tuple[Tensor, Tensor]:
        """What evidence gets of the attention where the model decides.

        Returns:
            ``[S]`` logarithm of its share, averaged over the layers that reach it; 0 without.
            bool ``[S]`` whether some layer reaches it.
        """
        assert self.attention is not None, "no term asks for attention"
        index_e, row_e = self.batch["evidence_index_e"], self.batch["evidence_row_e"]
        log_mass_LS, reached_LS = self.attention.log_mass(index_e, row_e)
        mean_S = (log_mass_LS * reached_LS).sum(dim=0) / reached_LS.sum(dim=0).clamp(min=1)
        return mean_S, reached_LS.any(dim=0)

    def name_logits(self) -> Tensor:
        """``[S, C]`` the LM's logits of the classes' names at the prompts' last tokens; ValueError if unknown.

        Their gradient reaches the states, not the LM head: indexing it back would take a tensor of its size.
        """
        if self.name_tokens is None:
            raise ValueError("the first tokens of the classes' names are not known, expected one each; set name_tokens")
        rows_CD = self.lm.get_output_embeddings().weight.detach()[list(self.name_tokens)]
        return F.linear(self.hidden_ND[self.batch["class_index_S"]].float(), rows_CD.float())

    def class_logits(self, index_S: Tensor | None = None) -> Tensor:
        """``[S, K]`` logits of the head at these positions (None: where the model decides), with its dropout."""
        weight_KD, bias_K = self.affine
        pooled_SD = self.hidden_ND[self.decided_index_S if index_S is None else index_S].float()
        pooled_SD = F.dropout(pooled_SD, self.head.dropout, self.head.training)
        return F.linear(pooled_SD, weight_KD.float(), bias_K.float())

    def class_losses(self, logits_SK: Tensor, label_S: Tensor) -> Tensor:
        """``[S]`` classification losses of logits, 0 for rows without label."""
        targets, options = self.class_loss.targets(label_S, logits_SK.shape[1])
        return HeadInputs(logits_SK, logits_SK, logits_SK.new_zeros(logits_SK.shape[1]), targets, options).losses(
            logits_SK
        )


class LossTerm(Protocol):
    """A term of the loss, see :mod:`clsgen_dist.objectives.term`."""

    name: str
    attention_layers: tuple[int, ...]

    def sum(self, forward: ForwardPass) -> Tensor:
        """The term's sum, a scalar."""


@dataclass(frozen=True)
class LossSpec:
    """How a model computes its losses. Options hold in training only."""

    impl: str = "auto"
    """See :func:`clsgen_kernels.dual_head_loss`."""
    decide: Literal["before", "after", "both"] = "before"
    """Where the head is read: before the explanation, at its end, or both (before by the fused loss)."""
    classification: ClassLoss = field(default_factory=ClassLoss)
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    terms: tuple[LossTerm, ...] = ()
    """The terms of the loss, generation and classification first; none: the two heads' losses alone."""
    name_tokens: tuple[int, ...] | None = None
    """The first token of each class's name, as an explanation begins with it; None: not known, or two share one."""


class ModelOutput(NamedTuple):
    """Losses of a micro-batch."""

    generation_loss: Tensor
    """``[n]`` per supervised token, nats."""
    class_logits: Tensor
    """``[S, C]``."""
    class_loss: Tensor
    """``[S]`` per row, nats; 0 without label."""
    token_hit: Tensor
    """bool ``[n]``: the target is the most likely token."""
    after_logits: Tensor
    """``[S, K]`` after the explanations, with ``decide="both"`` outside training; else ``[0, K]``."""
    name_logits: Tensor
    """``[S, C]`` of the LM for the classes' names at the prompts' ends, outside training; ``[0, C]`` if not known."""
    evidence_mass: Tensor
    """``[S]`` share of the decision's attention on evidence, outside training; NaN without, ``[0]`` if no term asks."""
    term_sums: tuple[Tensor, ...]
    """Sum of each term of :class:`LossSpec`, scalars."""


class DualHeadModel(nn.Module):
    """A causal LM and a classification head; ``forward`` returns both losses, unreduced.

    Args:
        lm: an ``AutoModelForCausalLM``, possibly with LoRA layers injected.
        head: the classification head.
        losses: how the losses are computed.

    ``hidden_grad_square`` (fp32 ``[terms]``, or None) collects the squared norm of each term's gradient at the last
    hidden states over the backward passes.

    ``layout`` is how the backbone gets the sequences of a batch: ``"packed"`` end to end, or ``"padded"`` as rows, for
    layers that carry state along the sequence (:mod:`clsgen_dist.model.self_test` decides).
    """

    def __init__(self, lm: nn.Module, head: ClassificationHead, losses: LossSpec | None = None) -> None:
        super().__init__()
        self.loss_spec = losses or LossSpec()
        self.lm = lm
        self.classification_head = head
        self.layout: Literal["packed", "padded"] = "packed"
        self.hidden_grad_square: Tensor | None = None

    def hidden_states(
        self,
        input_ids_N: Tensor,
        position_N: Tensor,
        sequence_start_S1: Tensor,
        longest: int,
        *,
        probe: AttentionProbe | None = None,
    ) -> Tensor:
        """``[N, D]`` states after the final norm, in packed order whatever the layout."""
        lm: Any = self.lm
        backbone = lm.base_model
        asked = {} if probe is None else {ARGUMENT: probe}
        if self.layout == "packed":
            inputs = packed_inputs(input_ids_N, position_N, sequence_start_S1, longest)
            return backbone(**inputs, **asked).last_hidden_state[0]
        rows = len(sequence_start_S1) - 1
        row_N = rows_of_tokens(sequence_start_S1, len(input_ids_N))
        inputs = accepted_inputs(backbone, padded_inputs(input_ids_N, position_N, row_N, rows, longest))
        return backbone(**inputs, **asked).last_hidden_state[row_N, position_N]

    def _probe(self, decided_S: Tensor, sequence_start_S1: Tensor, position_N: Tensor) -> AttentionProbe | None:
        """What reads the attention that the terms ask for; None if none does."""
        lm: Any = self.lm
        count = lm.config.get_text_config(decoder=True).num_hidden_layers
        layers = frozenset(layer % count for term in self.loss_spec.terms for layer in term.attention_layers)
        if not layers:
            return None
        row_N = rows_of_tokens(sequence_start_S1, len(position_N))
        return AttentionProbe(layers, decided_S, row_N, None if self.layout == "packed" else position_N)

    def forward(self, *, inside: Callable[[DualHeadModel], Any] | None = None, **batch: Any) -> Any:
        """Both losses of a batch; or ``inside(self)``, which under ZeRO-3 must run within ``forward``."""
        return self.losses(**batch) if inside is None else inside(self)

    def losses(self, **batch: Any) -> ModelOutput:
        """All losses of a batch (fields: see :class:`clsgen_dist.data.pack.Batch`)."""
        lm: Any = self.lm
        head, spec, square = self.classification_head, self.loss_spec, self.hidden_grad_square
        class_loss = spec.classification if self.training else ClassLoss(spec.classification.kind)
        weight_KD, bias_K = head.affine()
        label_S, class_options = class_loss.targets(batch["label_S"], bias_K.shape[0])
        if spec.classification.bias_correction is not None and not self.training:
            bias_K = bias_K.float() + torch.tensor(spec.classification.bias_correction, device=bias_K.device)
        decided_S = batch["end_index_S" if spec.decide == "after" else "class_index_S"]
        probe = self._probe(decided_S, batch["sequence_start_S1"], batch["position_N"])
        hidden_ND = self.hidden_states(*(batch[name] for name in _BACKBONE_INPUTS), probe=probe)
        losses = dual_head_loss(
            hidden_ND,
            lm.get_output_embeddings().weight,
            weight_KD,
            bias_K,
            supervised_index_n=batch["supervised_index_n"],
            target_n=batch["target_n"],
            class_index_S=decided_S,
            label_S=label_S,
            dropout_scale_SD=head.dropout_scale(label_S.shape[0]),
            generation=spec.generation if self.training else GenerationOptions(),
            classification=class_options,
            impl=spec.impl,
            hidden_grad_square=None if square is None or spec.impl == "reference" else square[:2],
        )
        affine, sums, seen = (weight_KD, bias_K), [], None
        for index, term in enumerate(spec.terms):
            # The fused loss measures the first two itself.
            measured_ND = hidden_ND if square is None or index < 2 else _MeasureGradient.apply(hidden_ND, square[index])
            seen = ForwardPass(
                batch, measured_ND, losses, lm, head, affine, decided_S, class_loss, spec.name_tokens, probe
            )
            sums.append(term.sum(seen))
        after_SK = losses.class_logits[:0]
        if spec.decide == "both" and not self.training:
            after_SK = F.linear(hidden_ND[batch["end_index_S"]].float(), weight_KD.float(), bias_K.float())
        names_SC = losses.class_logits[:0]
        if seen is not None and spec.name_tokens is not None and not self.training:
            names_SC = seen.name_logits()
        mass_S = losses.class_loss[:0]
        if seen is not None and probe is not None and not self.training:
            log_mass_S, reached_S = seen.log_evidence_mass()
            mass_S = log_mass_S.exp().masked_fill(~reached_S, torch.nan)
        return ModelOutput(*losses, after_SK, names_SC, mass_S, tuple(sums))


_BACKBONE_INPUTS = ("input_ids_N", "position_N", "sequence_start_S1", "longest")


class _MeasureGradient(torch.autograd.Function):
    """The identity; its backward adds the squared norm of the gradient to a scalar."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, square: Tensor) -> Tensor:
        ctx.square = square
        return hidden_ND.view_as(hidden_ND)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None]:
        ctx.square.add_(torch.linalg.vector_norm(grad_ND.float()).square())
        return grad_ND, None
