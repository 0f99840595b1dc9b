"""Adaptive weights: each method does what its paper says, within bounds, from a state that JSON keeps exactly."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clsgen_dist.objectives.adaptive_weights import Balance, BalanceSettings

TERMS = {"generation": 1.0, "classification": 2.0}
METHODS = ("uncertainty", "loss_ratio", "gradient_norm")


def _run(balance, losses, norms=None, steps=1, terms=TERMS):
    state = {}
    for step in range(steps):
        state = balance.after(
            state, step, terms, losses(step) if callable(losses) else losses, norms or dict.fromkeys(terms, 1.0)
        )
    return state, balance.factors(state, terms)


def test_none_leaves_every_weight_as_it_is():
    state, factors = _run(Balance(), {"generation": 3.0, "classification": 0.1}, steps=5)
    assert state == {} and factors == {"generation": 1.0, "classification": 1.0}


def test_uncertainty_ends_where_each_term_contributes_a_half():
    balance = Balance(BalanceSettings(method="uncertainty", rate=0.2))
    losses = {"generation": 2.0, "classification": 0.1}
    _, factors = _run(balance, losses, steps=500)
    for name, factor in factors.items():
        assert factor * TERMS[name] * losses[name] == pytest.approx(0.5, rel=1e-3)


def test_uncertainty_takes_the_gradient_of_kendalls_loss():
    import torch

    s = torch.zeros(2, requires_grad=True)
    losses, weights = torch.tensor([2.0, 0.1]), torch.tensor([1.0, 2.0])
    (torch.exp(-s) * weights * losses + s / 2).sum().backward()
    state, _ = _run(
        Balance(BalanceSettings(method="uncertainty", rate=0.1)), {"generation": 2.0, "classification": 0.1}
    )
    assert list(state["log_variance"].values()) == pytest.approx((-0.1 * s.grad).tolist())


def test_loss_ratio_gives_more_to_what_falls_slowly():
    balance = Balance(BalanceSettings(method="loss_ratio", interval=4, temperature=1.0))
    _, factors = _run(balance, lambda step: {"generation": 2.0, "classification": 2.0 if step < 4 else 1.0}, steps=7)
    assert factors == {"generation": 1.0, "classification": 1.0}  # the second interval is not over
    _, factors = _run(balance, lambda step: {"generation": 2.0, "classification": 2.0 if step < 4 else 1.0}, steps=8)
    raised = math.exp(1.0), math.exp(0.5)
    assert factors == pytest.approx(
        {"generation": 2 * raised[0] / sum(raised), "classification": 2 * raised[1] / sum(raised)}
    )


def test_gradient_norm_makes_the_weighted_norms_equal():
    balance = Balance(BalanceSettings(method="gradient_norm", rate=0.5))
    norms = {"generation": 3.0, "classification": 0.5}
    _, factors = _run(balance, {"generation": 1.0, "classification": 1.0}, norms, steps=3)
    weighted = [TERMS[name] * factors[name] * norms[name] for name in TERMS]
    assert weighted[0] == pytest.approx(weighted[1]) and sum(factors.values()) == pytest.approx(2)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_without_a_term_and_a_term_switched_off_change_nothing_for_it(method):
    balance = Balance(BalanceSettings(method=method, interval=1))
    both, _ = _run(balance, {"generation": 2.0, "classification": 1.0}, steps=2)
    after = balance.after(
        both, 2, TERMS, {"generation": math.nan, "classification": 1.0}, dict.fromkeys(TERMS, math.nan)
    )
    quantity = {"uncertainty": "log_variance", "loss_ratio": "before", "gradient_norm": "norm"}[method]
    assert after[quantity]["generation"] == both[quantity]["generation"]
    off = {"generation": 1.0, "classification": 0.0}
    state, factors = _run(balance, {"generation": 2.0, "classification": 1.0}, steps=4, terms=off)
    assert factors["classification"] == 1.0 and all("classification" not in values for values in state.values())


@given(
    method=st.sampled_from(METHODS),
    losses=st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e4)), min_size=1, max_size=8),
    norms=st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)),
)
def test_factors_stay_within_bounds_and_the_state_survives_json(method, losses, norms):
    balance = Balance(BalanceSettings(method=method, rate=0.9, interval=2, bounds=(0.25, 4.0)))
    state = {}
    for step, pair in enumerate(losses):
        state = balance.after(
            json.loads(json.dumps(state)),
            step,
            TERMS,
            dict(zip(TERMS, pair, strict=True)),
            dict(zip(TERMS, norms, strict=True)),
        )
        factors = balance.factors(state, TERMS)
        assert all(0.25 <= factor <= 4.0 for factor in factors.values())
        assert balance.factors(json.loads(json.dumps(state)), TERMS) == factors
