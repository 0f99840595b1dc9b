"""How a backbone turns its last hidden states into logits: the one place that knows.

    logits = cap · tanh(s (h Wᵀ + b) / cap)        without cap: s (h Wᵀ + b)

W and b are the LM head's weight and bias, s and cap come from the configuration, under the names that transformers'
model classes read. That a backbone really computes this is measured on the loaded model, see
:mod:`clsgen_dist.model.self_test`: families that do something else are refused there.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from clsgen_kernels import GenerationOptions, VocabShards
from torch import Tensor, nn

from clsgen_dist.model.unsupported import Unsupported, UnsupportedBackboneError

# T tokens, D hidden, V vocabulary, R chosen rows of the vocabulary

_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
"""Names of numbers that multiply the logits: Cohere, Muse, Falcon H1."""
_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
"""Names of numbers that divide the logits, or the states before the LM head: Granite and MiniCPM 3, Inkling."""
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Names of soft caps: Gemma 2 (arXiv 2408.00118), RecurrentGemma, xLSTM."""
_OTHERWISE = {"hyperclovax": {"logits_scaling": "factor"}, "mpt": {"logit_scale": "unused"}}
"""Model types that use one of these names in another way."""


@dataclass(frozen=True)
class LogitTransform:
    """What happens to the products of states and LM head."""

    scale: float = 1.0
    """s, above 0."""
    softcap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitTransform:
        """That of a model's configuration; UnsupportedBackboneError for numbers that no logits come from."""
        text = config.get_text_config(decoder=True)
        scale, softcap, otherwise = 1.0, None, _OTHERWISE.get(text.model_type, {})
        for name in (*_FACTORS, *_DIVISORS, *_CAPS):
            value, use = getattr(text, name, None), otherwise.get(name)
            if value is None or use == "unused":
                continue
            if not isinstance(value, (int, float)) or not value > 0:
                raise UnsupportedBackboneError(
                    Unsupported.CHANGED_LOGITS,
                    f"{name} in the backbone's config.json is {value!r}, expected a number above 0; copy the file from "
                    "the model again",
                )
            if name in _CAPS:
                softcap = float(value)
            else:
                scale = scale * value if name in _FACTORS or use == "factor" else scale / value
        return cls(scale, softcap)

    def __call__(self, products: Tensor) -> Tensor:
        """Logits of the products ``h Wᵀ + b``, in their dtype."""
        logits = products if self.scale == 1 else products * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """Derivative of the logits with respect to the products."""
        return self.scale if self.softcap is None else self.scale * (1 - (logits / self.softcap) ** 2)

    def options(self, options: GenerationOptions) -> GenerationOptions:
        """The options of the generation loss with this transform."""
        return dataclasses.replace(options, logit_scale=self.scale, softcap=self.softcap)


class LMHead:
    """The LM head of a causal LM, which reads weight and bias when they are used: under ZeRO-3 that gathers them.

    :class:`clsgen_dist.model.sharded_lm_head.ShardedLMHead` has this rank's rows instead.
    """

    shards: VocabShards | None = None
    """Which rank has which rows of weight and bias; None: this one has all."""

    def __init__(self, lm: Any, transform: LogitTransform) -> None:
        self.lm, self.transform = lm, transform

    @classmethod
    def of(cls, lm: Any) -> LMHead:
        """That of a causal LM of transformers."""
        return cls(lm, LogitTransform.of(lm.config))

    @property
    def weight_VD(self) -> Tensor:
        """The output embedding."""
        return self.lm.get_output_embeddings().weight  # type: ignore[no-any-return]

    @property
    def bias_V(self) -> Tensor | None:
        """The bias; None if there is none."""
        return getattr(self.lm.get_output_embeddings(), "bias", None)

    def gathered_parameters(self) -> list[nn.Parameter]:
        """What ZeRO-3 gathers of it while the losses are computed."""
        return list(self.lm.get_output_embeddings().parameters())

    def rows(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Weight ``[R, D]`` and bias ``[R]`` of these tokens, on every rank; no gradient reaches them."""
        bias_V, chosen = self.bias_V, list(tokens)
        return self.weight_VD.detach()[chosen], None if bias_V is None else bias_V.detach()[chosen]

    def logits(self, states_TD: Tensor) -> Tensor:
        """``[..., V]`` logits of last hidden states, in the weight's dtype."""
        weight_VD = self.weight_VD
        return self.transform(F.linear(states_TD.to(weight_VD.dtype), weight_VD, self.bias_V))

    def logits_of(self, states_TD: Tensor, tokens: Sequence[int]) -> Tensor:
        """``[T, R]`` fp32 logits of some tokens; their gradient reaches the states, not the LM head."""
        weight_RD, bias_R = self.rows(tokens)
        return self.transform(
            F.linear(states_TD.float(), weight_RD.float(), None if bias_R is None else bias_R.float())
        )

    def embed(self, input_ids_N: Tensor) -> Tensor | None:
        """``[N, D]`` the tokens' embeddings; None: the backbone looks them up itself."""
        return None

    @contextlib.contextmanager
    def whole(self) -> Iterator[LMHead]:
        """The complete head, to read; collective under ZeRO-3."""
        yield self

    def begin(self) -> None:
        """A forward pass begins."""
