"""Simulations with known truth: 95 % intervals hold it, and tests of equal models reject, about as often as promised.

The long ones run the tables of docs/reference/metrics.md with fewer draws; each cell may lie as far below the promise
as the table in the docs says, and chance.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import interval_coverage as simulated

from clsgen_dist.evaluation.interval import share_interval

RUNS = 100
LOWEST = {"metrics": 0.91, "metrics of clusters": 0.92, "metrics of more classes": 0.91, "calibration": 0.93,
          "calibration of clusters": 0.92, "groups": 0.94, "tests": 0.9, "rules": 0.9, "prevalence": 0.88,
          "means": 0.88}  # fmt: skip
"""Lowest coverage of each table in the docs."""
LONG = [(name, column) for name in LOWEST for column in simulated.tables(1)[name]]


def fewest(share, runs):
    """Hits that fewer than one of ten thousand simulations falls short of."""
    return binom(runs, share).ppf(1e-4)


def held(found, share, runs):
    """The lines of a table whose share is too low."""
    return {line: value for line, value in found.items() if value * runs < fewest(share, runs)}


def test_metrics_of_clusters_are_covered():
    runs = 40
    found = simulated.metrics(simulated.two_classes(per_cluster=4), "single", 160, runs)
    assert set(found) >= {"auroc", "f1", "accuracy", "brier", "nll", "mcc", "average_precision"}
    assert not held(found, 0.93, runs)


def test_clusters_taken_for_independent_rows_are_not():
    world, runs = simulated.two_classes(per_cluster=8), 150
    truth = np.mean([world(4000, seed).labels.mean() for seed in range(20)])
    hits = [share_interval(world(240, seed).labels == 1) for seed in range(runs)]
    assert np.mean([simulated.holds(interval, truth) for interval in hits]) < 0.85


@pytest.mark.long
@pytest.mark.parametrize("per_cluster", [1, 4])
def test_equal_models_are_called_different_one_time_in_twenty(per_cluster):
    runs = 60
    found = simulated.tests(160, runs, per_cluster)
    most = binom(runs, 0.06).ppf(1 - 1e-4)
    rejected = {line: value for line, value in found.items() if "holds" not in line}
    assert not {line: value for line, value in rejected.items() if value * runs > most}
    assert not held({line: value for line, value in found.items() if "holds" in line}, 0.93, runs)


def test_what_hand_over_rules_achieve_on_new_rows_is_covered():
    runs = 40
    assert not held(simulated.rules(150, runs), 0.87, runs)


@pytest.mark.long
def test_groups_of_clusters_are_covered():
    runs = 40
    found = simulated.groups(240, runs, 4)
    assert len(found) == 4 and not held(found, 0.93, 2 * runs)


@pytest.mark.long
@pytest.mark.parametrize(("name", "column"), LONG, ids=[f"{name}: {column}" for name, column in LONG])
def test_every_cell_of_the_tables_is_about_what_the_docs_say(name, column):
    found = simulated.tables(RUNS)[name][column]()
    rejected = {
        line: found.pop(line) for line in list(found) if line == "rejected" or (name == "tests" and "holds" not in line)
    }
    assert not held(found, LOWEST[name], RUNS)
    if name == "tests" or column.startswith("calibrated"):
        assert all(value * RUNS <= binom(RUNS, 0.07).ppf(1 - 1e-4) for value in rejected.values())
