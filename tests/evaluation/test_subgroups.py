"""Subgroups: the miscalibrated one is found, small ones are not measured, the others are not accused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from clsgen_dist.evaluation.calibration_error import binned_ece
from clsgen_dist.evaluation.delong import auroc_interval
from clsgen_dist.evaluation.subgroups import subgroups


def rows(seed, shift_of_c=1.0, n=900):
    """Three groups; the outcomes of c have a higher frequency than said."""
    rng = np.random.default_rng(seed)
    group, p = rng.choice(["a", "b", "c"], n, p=[0.5, 0.3, 0.2]), rng.beta(1, 1.5, n)
    return p, rng.random(n) < expit(logit(p) + shift_of_c * (group == "c")), group


def test_metrics_are_those_of_the_groups_rows():
    p, positive, group = rows(0)
    found = {g.name: g for g in subgroups(p, positive, group, threshold=0.4).measured}
    assert list(found) == ["a", "b", "c"]
    of_b = group == "b"
    b = found["b"]
    assert (b.rows, b.positives) == (of_b.sum(), positive[of_b].sum())
    assert b.auroc.interval == auroc_interval(p[of_b], positive[of_b]).interval
    assert b.recall.value == pytest.approx((p[of_b & positive] >= 0.4).mean())
    assert b.calibration_in_the_large.value == pytest.approx(p[of_b].mean() - positive[of_b].mean())
    assert b.ece.value == binned_ece(p[of_b], positive[of_b], binning="mass")
    assert all(e.interval.low < e.value < e.interval.high for e in (b.auroc, b.recall, b.calibration_in_the_large))


def test_the_miscalibrated_group_is_the_worst_and_alone():
    found = subgroups(*rows(1))
    for criterion in ("calibration_in_the_large", "ece"):
        assert found.worst(criterion).name == "c"
    assert found.worst("calibration_in_the_large").calibration_in_the_large.interval.high < 0


def test_no_calibrated_group_is_accused_more_often_than_promised():
    accused = [
        subgroups(*rows(seed, 0.0, 500), resamples=2).worst("calibration_in_the_large") is not None
        for seed in range(60)
    ]
    # Three intervals of 95 %: 14 % of the runs.
    assert np.mean(accused) < 0.3


def test_group_estimates_contain_the_truth():
    hits = []
    for seed in range(45):
        p, positive, group = rows(seed + 100, n=600)
        true = expit(logit(p) + (group == "c"))
        for found in subgroups(p, positive, group, seed=seed, resamples=100).measured:
            of_group = group == found.name
            truths = {
                "calibration_in_the_large": (p - true)[of_group].mean(),
                "ece": binned_ece(p[of_group], true[of_group], binning="mass"),
            }
            hits.append(
                [
                    getattr(found, name).interval.low - 1e-9 <= truth <= getattr(found, name).interval.high + 1e-9
                    for name, truth in truths.items()
                ]
            )
    assert (np.mean(hits, axis=0) > 0.91).all()


def test_the_group_with_the_worst_ranking_is_found_though_a_smaller_one_looks_worse():
    rng = np.random.default_rng(2)
    group = np.array(["large"] * 1500 + ["small"] * 40 + ["good"] * 500)
    positive = rng.random(len(group)) < 0.4
    signal = {"large": 0.5, "small": 0.4, "good": 3.0}
    p = expit(rng.normal(size=len(group)) + np.array([signal[g] for g in group]) * positive)
    found = subgroups(p, positive, group)
    assert found.worst("auroc").name == "large"
    assert found.worst("recall").name in ("large", "small")


def test_groups_too_small_to_judge_are_listed_and_not_measured():
    p, positive, group = rows(3)
    group = group.astype(object)
    group[:29] = "tiny"
    group[29:100], positive[29:100] = "one-sided", False
    group[100:140] = None
    group[140:150] = float("nan")
    found = subgroups(p, positive, group)
    assert [(g.name, g.rows) for g in found.too_small] == [("one-sided", 71), ("tiny", 29)]
    assert [g.rows for g in found.measured if g.name == "(none)"] == [50]
    assert subgroups(p[:5], positive[:5], group[:5]).worst("ece") is None


def test_a_group_whose_probabilities_are_all_equal_is_not_the_worst_without_an_interval():
    p, positive, group = rows(4)
    p[group == "a"] = 0.4
    found = subgroups(p, positive, group)
    assert np.isnan(found.measured[0].auroc.interval.low) and found.worst("auroc").name in ("b", "c")
    assert subgroups(np.full(900, 0.4), positive, group).worst("auroc") is None


def test_a_group_name_too_few_is_an_error():
    with pytest.raises(ValueError, match="2 group names for 3 rows"):
        subgroups(np.ones(3), np.ones(3), ["a", "b"])
