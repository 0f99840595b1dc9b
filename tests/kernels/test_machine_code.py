"""The compile gate sees faults planted in the kernels' source, and reads machine code as written here by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from clsgen_kernels import machine_code

EXPECTED = {
    "nothing": "",
    "no barrier": "the kernel asks for no barrier",
    "relaxed counter": "no fence for the whole GPU",
    "counter that does not release": "no fence for the whole GPU",
    "counter of one multiprocessor": "arrival counter ['ATOMG.E.ADD.STRONG.SM']",
    "loads through L1": "partial results loaded by ['LDG.E']",
    "no pipeline": "no pipeline",
    "depth not aligned": "loads or stores of one or two bytes",
    "gradient, depth not aligned": "loads or stores of one or two bytes",
    "gradient, width not aligned": "loads or stores of one or two bytes",
    "logits stored to the last column": "loads or stores of one or two bytes",
    "rows of dW not aligned": "no pipeline",
    "depth of dH not aligned": "no pipeline",
}


@pytest.mark.long
def test_the_gate_sees_faults_in_the_source():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_mutants.py")
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == EXPECTED.keys()
    for mutant, faults in found.items():
        text = "; ".join(faults)
        assert (EXPECTED[mutant] in text) if EXPECTED[mutant] else not faults, f"{mutant}: {text or 'passes'}"
    for mutant in ("rows of dW not aligned", "depth of dH not aligned"):
        assert any("one or two bytes" in fault for fault in found[mutant])


LOOPS = """
.L_x_0:
  LDL R1, [R1] ;
.L_x_1:
  LDG.E.U16 R2, desc[UR4][R2.64] ;
  HGMMA.64x256x16.F32.BF16 R24 ;
  @P0 BRA `(.L_x_1) ;
  STL [R1], R2 ;
  @P1 BRA `(.L_x_0) ;
  LDG.E.U8 R2, desc[UR4][R2.64] ;
"""


def test_only_the_innermost_loops_with_matrix_instructions_count():
    assert machine_code.matrix_loops(LOOPS, r"\bHGMMA") == machine_code.Loops(local_accesses=0, narrow_loads=1)
    assert machine_code.matrix_loops(LOOPS.replace("LDG.E.U16", "LDL"), r"\bHGMMA").local_accesses == 1
    assert machine_code.local_accesses(LOOPS) == 2
    amd = ".LBB0_1:\n  global_load_ushort v1, v[2:3], off\n  v_mfma_f32_32x32x8_bf16 a\n  s_cbranch_scc1 .LBB0_1\n"
    assert machine_code.matrix_loops(amd, "v_mfma").narrow_loads == 1


RIGHT = (
    "STG.E BAR.SYNC.DEFER_BLOCKING MEMBAR.ALL.GPU ATOMG.E.ADD.STRONG.GPU "
    "CCTL.IVALL BAR.SYNC.DEFER_BLOCKING LDG.E.STRONG.GPU"
)


@pytest.mark.parametrize(
    ("missing", "fault"),
    [
        ("", None),
        ("STG.E BAR.SYNC.DEFER_BLOCKING", "no barrier between the partial results and the arrival counter"),
        ("MEMBAR.ALL.GPU", "no fence for the whole GPU"),
        ("CCTL.IVALL", "L1 cache is not invalidated"),
        ("BAR.SYNC.DEFER_BLOCKING LDG", "no barrier between the arrival counter and the loads"),
        ("ATOMG.E.ADD.STRONG.GPU", "arrival counter []"),
    ],
)
def test_the_order_at_the_arrival_counter(missing, fault):
    kept = {"STG.E BAR.SYNC.DEFER_BLOCKING": "STG.E", "BAR.SYNC.DEFER_BLOCKING LDG": "LDG"}.get(missing, "")
    faults = machine_code.arrival_faults(RIGHT.replace(missing, kept) if missing else RIGHT)
    assert (faults == []) if fault is None else (len(faults) == 1 and fault in faults[0]), faults
