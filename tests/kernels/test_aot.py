"""Every kernel compiles for real chips: matrix instructions, nothing spilled, shared memory that fits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from clsgen_kernels import aot
from clsgen_kernels.launch import BY_TARGET


@pytest.mark.slow
@pytest.mark.parametrize("target", BY_TARGET)
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
    assert len(rows) == 12
    for kernel, chip, _, stack, local, shared, matrix, loads, gate in rows:
        assert (chip, stack, local, gate) == (target, "0", "0", "pass"), kernel
        by_descriptor = target in ("sm_90", "sm_100") and kernel.split(",")[0] in ("forward", "gradient")
        assert (loads != "-" and int(loads) > 0) == (by_descriptor and "unaligned" not in kernel), kernel
        assert int(matrix) > 0 and int(shared) <= aot.SHARED_LIMIT_KB[target], kernel


def test_the_gate_names_each_fault():
    good = {
        "kernel": "k",
        "target": "sm_90",
        "registers": 255,
        "stack_bytes": 0,
        "local_accesses": 0,
        "shared_kb": 227.0,
        "matrix_instructions": 1,
        "descriptor_loads": None,
    }
    assert aot.Compiled(**good).faults == []
    assert aot.Compiled(**{**good, "stack_bytes": 8}).faults == ["0 local accesses, 8 B of stack"]
    assert aot.Compiled(**{**good, "local_accesses": 4}).faults == ["4 local accesses, 0 B of stack"]
    assert aot.Compiled(**{**good, "shared_kb": 228.0}).faults == ["228 KB shared, the chip has 227"]
    assert aot.Compiled(**{**good, "descriptor_loads": 1}).faults == []
    assert aot.Compiled(**{**good, "descriptor_loads": 0}).faults == [r"no loads by descriptor (\bUTMALDG)"]
    assert aot.Compiled(**{**good, "matrix_instructions": 0}).faults[0].startswith("no matrix instructions")
