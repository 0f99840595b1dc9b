"""One backbone, two heads: both losses are computed from one pass of hidden states.

    h = final_norm(backbone(tokens))          [N, D]
    generation:     cross-entropy of softmax(h W_lmᵀ) at the supervised positions, see :mod:`clsgen_dist.model.lm_head`
    classification: negative log-likelihood of the label at dropout(h_c) W_clsᵀ + b, h_c each row's classification token

The classification head is linear on the final-norm state, so that its rows can be folded into unused rows of the
vocabulary at export. CLSGen, arXiv 2604.11801, trains the two jointly.

Under ZeRO-3 everything here must run inside ``engine(...)``, where reading ``lm_head.weight`` gathers it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from clsgen_kernels import Execution, GenerationOptions, dual_head_loss
from clsgen_kernels.launch import STORE_BYTES
from torch import Tensor, nn

from clsgen_dist.model.adapters import adapters_off
from clsgen_dist.model.attention import accepted_inputs, packed_inputs, padded_inputs, rows_of_tokens
from clsgen_dist.model.attention_probe import ARGUMENT, AttentionProbe
from clsgen_dist.model.classification_head import ClassificationHead, ClassLoss
from clsgen_dist.model.forward_pass import ForwardPass, Preferences
from clsgen_dist.model.frozen_layers import FrozenLayers, KnownStates
from clsgen_dist.model.lm_head import LMHead

# N packed tokens, S sequences, n supervised tokens, D hidden, K logits of the head


class LossTerm(Protocol):
    """A term of the loss, see :mod:`clsgen_dist.objectives.term`."""

    name: str
    attention_layers: tuple[int, ...]
    needs_reference: Literal["explanations", "texts"] | None
    compares_explanations: bool

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
    store_bytes: int = STORE_BYTES
    """See :class:`clsgen_kernels.Execution`."""
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
    preference_margin: Tensor
    """``[S]`` of :mod:`~clsgen_dist.model.forward_pass`, outside training; NaN for no pair, ``[0]`` if no term asks."""
    mismatched_sums: Tensor
    """``[2]`` of :mod:`~clsgen_dist.model.forward_pass`, in training; ``[0]`` if no term asks."""
    term_sums: tuple[Tensor, ...]
    """Sum of each term of :class:`LossSpec`, scalars."""


class DualHeadModel(nn.Module):
    """A causal LM and a classification head; ``forward`` returns both losses, unreduced.

    Args:
        lm: an ``AutoModelForCausalLM``, possibly with LoRA layers injected.
        head: the classification head.
        losses: how the losses are computed.

    ``hidden_grad_square`` (fp32 ``[terms + 1]``, or None) collects, over the backward passes, the squared norms of the
    terms' gradients at the last hidden states, and after the first two the inner product of those.

    ``reference_point`` is KTO's, of the step before, nats.

    ``frozen_layers`` runs the backbone from the first layer that learns, where the states that enter it are known.

    ``layout`` is how the backbone gets the sequences of a batch: ``"packed"`` end to end, or ``"padded"`` as rows, for
    layers that carry state along the sequence (:mod:`clsgen_dist.model.self_test` decides).
    """

    def __init__(self, lm: nn.Module, head: ClassificationHead, losses: LossSpec | None = None) -> None:
        super().__init__()
        self.loss_spec = losses or LossSpec()
        self.lm = lm
        self.lm_head = LMHead.of(lm)
        self.classification_head = head
        self.layout: Literal["packed", "padded"] = "packed"
        self.frozen_layers: FrozenLayers | None = None
        self.hidden_grad_square: Tensor | None = None
        self.reference_point: Tensor | float = 0.0

    def hidden_states(
        self,
        input_ids_N: Tensor,
        position_N: Tensor,
        sequence_start_S1: Tensor,
        longest: int,
        *,
        probe: AttentionProbe | None = None,
        known_ND: Tensor | None = None,
    ) -> Tensor:
        """``[N, D]`` states after the final norm, in packed order whatever the layout.

        ``known_ND``: what enters the first layer that learns; the layers below it are then not computed.
        """
        lm: Any = self.lm
        backbone = lm.base_model
        asked = {} if probe is None else {ARGUMENT: probe}
        if self.layout == "packed":
            inputs = packed_inputs(input_ids_N, position_N, sequence_start_S1, longest)
            if known_ND is not None:
                assert self.frozen_layers is not None, "it is not known which layers are frozen"
                inputs = {**inputs, "input_ids": None, "inputs_embeds": known_ND[None]}
                with self.frozen_layers.left_out(known_ND[None]):
                    return backbone(**inputs, **asked).last_hidden_state[0]
            inputs = self.embedded(inputs)
            return backbone(**inputs, **asked).last_hidden_state[0]
        rows = len(sequence_start_S1) - 1
        row_N = rows_of_tokens(sequence_start_S1, len(input_ids_N))
        inputs = self.embedded(padded_inputs(input_ids_N, position_N, row_N, rows, longest))
        return backbone(**accepted_inputs(backbone, inputs), **asked).last_hidden_state[row_N, position_N]

    def embedded(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A backbone's inputs, with embeddings instead of tokens where its own embedding is sharded."""
        ids = inputs["input_ids"]
        embedded_ND = self.lm_head.embed(ids.flatten())
        if embedded_ND is None:
            return inputs
        return {**inputs, "input_ids": None, "inputs_embeds": embedded_ND.unflatten(0, ids.shape)}

    def _probe(self, decided_S: Tensor, sequence_start_S1: Tensor, position_N: Tensor) -> AttentionProbe | None:
        """What reads the attention that the terms ask for; None if none does."""
        lm: Any = self.lm
        asked = [layer for term in self.loss_spec.terms for layer in term.attention_layers]
        if not asked:
            return None
        count = lm.config.get_text_config(decoder=True).num_hidden_layers
        layers = frozenset(layer % count for layer in asked)
        row_N = rows_of_tokens(sequence_start_S1, len(position_N))
        return AttentionProbe(layers, decided_S, row_N, None if self.layout == "packed" else position_N)

    def _reference_states(self, batch: dict[str, Any]) -> Tensor | None:
        """``[N, D]`` of the backbone without its adapters, without gradient; None if no term asks for them.

        Where general texts alone are compared, only they are computed, and other states are 0. To be called before the
        pass that is trained: ZeRO-3 counts the inputs of each module's last forward pass to know when its backward pass
        is over, and would release no weights after one without gradients.
        """
        needs = {term.needs_reference for term in self.loss_spec.terms} - {None}
        if not needs:
            return None
        inputs = [batch[name] for name in _BACKBONE_INPUTS] if "explanations" in needs else _general_texts(batch)
        with torch.no_grad(), adapters_off(self.lm):
            states = self.hidden_states(*inputs)
        return F.pad(states, (0, 0, len(batch["input_ids_N"]) - len(states), 0))

    def _last_states(self, batch: dict[str, Any], probe: AttentionProbe | None, known: KnownStates | None) -> Tensor:
        """``[N, D]`` after the final norm, or ``[2 S, D]`` those that are known where no layer learns."""
        if known is not None and known.all_frozen:
            return known.hidden_ND
        inputs = [batch[name] for name in _BACKBONE_INPUTS]
        return self.hidden_states(*inputs, probe=probe, known_ND=None if known is None else known.hidden_ND)

    def forward(self, *, inside: Callable[[DualHeadModel], Any] | None = None, **batch: Any) -> Any:
        """Both losses of a batch; or ``inside(self)``, which under ZeRO-3 must run within ``forward``."""
        self.lm_head.begin()
        return self.losses(**batch) if inside is None else inside(self)

    def losses(self, *, known: KnownStates | None = None, **batch: Any) -> ModelOutput:
        """All losses of a batch (fields: see :class:`clsgen_dist.data.pack.Batch`).

        ``known``: what the frozen layers gave for it, which are then not computed.
        """
        lm_head = self.lm_head
        batch = known.renumbered(batch) if known else batch
        head, spec, square = self.classification_head, self.loss_spec, self.hidden_grad_square
        class_loss = spec.classification if self.training else ClassLoss(spec.classification.kind)
        weight_KD, bias_K = head.affine()
        label_S, class_options = class_loss.targets(batch["label_S"], bias_K.shape[0])
        if spec.classification.bias_correction is not None and not self.training:
            bias_K = bias_K.float() + torch.tensor(spec.classification.bias_correction, device=bias_K.device)
        decided_S = batch["end_index_S" if spec.decide == "after" else "class_index_S"]
        reference_ND = self._reference_states(batch)
        probe = self._probe(decided_S, batch["sequence_start_S1"], batch["position_N"])
        hidden_ND = self._last_states(batch, probe, known)
        needs_no_lm_head = known is not None and known.all_frozen
        losses = dual_head_loss(
            hidden_ND,
            hidden_ND[:1] if needs_no_lm_head else lm_head.weight_VD,
            weight_KD,
            bias_K,
            supervised_index_n=batch["supervised_index_n"],
            target_n=batch["target_n"],
            class_index_S=decided_S,
            label_S=label_S,
            lm_bias_V=None if needs_no_lm_head else lm_head.bias_V,
            dropout_scale_SD=head.dropout_scale(label_S.shape[0]),
            generation=lm_head.transform.options(spec.generation if self.training else GenerationOptions()),
            classification=class_options,
            impl=spec.impl,
            execution=Execution(
                store_bytes=spec.store_bytes,
                vocab_shards=None if needs_no_lm_head else lm_head.shards,
                hidden_grad_square=None if square is None or spec.impl == "reference" else square[:3],
            ),
        )
        losses = known.with_tokens(losses) if known else losses
        shared = ForwardPass(
            batch=batch,
            hidden_ND=hidden_ND,
            losses=losses,
            lm_head=lm_head,
            head=head,
            affine=(weight_KD, bias_K),
            decided_index_S=decided_S,
            class_loss=class_loss,
            name_tokens=spec.name_tokens,
            attention=probe,
            impl=spec.impl,
            store_bytes=spec.store_bytes,
            reference_point=self.reference_point,
        )
        sums, judged = self._terms(shared, reference_ND)
        after_SK = losses.class_logits[:0]
        if spec.decide == "both" and not self.training:
            after_SK = F.linear(hidden_ND[batch["end_index_S"]].float(), weight_KD.float(), bias_K.float())
        names_SC = losses.class_logits[:0]
        if spec.terms and spec.name_tokens is not None and not self.training:
            names_SC = shared.name_logits()
        mass_S = losses.class_loss[:0]
        if probe is not None and not self.training:
            log_mass_S, reached_S = shared.log_evidence_mass()
            mass_S = log_mass_S.exp().masked_fill(~reached_S, torch.nan)
        margin_S = mismatched = losses.class_loss[:0]
        if judged is not None:
            margin_S = margin_S if self.training else judged.margin_S.masked_fill(~judged.is_pair_S, torch.nan)
            mismatched = judged.mismatched_sums() if self.training else mismatched
        return ModelOutput(*losses, after_SK, names_SC, mass_S, margin_S, mismatched, sums)

    def _terms(self, shared: ForwardPass, reference_ND: Tensor | None) -> tuple[tuple[Tensor, ...], Preferences | None]:
        """Sum of each term, their gradients measured; explanations compared with the reference, if a term does that."""
        square, sums, judged = self.hidden_grad_square, [], None
        for index, term in enumerate(self.loss_spec.terms):
            hidden_ND = shared.hidden_ND
            if square is not None and index >= 2:  # the fused loss measures the first two itself
                hidden_ND = _MeasureGradient.apply(hidden_ND, square[index + 1])
            seen = dataclasses.replace(
                shared, hidden_ND=hidden_ND, reference_ND=reference_ND if term.needs_reference else None
            )
            sums.append(term.sum(seen))
            judged = seen.preferences if term.compares_explanations else judged
        return tuple(sums), judged


_BACKBONE_INPUTS = ("input_ids_N", "position_N", "sequence_start_S1", "longest")


def _general_texts(batch: dict[str, Any]) -> list[Any]:
    """The backbone's inputs for the general texts of a batch, which are its last sequences.

    Without any, those of a single token: every rank runs the same modules.
    """
    input_ids_N, position_N, sequence_start_S1, longest = (batch[name] for name in _BACKBONE_INPUTS)
    count = batch["replayed_texts"]
    if count == 0:
        return [input_ids_N[:1], position_N[:1], sequence_start_S1[:2].clamp(max=1), 1]
    before = len(input_ids_N) - batch["replayed"] - count  # each text predicts all its tokens but the first
    return [input_ids_N[before:], position_N[before:], sequence_start_S1[-count - 1 :] - before, longest]


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
