"""How often 95 % intervals hold the truth, and how often tests reject models that are equal, where the truth is known.

    PYTHONPATH=. python benchmarks/interval_coverage.py [--runs 400] [--only metrics]

Prints the tables of docs/reference/metrics.md. Rows are drawn from worlds whose true probabilities are known; the truth
of a metric is its value on 400,000 rows, that of an ECE what the rows' own bins would show with their true frequencies.
Intervals are made with 300 resamples instead of 1,000. 25 minutes on one CPU core for all; ``tests/evaluation/
test_interval_coverage.py`` runs parts of it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
from scipy.special import expit, ndtr, softmax

from clsgen_dist.calibration.prior_shift import estimate as estimate_prevalence
from clsgen_dist.evaluation.bootstrap import Difference, bootstrap_interval, bootstrap_intervals, paired_difference
from clsgen_dist.evaluation.calibration_error import binned_ece, calibration_p_value, ece_interval
from clsgen_dist.evaluation.delong import auroc_interval, delong_test
from clsgen_dist.evaluation.full_metrics import full_metrics
from clsgen_dist.evaluation.interval import Interval
from clsgen_dist.evaluation.logistic_recalibration import logistic_recalibration
from clsgen_dist.evaluation.mcnemar import mcnemar
from clsgen_dist.evaluation.metric_estimates import NOT_RESAMPLED, metric_estimates
from clsgen_dist.evaluation.metrics import Kind
from clsgen_dist.evaluation.operating_points import precision_at_recall, recall_at_precision
from clsgen_dist.evaluation.selective import threshold_for_risk, threshold_for_workload
from clsgen_dist.evaluation.subgroups import subgroups
from clsgen_dist.explanations.estimates import row_scores
from clsgen_dist.io.tables import markdown_table

# N rows, C classes

RESAMPLES = 300
MANY = 400_000
Shares = dict[str, float]
Hits = dict[str, list[bool]]


@dataclass(frozen=True)
class Rows:
    """Rows of a world."""

    p_NC: np.ndarray
    """What the model says."""
    labels: np.ndarray
    true_N: np.ndarray
    """True probability of the positive class; of several classes unused."""
    clusters_N: np.ndarray | None = None


def two_classes(
    slope: float = 1.0, shift: float = 0.0, per_cluster: int = 1, mean: float = -0.5
) -> Callable[[int, int], Rows]:
    """True log-odds N(mean, 1.5), seen ``slope`` times as far, and shifted; clusters share half of the variance."""

    def draw(rows: int, seed: int) -> Rows:
        rng = np.random.default_rng(seed)
        cluster_N = np.arange(rows) // per_cluster

        def shared(share: float) -> np.ndarray:
            own, common = rng.normal(size=rows), rng.normal(size=cluster_N[-1] + 1)[cluster_N]
            return own if per_cluster == 1 else np.sqrt(share) * common + np.sqrt(1 - share) * own

        logit_N = mean + 1.5 * shared(0.5)
        true_N = expit(logit_N)
        yes_N = ndtr(shared(0.5)) < true_N
        p_N = expit(shift + slope * logit_N)
        clusters_N = None if per_cluster == 1 else cluster_N
        return Rows(np.stack([1 - p_N, p_N], axis=1), yes_N.astype(int), true_N, clusters_N)

    return draw


def several_classes(kind: Kind, per_cluster: int = 1) -> Callable[[int, int], Rows]:
    """Three classes or labels, of different frequency; of multi-label one answer in five is unknown."""

    def draw(rows: int, seed: int) -> Rows:
        rng = np.random.default_rng(seed)
        cluster_N = np.arange(rows) // per_cluster
        z_NC = 0.7 * rng.normal(size=(cluster_N[-1] + 1, 3))[cluster_N] + rng.normal(size=(rows, 3))
        if kind == "multilabel":
            p_NC = expit(1.5 * z_NC + (-1.5, 0, 1))
            labels = (rng.random(p_NC.shape) < p_NC).astype(float)
            labels[rng.random(p_NC.shape) < 0.2] = np.nan
        elif kind == "ordinal":
            above_N2 = expit(2 * z_NC[:, :1] + (0.7, -1.2))
            p_NC = -np.diff(np.hstack([np.ones((rows, 1)), above_N2, np.zeros((rows, 1))]), axis=1)
            labels = (rng.random((rows, 1)) < above_N2).sum(axis=1)
        else:
            p_NC = softmax(1.5 * z_NC + (0, 0.5, -1), axis=1)
            labels = (p_NC.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1).clip(0, 2)
        return Rows(p_NC, labels, np.empty(0), None if per_cluster == 1 else cluster_N)

    return draw


KINDS: tuple[Kind, ...] = get_args(Kind)
PREDICTORS: dict[str, dict[str, Any]] = {
    "calibrated": {},
    "over-confident": {"slope": 2.0},
    "label-shifted": {"shift": 0.6},
}
"""The model sees ``shift + slope`` times the true log-odds."""


def holds(interval: Interval, truth: float) -> bool:
    return bool(interval.low - 1e-9 <= truth <= interval.high + 1e-9)


def shares(hits: Hits) -> Shares:
    return {name: float(np.mean(values)) for name, values in hits.items()}


def metrics(world: Callable[[int, int], Rows], kind: Kind, rows: int, runs: int) -> Shares:
    """Coverage of every metric but calibration errors; intervals that are undefined count nothing."""
    many = world(MANY, 1_000_000)
    truth = full_metrics(many.p_NC, many.labels, kind)
    hits: Hits = defaultdict(list)
    for run in range(runs):
        drawn = world(rows, run)
        found = metric_estimates(drawn.p_NC, drawn.labels, kind, clusters_N=drawn.clusters_N, resamples=RESAMPLES)
        for name, estimate in found.items():
            if name not in NOT_RESAMPLED and not np.isnan(estimate.interval.low):
                hits[name].append(holds(estimate.interval, truth[name]))
    return shares(hits)


def calibration(predictor: str, rows: int, runs: int, per_cluster: int = 1) -> Shares:
    """Coverage of ECE, slope, intercept; ``rejected``: how often the p-value is below 0.05."""
    options = PREDICTORS[predictor]
    world, slope = two_classes(**options, per_cluster=per_cluster), options.get("slope", 1.0)
    line = {"slope": 1 / slope, "intercept": -options.get("shift", 0.0) / slope}
    hits: Hits = defaultdict(list)
    for run in range(runs):
        drawn = world(rows, run)
        p_N, yes_N, clusters_N = drawn.p_NC[:, 1], drawn.labels == 1, drawn.clusters_N
        for binning in ("width", "mass"):
            found = ece_interval(p_N, yes_N, binning=binning, resamples=RESAMPLES, clusters_N=clusters_N)
            hits[f"ECE, equal {binning}"].append(holds(found, binned_ece(p_N, drawn.true_N, binning=binning)))
        fitted = logistic_recalibration(p_N, yes_N, clusters_N=clusters_N)
        for name, truth in line.items():
            hits[name].append(holds(getattr(fitted, name).interval, truth))
        p_value = calibration_p_value(p_N, yes_N, resamples=RESAMPLES, clusters_N=clusters_N)
        hits["rejected"].append(p_value < 0.05)
    return shares(hits)


def groups(rows: int, runs: int, per_cluster: int = 1) -> Shares:
    """Coverage in two groups, of which the second is miscalibrated."""
    world = two_classes(per_cluster=per_cluster)

    def with_group(size: int, seed: int) -> tuple[Rows, np.ndarray, np.ndarray]:
        drawn = world(size, seed)
        group_N = np.where(np.arange(size) // per_cluster % 2, "b", "a")
        logit_N = np.log(drawn.p_NC[:, 1] / drawn.p_NC[:, 0])
        return drawn, expit(logit_N + 0.8 * (group_N == "b")), group_N

    many, p_M, group_M = with_group(MANY, 1_000_000)
    truth = {g.name: g for g in subgroups(p_M, many.labels, group_M, resamples=2).measured}
    hits: Hits = defaultdict(list)
    for run in range(runs):
        drawn, p_N, group_N = with_group(rows, run)
        found = subgroups(p_N, drawn.labels, group_N, resamples=RESAMPLES, clusters_N=drawn.clusters_N)
        for group in found.measured:
            for name in ("auroc", "recall", "calibration_in_the_large"):
                hits[name].append(holds(getattr(group, name).interval, getattr(truth[group.name], name).value))
            own_N = group_N == group.name
            hits["ece"].append(holds(group.ece.interval, binned_ece(p_N[own_N], drawn.true_N[own_N], binning="mass")))
    return shares(hits)


def tests(rows: int, runs: int, per_cluster: int = 1) -> Shares:
    """How often equal models, whose scores differ by their own noise, are called different at 0.05."""
    world = two_classes(per_cluster=per_cluster)
    hits: Hits = defaultdict(list)
    for run in range(runs):
        drawn, rng = world(rows, run), np.random.default_rng(run + 10_000)
        cluster_N = np.arange(rows) // per_cluster
        logit_N = np.log(drawn.p_NC[:, 1] / drawn.p_NC[:, 0])
        noise = [rng.normal(size=cluster_N[-1] + 1)[cluster_N] for _ in range(2)]
        first_N, second_N = (expit(logit_N + each_N) for each_N in noise)
        yes_N, clusters_N = drawn.labels == 1, drawn.clusters_N

        found = {
            name: paired(name, first_N, second_N, yes_N, clusters_N)
            for name in ("f1", "average_precision", "brier", "accuracy")
        }
        found["AUROC, DeLong"] = delong_test(first_N, second_N, yes_N, clusters_N=clusters_N)
        if clusters_N is None:
            found["accuracy, McNemar"] = mcnemar(*((p_N >= 0.5) == yes_N for p_N in (first_N, second_N)))
        for name, difference in found.items():
            hits[name].append(difference.p_value < 0.05)
            hits[f"{name}: holds 0"].append(holds(difference.interval, 0.0))
    return shares(hits)


def paired(
    name: str, first_N: np.ndarray, second_N: np.ndarray, yes_N: np.ndarray, clusters_N: np.ndarray | None
) -> Difference:
    def of(p_N: np.ndarray) -> Callable[[np.ndarray], float]:
        p_NC, labels_N = np.stack([1 - p_N, p_N], axis=1), yes_N.astype(int)
        return lambda index: full_metrics(p_NC[index], labels_N[index], "single", names=(name,))[name]

    return paired_difference(of(first_N), of(second_N), len(yes_N), resamples=RESAMPLES, clusters_N=clusters_N)


def rules(rows: int, runs: int, per_cluster: int = 1) -> Shares:
    """Coverage of what hand-over rules achieve on new rows, and of the thresholds that many rows would lead to."""
    world = two_classes(per_cluster=per_cluster)
    many = world(MANY, 1_000_000)

    def confidence(drawn: Rows) -> tuple[np.ndarray, np.ndarray]:
        return drawn.p_NC.max(axis=1), drawn.p_NC.argmax(axis=1) != drawn.labels

    sure_M, wrong_M = confidence(many)
    points = {"recall=0.9": (precision_at_recall, 0.9), "precision=0.8": (recall_at_precision, 0.8)}
    far = {name: find(many.p_NC[:, 1], many.labels == 1, value).threshold for name, (find, value) in points.items()}
    hits: Hits = defaultdict(list)
    for run in range(runs):
        drawn = world(rows, run)
        sure_N, wrong_N = confidence(drawn)
        for find, value in ((threshold_for_risk, 0.1), (threshold_for_workload, 0.3)):
            found = find(sure_N, wrong_N, value, resamples=RESAMPLES, clusters_N=drawn.clusters_N)
            if np.isnan(found.threshold):
                continue
            answered_M = sure_M >= found.threshold
            name = f"{'risk' if find is threshold_for_risk else 'workload'}={value}"
            hits[f"{name}: risk"].append(holds(found.intervals["risk"], wrong_M[answered_M].mean()))
            hits[f"{name}: answered"].append(holds(found.intervals["coverage"], answered_M.mean()))
        for name, (find, value) in points.items():
            chosen = _resampled_threshold(find, value, drawn)
            if not np.isnan(chosen.low):
                hits[f"threshold {name}"].append(holds(chosen, far[name]))
    return shares(hits)


def _resampled_threshold(find: Callable[..., object], value: float, drawn: Rows) -> Interval:
    p_N, yes_N = drawn.p_NC[:, 1], drawn.labels == 1
    return bootstrap_interval(
        lambda i: find(p_N[i], yes_N[i], value).threshold,  # type: ignore[attr-defined]
        len(yes_N), resamples=RESAMPLES, clusters_N=drawn.clusters_N,
    )  # fmt: skip


def prevalence(rows: int, runs: int) -> Shares:
    """Coverage of estimated prevalences: N(class, 1), calibrated where the classes have shares 0.5, 0.3 and 0.2."""
    fitted_C, deployed_C = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7])
    hits: Hits = defaultdict(list)
    for run in range(runs):
        rng = np.random.default_rng(run)
        x_N = rng.normal(2 * rng.choice(3, p=deployed_C, size=rows), 1.0)
        density_NC = fitted_C * np.exp(-((x_N[:, None] - 2 * np.arange(3)) ** 2) / 2)
        found = estimate_prevalence(density_NC / density_NC.sum(axis=1, keepdims=True), fitted_C)
        for share, low, high in zip(deployed_C, found.low_C, found.high_C, strict=True):
            hits[f"share {share}"].append(low <= share <= high)
    return shares(hits)


def means(rows: int, runs: int) -> Shares:
    """Coverage of means over explanations: a share, a share that is often 1, and a difference."""
    hits: Hits = defaultdict(list)
    for run in range(runs):
        rng = np.random.default_rng(run)
        found = {
            "share 0.05": (row_scores(rng.random(rows) < 0.05, is_share=True), 0.05),
            "numbers found": (row_scores(rng.binomial(3, 0.9, rows) / 3, is_share=True, resamples=RESAMPLES), 0.9),
            "excess": (row_scores(rng.exponential(0.2, rows) - 0.1, resamples=RESAMPLES), 0.1),
        }
        for name, (scores, truth) in found.items():
            if not np.isnan(scores.interval.low):
                hits[name].append(holds(scores.interval, truth))
    return shares(hits)


def unused(rows: int, runs: int) -> Shares:
    """Coverage of what looks right and is not: why intervals are not made so. One row in eight is positive."""
    world, clustered = two_classes(mean=-2.5), two_classes(per_cluster=5)
    many = world(MANY, 1_000_000)
    loud_M = expit(2 * np.log(many.p_NC[:, 1] / many.p_NC[:, 0]))
    truth = full_metrics(many.p_NC, many.labels, "single")
    area = full_metrics((fives := clustered(MANY, 1_000_000)).p_NC, fives.labels, "single", names=("auroc",))["auroc"]
    gap = binned_ece(many.p_NC[:, 1], many.true_N) - binned_ece(loud_M, many.true_N)
    sure_M, wrong_M = many.p_NC.max(axis=1), many.p_NC.argmax(axis=1) != many.labels
    hits: Hits = defaultdict(list)
    for run in range(runs):
        drawn = world(rows, run)
        p_NC, labels_N = drawn.p_NC, drawn.labels
        loud_N = expit(2 * np.log(p_NC[:, 1] / p_NC[:, 0]))

        def metrics_of(index: np.ndarray, p_NC: np.ndarray = p_NC, labels_N: np.ndarray = labels_N) -> Shares:
            return full_metrics(p_NC[index], labels_N[index], "single", names=("brier", "nll", "average_precision"))

        for how, strata_N in (("within classes", labels_N), ("percentile", None)):
            found = bootstrap_intervals(metrics_of, rows, resamples=RESAMPLES, strata_N=strata_N)
            for name, interval in found.items():
                hits[f"{name}, {how}"].append(holds(interval, truth[name]))
        difference = paired_difference(
            lambda i, p=p_NC[:, 1], yes=labels_N: binned_ece(p[i], yes[i]),
            lambda i, p=loud_N, yes=labels_N: binned_ece(p[i], yes[i]),
            rows, resamples=RESAMPLES,
        )  # fmt: skip
        hits["difference of ECEs"].append(holds(difference.interval, gap))
        sure_N, wrong_N = p_NC.max(axis=1), p_NC.argmax(axis=1) != labels_N
        chosen = threshold_for_risk(sure_N, wrong_N, 0.1, resamples=1).threshold
        if not np.isnan(chosen):
            risk = bootstrap_interval(partial(_risk_of_chosen, sure_N, wrong_N), rows, resamples=RESAMPLES)
            hits["risk at the threshold chosen for it"].append(holds(risk, wrong_M[sure_M >= chosen].mean()))
        together = clustered(rows, run)
        found_area = auroc_interval(together.p_NC[:, 1], together.labels).interval
        hits["AUROC of clusters of 5, as if independent"].append(holds(found_area, area))
    return shares(hits)


def _risk_of_chosen(sure_N: np.ndarray, wrong_N: np.ndarray, index: np.ndarray) -> float:
    return threshold_for_risk(sure_N[index], wrong_N[index], 0.1, resamples=1).risk


def tables(runs: int) -> dict[str, dict[str, Callable[[], Shares]]]:
    """Each table's columns, computed when called."""
    predictors = {name: two_classes(**options) for name, options in PREDICTORS.items()}
    return {
        "metrics": {
            f"{name}, {rows}": partial(metrics, predictors[name], "single", rows, runs)
            for name in ("calibrated", "over-confident") for rows in (30, 100, 400)
        },
        "metrics of clusters": {
            f"{rows // 4} x 4": partial(metrics, two_classes(per_cluster=4), "single", rows, runs)
            for rows in (60, 160, 400)
        },
        "metrics of more classes": {
            f"{kind}, {f'{rows // size} x {size}' if size > 1 else rows}": partial(
                metrics, several_classes(kind, size), kind, rows, runs
            )
            for kind in KINDS for rows, size in ((100, 1), (240, 4))
        },
        "calibration": {
            f"{name}, {rows}": partial(calibration, name, rows, runs) for name in PREDICTORS for rows in (60, 400)
        },
        "calibration of clusters": {
            f"{name}, {rows // 4} x 4": partial(calibration, name, rows, runs, 4)
            for name in PREDICTORS for rows in (80, 400)
        },
        "groups": {
            "300": partial(groups, 300, runs),
            "40 x 4": partial(groups, 160, runs, 4),
            "100 x 4": partial(groups, 400, runs, 4),
        },
        "tests": {
            f"{rows // size} x {size}" if size > 1 else str(rows): partial(tests, rows, runs, size)
            for rows, size in ((60, 1), (200, 1), (60, 4), (200, 4))
        },
        "rules": {
            f"{rows // size} x {size}" if size > 1 else str(rows): partial(rules, rows, runs, size)
            for rows, size in ((60, 1), (250, 1), (1000, 1), (240, 4))
        },
        "prevalence": {str(rows): partial(prevalence, rows, runs) for rows in (30, 100, 300)},
        "not used": {str(rows): partial(unused, rows, runs) for rows in (60, 100, 400)},
        "means": {str(rows): partial(means, rows, runs) for rows in (7, 30, 200)},
    }  # fmt: skip


def table(columns: dict[str, Shares]) -> str:
    """Markdown, a column for each number of rows."""
    lines = list(dict.fromkeys(line for column in columns.values() for line in column))
    cells = [[line, *(f"{c[line]:.3f}" if line in c else "" for c in columns.values())] for line in lines]
    return markdown_table([["", *columns], *cells])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--only", choices=list(tables(1)))
    options = parser.parse_args()
    for name, columns in tables(options.runs).items():
        if options.only in (None, name):
            print(f"\n{name}, {options.runs} runs\n{table({c: find() for c, find in columns.items()})}", flush=True)


if __name__ == "__main__":
    main()
