"""What a term of the loss sees of a micro-batch: states, both heads, attention to evidence, explanations compared.

A term takes what it needs; what costs something is computed when it is asked for.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from clsgen_kernels import DualHeadOutput, Execution, GenerationOptions, dual_head_loss
from clsgen_kernels.inputs import HeadInputs
from torch import Tensor

from clsgen_dist.data.pack import MISMATCHED, REJECTED
from clsgen_dist.model.attention import rows_of_tokens
from clsgen_dist.model.attention_probe import AttentionProbe
from clsgen_dist.model.classification_head import ClassificationHead, ClassLoss
from clsgen_dist.model.lm_head import LMHead
from clsgen_dist.model.reference_divergence import reference_divergence

# N packed tokens, S sequences, n supervised tokens, e tokens of evidence, D hidden, K logits of the head


@dataclass(frozen=True)
class Preferences:
    """Explanations of a micro-batch, compared with the reference."""

    ratio_S: Tensor
    """Log-ratio of the model's to the reference's probability of each sequence's explanation, nats; 0 without."""
    role_S: Tensor
    of_S: Tensor
    """As of :class:`clsgen_dist.data.pack.Batch`."""
    is_explained_S: Tensor
    """bool: rows with an explanation of their own."""

    @property
    def is_rejected_S(self) -> Tensor:
        """bool: reviewers rejected the sequence's explanation."""
        return self.role_S == REJECTED

    @property
    def is_judged_S(self) -> Tensor:
        """bool: the sequence's explanation is its row's own, accepted or rejected."""
        return self.is_explained_S | self.is_rejected_S

    @property
    def is_pair_S(self) -> Tensor:
        """bool: the sequence's explanation is rejected, and its row has an accepted one."""
        return self.is_rejected_S & self.is_explained_S[self.of_S]

    @property
    def margin_S(self) -> Tensor:
        """The row's own log-ratio minus the sequence's, nats."""
        return self.ratio_S[self.of_S] - self.ratio_S

    def mismatched_sums(self) -> Tensor:
        """``[2]`` sum and count of the log-ratios of other rows' explanations, without gradient."""
        mismatched_S = self.role_S == MISMATCHED
        return torch.stack([(self.ratio_S.detach() * mismatched_S).sum(), mismatched_S.sum()])


@dataclass(frozen=True)
class ForwardPass:
    """What a term of the loss sees of a micro-batch."""

    batch: dict[str, Any]
    """Fields of :class:`clsgen_dist.data.pack.Batch`."""
    hidden_ND: Tensor
    """``[N, D]`` states after the final norm; a term's gradient here is measured."""
    losses: DualHeadOutput
    """Per-token and per-row losses of the two heads."""
    lm_head: LMHead
    """Of the causal LM."""
    head: ClassificationHead
    affine: tuple[Tensor, Tensor]
    """Weight ``[K, D]`` and bias ``[K]`` of the class logits."""
    decided_index_S: Tensor
    """Position at which each row's decision is read."""
    class_loss: ClassLoss
    name_tokens: tuple[int, ...] | None
    """As in :class:`clsgen_dist.model.dual_head.LossSpec`."""
    attention: AttentionProbe | None = None
    """Attention of the tokens where decisions are read, in the layers that terms ask for."""
    reference_ND: Tensor | None = None
    """The hidden states of the backbone without its adapters, ``[N, D]``, without gradient; 0, or None, where no term
    asks for them."""
    impl: str = "auto"
    """As in :class:`clsgen_dist.model.dual_head.LossSpec`."""
    store_bytes: int = 0
    """As in :class:`clsgen_dist.model.dual_head.LossSpec`."""
    reference_point: Tensor | float = 0.0
    """As of :class:`clsgen_dist.model.dual_head.DualHeadModel`."""

    @functools.cached_property
    def preferences(self) -> Preferences:
        """How much more likely than in the reference the model makes each explanation."""
        batch = self.batch
        reference_S = batch["reference_S"]
        if self.reference_ND is not None:
            with torch.no_grad():
                reference_S = self._explanation_log_probs(self.reference_ND)
        return Preferences(
            self._explanation_log_probs(self.hidden_ND) - reference_S,
            batch["role_S"],
            batch["of_S"],
            batch["end_index_S"] != batch["class_index_S"],
        )

    def replay_losses(self) -> Tensor:
        """``[t]`` cross-entropy of the predicted tokens of general texts, nats."""
        index_t, target_t = self._replayed()
        return self._token_losses(self.hidden_ND, index_t, target_t)

    def replay_divergences(self) -> Tensor:
        """``[t]`` divergence of the reference from the model where general texts are predicted, nats."""
        assert self.reference_ND is not None, "no term asks for the reference"
        index_t, _ = self._replayed()
        return reference_divergence(self.hidden_ND[index_t], self.reference_ND[index_t], self.lm_head)

    def _replayed(self) -> tuple[Tensor, Tensor]:
        count = self.batch["replayed"]
        further = (self.batch["further_index_f"], self.batch["further_target_f"])
        index_t, target_t = (values_f[len(values_f) - count :] for values_f in further)
        return index_t, target_t

    def _token_losses(self, hidden_ND: Tensor, index_m: Tensor, target_m: Tensor) -> Tensor:
        """``[m]`` cross-entropy of the LM at these positions, nats."""
        nowhere = index_m[:0]
        return dual_head_loss(
            hidden_ND,
            self.lm_head.weight_VD,
            *self.affine,
            supervised_index_n=index_m,
            target_n=target_m,
            class_index_S=nowhere,
            label_S=nowhere,
            lm_bias_V=self.lm_head.bias_V,
            generation=self.lm_head.transform.options(GenerationOptions()),
            impl=self.impl,
            execution=Execution(store_bytes=self.store_bytes, vocab_shards=self.lm_head.shards),
        ).generation_loss

    def _explanation_log_probs(self, hidden_ND: Tensor) -> Tensor:
        """``[S]`` log-probability of each sequence's explanation, nats; 0 without."""
        batch, count = self.batch, len(self.batch["further_index_f"]) - self.batch["replayed"]
        index_m = torch.cat([batch["supervised_index_n"], batch["further_index_f"][:count]])
        target_m = torch.cat([batch["target_n"], batch["further_target_f"][:count]])
        losses = self._token_losses(hidden_ND, index_m, target_m)
        row_N = rows_of_tokens(batch["sequence_start_S1"], len(hidden_ND)).to(index_m.device)
        return losses.new_zeros(len(batch["of_S"])).index_add(0, row_N[index_m], -losses)

    def mean_states(self, spans: Literal["evidence", "counter"]) -> tuple[Tensor, Tensor]:
        """``[S, D]`` fp32 mean of each row's last hidden states at these spans, and bool ``[S]`` whether it has any."""
        letter = spans[0]
        return self._means(self.batch[f"{spans}_index_{letter}"], self.batch[f"{spans}_row_{letter}"])

    def rejected_states(self) -> tuple[Tensor, Tensor]:
        """``[S, D]`` fp32 mean of the last states of each row's rejected explanation, and bool ``[S]`` which have one.

        Rows have them where the preference term is on.
        """
        index_f = self.batch["further_index_f"] + 1
        sequence_f = rows_of_tokens(self.batch["sequence_start_S1"], len(self.hidden_ND))[index_f]
        is_rejected_f = (self.batch["role_S"] == REJECTED)[sequence_f]
        return self._means(index_f, self.batch["of_S"][sequence_f], is_rejected_f)

    def _means(self, index_e: Tensor, row_e: Tensor, counts_e: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Means of the states at ``index_e`` by row, of those that count; and which rows have any."""
        counts_e = torch.ones_like(row_e) if counts_e is None else counts_e
        sum_SD = self.hidden_ND.new_zeros((len(self.decided_index_S), self.hidden_ND.shape[1]), dtype=torch.float32)
        sum_SD = sum_SD.index_add(0, row_e, self.hidden_ND[index_e].float() * counts_e[:, None])
        count_S = sum_SD.new_zeros(len(sum_SD)).index_add(0, row_e, counts_e.to(sum_SD.dtype))
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
        return self.lm_head.logits_of(self.hidden_ND[self.batch["class_index_S"]], list(self.name_tokens))

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
