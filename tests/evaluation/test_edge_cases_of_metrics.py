"""Few rows, one class, a class never seen, constant or extreme probabilities, unknown answers: in every label space.

Each figure is right or undefined: never a warning, a number out of its range, or an interval without width, which would
say that other rows give the very same.
"""

from __future__ import annotations

import math
import warnings
from functools import partial

import numpy as np
import pytest

from clsgen_dist.calibration.decisions import DecisionRules
from clsgen_dist.calibration.fit_reading import fit_reading
from clsgen_dist.data.example import Columns, Example
from clsgen_dist.errors import DataError
from clsgen_dist.evaluation import metric_estimates as estimates_module
from clsgen_dist.evaluation.bootstrap import bootstrap_intervals
from clsgen_dist.evaluation.full_metrics import full_metrics
from clsgen_dist.evaluation.metric_estimates import NO_INTERVAL
from clsgen_dist.evaluation.questions import pooled_question
from clsgen_dist.inference.measures import measure_decisions
from clsgen_dist.model.label_space import LabelSpace
from tests.calibration.synthetic import SPACES, distorted_rows

NAMES = {2: ("no", "yes"), 3: ("a", "b", "c"), 4: ("low", "some", "more", "high")}
SIGNED = {"mcc", "quadratic_kappa"}
UNBOUNDED = {"nll", "brier", "mae", "coverage_error"}
ECE = {"ece", "ece_mass"}
"""Their intervals take out a bias, so they may lie below the value."""


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(estimates_module, "bootstrap_intervals", partial(bootstrap_intervals, resamples=40))


def space_of(name):
    kind, classes = SPACES[name]
    return LabelSpace(NAMES[classes], NAMES[classes][-1], kind)


def alike(labels, label):
    return np.full_like(labels, min(label, 1) if labels.ndim == 2 else label)


def cases(name):
    """Logits and labels by the name of the case."""
    kind, classes = SPACES[name]
    some = partial(distorted_rows, name, factor=1.0, shift=0.0)
    found = {f"{n} rows": some(n)[:2] for n in (1, 2, 7, 60)}
    logits, labels, _ = some(60)
    found |= {f"all {c}": (logits[:7], alike(labels[:7], c)) for c in (0, classes - 1)}
    found["equal probabilities"] = np.zeros_like(logits), labels
    found["duplicates"] = np.repeat(logits[:5], 12, axis=0), np.repeat(labels[:5], 12, axis=0)
    extreme = np.where(logits > 0, 1e4, -1e4)
    found["probabilities 0 and 1"] = (np.sort(extreme)[:, ::-1] if kind == "ordinal" else extreme), labels
    if kind == "multilabel":
        right = np.where(np.nan_to_num(labels) > 0.5, 3.0, -3.0)
        found |= {f"a column {value}": (logits, with_column(labels, value)) for value in (np.nan, 1.0)}
        found["a row without answers"] = logits, np.where(np.arange(60)[:, None] < 3, np.nan, labels)
        found["nothing known"] = logits, np.full_like(labels, np.nan)
        found["answers that are shares"] = logits, np.random.default_rng(0).random(labels.shape)
    else:
        top = labels[:, None] > np.arange(classes - 1) if kind == "ordinal" else np.eye(classes)[labels]
        right = 8.0 * np.asarray(top) - 4
        found["a class never seen"] = logits, np.minimum(labels, classes - 2)
    noise = 0.1 * logits if kind != "ordinal" else 0.1 * logits[:, :1]
    return found | {"all right": (right + noise, labels), "all wrong": (-right[:, ::-1] + noise, labels)}


def with_column(labels, value):
    return np.where(np.arange(labels.shape[1]) == 1, value, labels)


CASES = [(name, case) for name in SPACES for case in cases(name)]


@pytest.mark.parametrize("clustered", [False, pytest.param(True, marks=pytest.mark.long)], ids=["rows", "clusters"])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_every_figure_is_right_or_undefined(name, case, clustered):
    space, (logits, labels) = space_of(name), cases(name)[case]
    p, rows = space.probabilities(logits), range(len(labels))
    examples = [Example(id=str(n), text="", groups=("AB"[n % 2],), cluster=str(n // 3)) for n in rows]
    columns = Columns(groups=("site",), cluster="patient" if clustered else None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure_decisions(p, p, labels, space, None, examples, columns)
    for metric, estimate in found.metrics.items():
        value, low, high = estimate.value, estimate.interval.low, estimate.interval.high
        assert math.isnan(low) == math.isnan(high) and not (math.isnan(value) and not math.isnan(low)), metric
        if math.isnan(value):
            continue
        assert math.isfinite(value) and (metric in UNBOUNDED or value <= 1 + 1e-12), metric
        assert value >= (-1 if metric in SIGNED else 0) - 1e-12, metric
        if not math.isnan(low):
            assert metric not in NO_INTERVAL and low < high, metric
            assert metric in ECE or low - 1e-9 <= value <= high + 1e-9, metric
    line = found.line
    for one in (line.slope, line.intercept, line.in_the_large):
        assert math.isnan(one.value) or one.interval.low < one.value < one.interval.high
    assert math.isnan(found.calibrated_p_value) or 0 < found.calibrated_p_value <= 1
    assert all(0 <= share <= 1 for share in (*found.selective.coverage_T, *found.selective.risk_T))
    if case == "nothing known":
        assert all(math.isnan(e.value) for metric, e in found.metrics.items())


@pytest.mark.parametrize("name", SPACES)
def test_seven_rows_that_are_all_right_do_not_look_certain(name):
    logits, labels = (values[:7] for values in cases(name)["all right"])
    space = space_of(name)
    found = measure_decisions(*[space.probabilities(logits)] * 2, labels, space, None, [], Columns()).metrics
    share = found["subset_accuracy" if name == "multilabel" else "accuracy"]
    assert share.value == 1 and share.interval.low < 0.7
    assert found["auroc"].value == 1 and not found["auroc"].interval.low > 0.75
    if name != "multilabel":
        assert math.isnan(found["f1"].interval.low), "no resample differs"


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_reading_is_fitted_or_refused_in_one_line(name, case):
    space, (logits, labels) = space_of(name), cases(name)[case]
    rules = DecisionRules.parse(coverage=0.8, hand_over="workload=0.2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            fitted = fit_reading(logits, labels, space, None, rules, clusters_N=np.arange(len(labels)) // 3)
        except DataError as error:
            assert "\n" not in str(error) and str(error)[0] != " "
            return
    p = fitted.calibration.probabilities(logits)
    assert ((p > 0) & (p < 1)).all()
    kept = fitted.decisions.hand_over
    assert 0 < kept.coverage <= 1 and 0 <= kept.risk <= 1
    assert all(0 <= kept.intervals[name][0] <= kept.intervals[name][1] <= 1 for name in ("coverage", "risk"))


def test_refusals_say_how_many_rows_there_are_and_how_many_are_needed():
    logits, labels, _ = distorted_rows("binary", 12, seed=1)
    for count, message in ((0, "^0 labelled rows, expected 10"), (7, "^7 labelled rows, expected 10 or more")):
        with pytest.raises(DataError, match=message):
            fit_reading(logits[:count], labels[:count], space_of("binary"))
    with pytest.raises(DataError, match="all 12 rows are of one cluster"):
        fit_reading(logits, labels, space_of("binary"), clusters_N=np.zeros(12))
    logits, labels, _ = distorted_rows("multilabel", 60)
    with pytest.raises(DataError, match=r"^0 rows for class b, expected 4 .* add rows, or lower the coverage$"):
        fit_reading(
            logits, with_column(labels, np.nan), space_of("multilabel"), None, DecisionRules.parse(coverage=0.8)
        )


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(name, bad):
    space, (logits, labels) = space_of(name), cases(name)["60 rows"]
    p = space.probabilities(logits)
    p[[4, 9], 0] = bad
    for measure in (
        lambda: full_metrics(p, labels, space.kind),
        lambda: measure_decisions(p, p, labels, space, None, [], Columns()),
    ):
        with pytest.raises(ValueError, match=r"not finite, the first in row [0-9]+, expected numbers"):
            measure()
    logits[4, 0] = bad
    with pytest.raises(DataError, match="some logits are not finite"):
        fit_reading(logits, labels, space)


def test_the_ece_of_ordered_classes_is_that_of_their_cut_points():
    logits, labels, kind = distorted_rows("ordinal", 80)
    p = space_of("ordinal").probabilities(logits)
    pooled = pooled_question(p, labels, kind)
    bins = np.minimum((pooled.probability_M * 15).astype(int), 14)
    gaps = [abs((pooled.probability_M - pooled.outcome_M)[bins == b].sum()) for b in range(15)]
    assert full_metrics(p, labels, kind)["ece"] == pytest.approx(sum(gaps) / len(bins))


def test_a_column_without_answers_leaves_the_f1_of_the_others_alone():
    logits, labels, kind = distorted_rows("multilabel", 60)
    p = space_of("multilabel").probabilities(logits)
    others = [0, 2]
    expected = full_metrics(p[:, others], labels[:, others], kind)
    found = full_metrics(p, with_column(labels, np.nan), kind)
    assert all(found[metric] == pytest.approx(expected[metric]) for metric in ("f1", "f1_micro", "auroc", "ece", "nll"))
