"""What one token of each sequence attends to, in chosen layers, while any attention kernel computes the rest.

Flash-attention gives no weights. The row of one query is cheap to compute beside it, from the same rotated queries and
keys:

    weights = softmax over the sequence's tokens up to the query of   q · k * scaling

The probe is an argument of the backbone's forward, which hands it down to the attention function. Gradients flow
through it, also where activations are checkpointed (there the rows are computed a second time, as all else).

Cost: one ``[N, H E]`` product a layer, in fp32.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from clsgen_dist.errors import ModelError
from clsgen_dist.model.attention import supports_custom_attention

# N packed tokens, S sequences, H heads, K key-value heads, E head size

ARGUMENT = "attention_probe"
"""The keyword argument of the backbone's forward."""


class AttentionProbe:
    """Collects the attention of one query of each sequence.

    Args:
        layers: numbers of the layers, from 0.
        query_index_S: position of each sequence's query among the packed tokens.
        row_N: sequence of each packed token.
        position_N: position of each packed token in its sequence, where sequences are padded rows; None: packed.
    """

    def __init__(
        self, layers: frozenset[int], query_index_S: Tensor, row_N: Tensor, position_N: Tensor | None = None
    ) -> None:
        self.layers, self._query_index_S = layers, query_index_S
        self._row_N, self._position_N = row_N, position_N
        self._distance_N = query_index_S[row_N] - torch.arange(len(row_N), device=row_N.device)
        self.log_weights: dict[int, Tensor] = {}
        """By layer, fp32 ``[H, N]``: logarithm of what each sequence's query gives to each of its tokens."""

    def record(
        self,
        module: Any,
        query_BHTE: Tensor,
        key_BKTE: Tensor,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **_: Any,
    ) -> None:
        """Compute the queries' attention if this is one of the layers; arguments as of transformers' interface."""
        if module.layer_idx not in self.layers:
            return
        query_HNE, key_KNE = self._packed(query_BHTE), self._packed(key_BKTE)
        heads, size = query_HNE.shape[0], query_HNE.shape[2]
        query_HSE = query_HNE[:, self._query_index_S].float()
        key_HNE = key_KNE.float().repeat_interleave(heads // key_KNE.shape[0], dim=0)
        scores_HN = (query_HSE[:, self._row_N] * key_HNE).sum(dim=2) * (size**-0.5 if scaling is None else scaling)
        if softcap is not None:
            scores_HN = softcap * torch.tanh(scores_HN / softcap)
        hidden_N = self._distance_N < 0
        if sliding_window is not None:
            hidden_N = hidden_N | (self._distance_N >= sliding_window)
        scores_HN = scores_HN.masked_fill(hidden_N, -torch.inf)
        total_HS = logsumexp_by_row(scores_HN, self._row_N, query_HSE.shape[1])
        if s_aux is not None:  # a sink takes its share and has no token
            total_HS = torch.logaddexp(total_HS, s_aux.float()[:, None])
        self.log_weights[module.layer_idx] = scores_HN - total_HS[:, self._row_N]

    def log_mass(self, index_e: Tensor, row_e: Tensor) -> tuple[Tensor, Tensor]:
        """How much attention the positions of each row get.

        Returns:
            ``[layers, S]`` logarithm of their share, averaged over heads; 0 where they are not in reach.
            bool ``[layers, S]`` whether some of them are in reach: there are any, and in the layer's window.

        Raises:
            ModelError: some layer has no attention that could be read.
        """
        if missing := sorted(self.layers - self.log_weights.keys()):
            raise ModelError(
                f"the layers {missing} have no softmax attention that can be read; name others in "
                "objectives.evidence.layers"
            )
        rows, masses, reached = len(self._query_index_S), [], []
        for layer in sorted(self.layers):
            log_weights_He = self.log_weights[layer][:, index_e]
            log_mass_HS = logsumexp_by_row(log_weights_He, row_e, rows)
            masses.append(torch.logsumexp(log_mass_HS, dim=0) - math.log(len(log_mass_HS)))
            visible_e = (log_weights_He[0] > -torch.inf).float()
            reached.append(visible_e.new_zeros(rows).scatter_add(0, row_e, visible_e) > 0)
        return torch.stack(masses), torch.stack(reached)

    def _packed(self, states_BHTE: Tensor) -> Tensor:
        """``[H, N, E]`` of packed sequences, or of those in padded rows."""
        if self._position_N is None:
            return states_BHTE[0]
        return states_BHTE.transpose(1, 2)[self._row_N, self._position_N].transpose(0, 1)


def logsumexp_by_row(values_HM: Tensor, row_M: Tensor, rows: int) -> Tensor:
    """``[H, rows]`` logarithm of the sum of exponentials of each row's values; 0 for a row without any."""
    shape = (values_HM.shape[0], rows)
    index_HM = row_M.expand(values_HM.shape)
    peak = values_HM.new_full(shape, -torch.inf).scatter_reduce(1, index_HM, values_HM.detach(), "amax")
    peak = peak.masked_fill(peak == -torch.inf, 0.0)
    total = values_HM.new_zeros(shape).scatter_add(1, index_HM, (values_HM - peak.gather(1, index_HM)).exp())
    return peak + total.masked_fill(total == 0, 1.0).log()


def let_probe(attention: str, lm: Any) -> None:
    """Make an attention kernel of transformers' interface record what a probe asks for.

    Raises:
        ModelError: the model computes this kernel's attention itself.
    """
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if attention == "eager" or not supports_custom_attention(lm):
        raise ModelError(
            f"objectives.evidence needs an attention kernel that can be asked for weights, not {attention!r} of "
            f"{type(lm).__name__}; set model.attention to auto, or objectives.evidence.weight to 0"
        )
    kernel = ALL_ATTENTION_FUNCTIONS[attention]
    if not hasattr(kernel, "probed"):
        AttentionInterface.register(attention, _probed(kernel))


def _probed(kernel: Any) -> Any:
    @functools.wraps(kernel)
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        attention_probe: AttentionProbe | None = None,
        **options: Any,
    ) -> Any:
        if attention_probe is not None:
            attention_probe.record(module, query, key, **options)
        return kernel(module, query, key, value, attention_mask, **options)

    attend.probed = True  # type: ignore[attr-defined]
    return attend
