"""The plan against real engines on two ranks: memory by part, and every byte that the collectives move."""

from __future__ import annotations

import json

import plan_cases as cases
import pytest

pytestmark = [pytest.mark.dist, pytest.mark.slow]

PARTS = ("weights", "master weights", "gradients", "optimizer", "reduce bucket")


@pytest.fixture(scope="module")
def measured(tmp_path_factory, free_port):
    path = cases.prepare(tmp_path_factory.mktemp("plan"), cases.CASES)
    written = {case["name"]: case for case in json.loads(path.read_text())}
    return {name: (written[name], report) for name, report in cases.measure(path, 2, free_port()).items()}


@pytest.mark.parametrize("name", [case.name for case in cases.CASES])
def test_memory_and_traffic_are_those_of_a_real_run(name, measured):
    written, report = measured[name]
    predicted = cases.predict(written, ranks=2)
    assert predicted.total == pytest.approx(report["peak"], rel=0.10)
    for part in PARTS:
        assert predicted.part(part) == pytest.approx(report["parts"][part], rel=0.02, abs=2**16), part
    traffic = report["traffic"]
    assert set(traffic) == {"_allgather_base_", "_reduce_scatter_base_", "allreduce_"}
    assert predicted.moved("gather") == pytest.approx(traffic["_allgather_base_"], rel=0.02)
    assert predicted.moved("reduce") == pytest.approx(traffic["_reduce_scatter_base_"], rel=0.02)
    assert predicted.moved("sums") == traffic["allreduce_"]
