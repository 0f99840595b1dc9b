"""Cluster files, and the time of collectives on their links."""

from __future__ import annotations

import dataclasses
import math

import pytest
import yaml

from clsgen_dist.config import SHIPPED
from clsgen_dist.errors import SettingsError
from clsgen_dist.plan.cluster import load_cluster
from clsgen_dist.plan.communication import Flow, FlowKind

CLUSTERS = sorted((SHIPPED / "configs/clusters").glob("*.yaml"))


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_shipped_clusters_load(path):
    cluster = load_cluster(path)
    assert cluster.gpus_per_node == 8
    assert cluster.between_gb_s < cluster.inside_gb_s < cluster.hbm_gb_s
    assert 5 < cluster.peak(2) / cluster.peak(4) < 20  # bf16 on tensor cores, fp32 without


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tflops": None}, "'tflops' is missing"),
        ({"flops": 1}, "'flops' is unknown"),
        ({"memory_gib": "80 GB"}, "memory_gib is '80 GB', expected a number above 0"),
        ({"memory_gib": math.inf}, "memory_gib is inf, expected a finite number"),
        ({"gpus_per_node": 2.5}, "gpus_per_node is 2.5, expected an integer"),
        ({"name": 5}, "name is 5, expected text"),
        ({"overlap": 1.5}, "overlap is 1.5, expected a share up to 1"),
        ({"tflops": -1}, "tflops is -1, expected a number above 0"),
        ({"tflops": math.nan}, "tflops is nan, expected a number above 0"),
        ({"reserved_gib": 200.0}, "reserved_gib is 200.0, expected less than memory_gib, 79.1"),
    ],
)
def test_a_wrong_cluster_file_is_refused_with_its_field(change, message, h100, tmp_path):
    values = {k: v for k, v in {**dataclasses.asdict(h100), **change}.items() if v is not None}
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(SettingsError, match=message):
        load_cluster(path)


def test_a_duplicate_field_is_refused(h100, tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(dataclasses.asdict(h100), sort_keys=False) + "tflops: 1\n")
    with pytest.raises(SettingsError, match=r"cluster.yaml: 'tflops' occurs twice, in lines 5 and \d+; keep one"):
        load_cluster(path)


def test_the_slower_of_nvlink_and_network_bounds_a_collective(h100):
    cluster = dataclasses.replace(h100, latency_us=1e-9, between_gb_s=20)
    inside = Flow(FlowKind.GATHER_FORWARD, 80e9, 1, ranks=8, nodes=1)
    assert inside.seconds(cluster) == pytest.approx(80e9 * 7 / 8 / (h100.inside_gb_s * 1e9))
    across = Flow(FlowKind.GATHER_FORWARD, 80e9, 1, ranks=64, nodes=8)
    assert across.seconds(cluster) == pytest.approx(80e9 * 7 / 8 / (8 * 20e9))
    assert Flow(FlowKind.REDUCE, 80e9, 1, ranks=1, nodes=1).seconds(cluster) == 0
    assert Flow(FlowKind.REDUCE, 0, 100, ranks=64, nodes=8).seconds(h100) == pytest.approx(
        100 * 7.7 * h100.latency_us * 1e-6
    )
