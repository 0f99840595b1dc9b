"""Weights that adapt to the losses: a factor on each term's weight, from losses and gradient norms of earlier steps.

    uncertainty      exp(-s_t), with s_t ← s_t - rate · (1/2 - exp(-s_t) w_t L_t): one step of gradient descent on
                     Σ exp(-s_t) w_t L_t + s_t / 2; at rest each term contributes 1/2 (Kendall 2018, arXiv 1705.07115)
    loss_ratio       T · softmax(r / temperature), r_t = L_t of the last interval / L_t of the one before: what falls
                     slowly gets more (dynamic weight averaging, Liu 2019, arXiv 1803.10704)
    gradient_norm    the factors, of mean 1, that make w_t ‖∂L_t/∂h‖ equal, h the last hidden states; the norms are
                     moving averages (the aim of GradNorm, Chen 2018, arXiv 1711.02257, without its second backward)

All need only numbers that the step has: global means, and the norms that the backward pass measures where the terms
meet, before their gradients are added. So there is no second backward pass, nor a learnt parameter under ZeRO-3. The
state is a few floats, equal on all ranks and part of the checkpoint. A term that a step has nothing for keeps its state.
A term with losses below 0 has no scale for the first two methods, and keeps its weight.

Fixed weights often match such schemes (Kurin 2022, arXiv 2201.04122): docs/results.md has what was measured here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from clsgen_dist.io.value_ranges import ClosedUnitInterval, PositiveFloat, PositiveInt

_TINY = 1e-12

Values = dict[str, float]
"""By term name."""
BalanceState = dict[str, Values]
"""By quantity, then by term."""


@dataclass(kw_only=True)
class BalanceSettings:
    """How the weights adapt to the losses; off by default."""

    method: Literal["none", "uncertainty", "loss_ratio", "gradient_norm"] = "none"
    """`uncertainty` (Kendall 2018), `loss_ratio` (dynamic weight averaging), `gradient_norm`; none: weights do not adapt."""
    rate: ClosedUnitInterval = 0.02
    """Step size of `uncertainty`; share of the newest step in the moving average of `gradient_norm`."""
    interval: PositiveInt = 50
    """Steps over which `loss_ratio` averages."""
    temperature: PositiveFloat = 2.0
    """Of `loss_ratio`: higher is closer to equal."""
    bounds: tuple[float, float] = (0.1, 10.0)
    """Least and largest factor on a term's weight."""

    def faults(self) -> Iterator[str]:
        """What is wrong with fields of this section taken together."""
        low, high = self.bounds
        if not 0 < low <= 1 <= high:
            yield f"objectives.balance.bounds is {[low, high]}, expected [low, high] with 0 < low <= 1 <= high"


@dataclass(frozen=True)
class Balance:
    """The rule; the state is passed in and returned."""

    settings: BalanceSettings = field(default_factory=BalanceSettings)

    def factors(self, state: BalanceState, terms: Mapping[str, float]) -> Values:
        """The factor of each term; 1 for all until something is known. ``terms``: base weights, of which 0 is off."""
        active = [name for name, weight in terms.items() if weight > 0]
        method, found = self.settings.method, dict.fromkeys(terms, 1.0)
        if method == "uncertainty":
            found |= {name: math.exp(-s) for name, s in state.get("log_variance", {}).items() if name in active}
        elif method == "loss_ratio":
            last, before = state.get("last", {}), state.get("before", {})
            ratios = {
                n: last[n] / max(before[n], _TINY) / self.settings.temperature
                for n in active
                if n in before and n in last
            }
            raised = {n: math.exp(ratio - max(ratios.values())) for n, ratio in ratios.items()}
            found |= {n: len(raised) * value / sum(raised.values()) for n, value in raised.items()}
        elif method == "gradient_norm":
            norms = state.get("norm", {})
            inverse = {name: 1 / max(terms[name] * norms[name], _TINY) for name in active if name in norms}
            found |= {name: len(inverse) * value / sum(inverse.values()) for name, value in inverse.items()}
        low, high = self.settings.bounds
        return {name: min(max(value, low), high) for name, value in found.items()}

    def after(
        self, state: BalanceState, step: int, terms: Mapping[str, float], losses: Values, norms: Values
    ) -> BalanceState:
        """The state after step ``step`` (from 0).

        Args:
            terms: base weights.
            losses: global mean of each term, nats; NaN where the step had nothing for it.
            norms: norm of the gradient of each term's mean at the last hidden states, without any weight; NaN likewise.
        """
        settings = self.settings
        state = {quantity: dict(values) for quantity, values in state.items()}
        seen = {name: loss for name, loss in losses.items() if terms[name] > 0 and math.isfinite(loss)}
        if settings.method != "gradient_norm":
            seen = {name: loss for name, loss in seen.items() if loss > 0}
        if settings.method == "uncertainty":
            widest = -math.log(settings.bounds[0]), -math.log(settings.bounds[1])
            known = state.setdefault("log_variance", {})
            for name, loss in seen.items():
                s = known.get(name, 0.0)
                s -= settings.rate * (0.5 - math.exp(-s) * terms[name] * loss)
                known[name] = min(max(s, widest[1]), widest[0])
        elif settings.method == "loss_ratio":
            total, count = state.setdefault("total", {}), state.setdefault("count", {})
            for name, loss in seen.items():
                total[name], count[name] = total.get(name, 0.0) + loss, count.get(name, 0.0) + 1
            if (step + 1) % settings.interval == 0 and total:
                state |= {"before": state.get("last", {}), "last": {n: total[n] / count[n] for n in total}}
                state |= {"total": {}, "count": {}}
        elif settings.method == "gradient_norm":
            known = state.setdefault("norm", {})
            for name in seen:
                if math.isfinite(norm := norms.get(name, math.nan)) and norm > 0:
                    known[name] = known.get(name, norm) + settings.rate * (norm - known.get(name, norm))
        return state
