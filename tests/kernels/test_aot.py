"""Every kernel compiles for real chips: matrix instructions, no spills in the loop, shared memory that fits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from clsgen_kernels import aot
from clsgen_kernels.launch import BY_TARGET


@pytest.mark.slow
@pytest.mark.parametrize("target", [pytest.param(t, marks=[] if t == "sm_90" else pytest.mark.long) for t in BY_TARGET])
def test_every_kernel_passes_the_gate(target):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "clsgen_kernels.aot", "--targets", target],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    print(done.stdout)  # with -rA or on failure: the table
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]
    assert len(rows) == 13
    for kernel, chip, _, _, local, in_loop, narrow, shared, matrix, loads, gate in rows:
        assert (chip, in_loop, narrow, gate) == (target, "0", "0", "pass") and int(local) <= 32, kernel
        by_descriptor = target in ("sm_90", "sm_100") and kernel.split(",")[0] in ("forward", "gradient")
        assert (loads != "-" and int(loads) > 0) == (by_descriptor and "unaligned" not in kernel), kernel
        assert (matrix == "-") == (kernel == "gradient, stored") and matrix != "0"
        assert int(shared) <= aot.SHARED_LIMIT_KB[target], kernel


def test_the_gate_names_each_fault():
    good = {
        "kernel": "k",
        "target": "sm_90",
        "registers": 255,
        "stack_bytes": 0,
        "local_accesses": 0,
        "loop_local_accesses": 0,
        "narrow_accesses": 0,
        "shared_kb": 227.0,
        "pipeline_kb": 227.0,
        "matrix_instructions": 1,
        "descriptor_loads": None,
    }
    assert aot.Compiled(**good).faults == []
    assert aot.Compiled(**{**good, "local_accesses": 32}).faults == []
    assert aot.Compiled(**{**good, "local_accesses": 33}).faults == ["33 local accesses, 0 in the inner loop"]
    outside_and_in = {"local_accesses": 4, "loop_local_accesses": 1}
    assert aot.Compiled(**{**good, **outside_and_in}).faults == ["4 local accesses, 1 in the inner loop"]
    assert aot.Compiled(**{**good, "matrix_instructions": None}).faults == []
    assert aot.Compiled(**{**good, "shared_kb": 228.0}).faults == ["228 KB shared, the chip has 227"]
    assert aot.Compiled(**{**good, "shared_kb": 96.0}).faults == [
        "96 KB shared, the tile's stages take 227: no pipeline"
    ]
    assert aot.Compiled(**{**good, "narrow_accesses": 2}).faults == ["2 loads or stores of one or two bytes"]
    assert aot.Compiled(**{**good, "arrival": ["no barrier"]}).faults == ["no barrier"]
    assert aot.Compiled(**{**good, "descriptor_loads": 1}).faults == []
    assert aot.Compiled(**{**good, "descriptor_loads": 0}).faults == [r"no loads by descriptor (\bUTMALDG)"]
    assert aot.Compiled(**{**good, "matrix_instructions": 0}).faults[0].startswith("no matrix instructions")
