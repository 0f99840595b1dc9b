"""Plan and dry run against real engines on two ranks: memory by part, number and bytes of the collectives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import plan_cases as cases
import pytest

from clsgen_dist.config import SHIPPED

pytestmark = [pytest.mark.dist, pytest.mark.slow]

PARTS = ("weights", "master weights", "gradients", "optimizer", "reduce bucket")


ALL = [pytest.param(c.name, marks=[pytest.mark.long] if number else []) for number, c in enumerate(cases.CASES)]
"""The first case always, the others in `make test-long`."""


@pytest.fixture(scope="module")
def measured(request, tmp_path_factory, free_port):
    """The cases of the tests that run, on real ranks."""
    wanted = {item.callspec.params["name"] for item in request.session.items if item.path == request.path}
    path = cases.prepare(tmp_path_factory.mktemp("plan"), [case for case in cases.CASES if case.name in wanted])
    written = {case["name"]: case for case in json.loads(path.read_text())}
    return {name: (written[name], report) for name, report in cases.measure(path, 2, free_port()).items()}


@pytest.fixture(scope="module")
def dry_runs(measured):
    """The same cases in the dry run, as one of two fake ranks, in a separate process."""
    script = (
        "import dataclasses, json, sys\n"
        "from clsgen_dist.config import settings_from_yaml\n"
        "from clsgen_dist.plan.dry_run import dry_run, fake_ranks\n"
        "with fake_ranks(2) as world:\n"
        "    for case in json.load(sys.stdin):\n"
        "        found = dry_run(settings_from_yaml(case['settings']), world, lengths=case['lengths'],\n"
        "                        supervised=case['supervised'], micro_steps=case['micro_steps'])\n"
        "        print(json.dumps({'name': case['name'], **dataclasses.asdict(found)}))\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{SHIPPED}:{SHIPPED / 'kernels'}", "OMP_NUM_THREADS": "1"}
    cases_json = json.dumps([written for written, _ in measured.values() if written["name"] != "warm-up"])
    done = subprocess.run([sys.executable, "-c", script], input=cases_json, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["name"]: line for line in lines}


@pytest.mark.parametrize("name", ALL)
def test_the_dry_run_matches_a_real_rank(name, measured, dry_runs):
    _, report = measured[name]
    found = dry_runs[name]
    assert [[c["op"], c["bytes"]] for c in found["step"]] == report["order"]
    assert found["partitions"] == report["partitions"]
    assert found["held"] == report["parts"]
    assert found["files"] == report["files"] and len(found["files"]) == 2
    assert {c["ranks"] for c in found["step"]} == {2}
    # The last gradients are reduced after autograd has finished, and still count as backward.
    assert {c["phase"] for c in found["step"] if c["op"] == "_reduce_scatter_base_"} <= {"backward"}


@pytest.mark.parametrize("name", ALL)
def test_planned_memory_and_traffic_match_a_real_run(name, measured):
    written, report = measured[name]
    predicted = cases.predict(written, ranks=2)
    assert predicted.total == pytest.approx(report["peak"], rel=0.10)
    for part in PARTS:
        assert predicted.part(part) == pytest.approx(report["parts"][part], rel=0.02, abs=2**16), part
    traffic = report["traffic"]
    assert set(traffic) - {"alltoall_base_"} == {"_allgather_base_", "_reduce_scatter_base_", "allreduce_"}
    assert predicted.moved(cases.GATHERS) == pytest.approx(traffic["_allgather_base_"], rel=0.02)
    assert predicted.moved(cases.REDUCTIONS) == pytest.approx(traffic["_reduce_scatter_base_"], rel=0.02)
    assert predicted.moved(cases.SUMS) == traffic["allreduce_"]
    counts = Counter(op for op, _ in report["order"])
    assert predicted.calls(cases.GATHERS) == counts["_allgather_base_"]
    assert predicted.calls(cases.REDUCTIONS) == counts["_reduce_scatter_base_"]
    assert predicted.calls(cases.SUMS) == counts["allreduce_"]
    assert predicted.moved(cases.EXCHANGES) == traffic.get("alltoall_base_", 0)
    assert predicted.calls(cases.EXCHANGES) == counts["alltoall_base_"]
