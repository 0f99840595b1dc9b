"""Compile kernels with faults planted in their source for sm_90; prints the gate's faults of each as JSON.

Run by test_machine_code.py in a process of its own: there Triton compiles instead of interpreting.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import mutated
from clsgen_kernels import aot
from clsgen_kernels.launch import BY_TARGET

MUTANTS = {
    "nothing": ("forward", "tl.debug_barrier()", "tl.debug_barrier()"),
    "no barrier": ("forward", "tl.debug_barrier()", "pass"),
    "relaxed counter": ("forward", 'sem="acq_rel"', 'sem="relaxed"'),
    "counter that does not release": ("forward", 'sem="acq_rel"', 'sem="acquire"'),
    "counter of one multiprocessor": ("forward", 'scope="gpu"', 'scope="cta"'),
    "loads through L1": (
        "forward",
        'other=0.0, cache_modifier=".cg")\n                part_total',
        "other=0.0)\n                part_total",
    ),
    "no pipeline": (
        "forward",
        "a_descriptor.load([a_first, start])\n",
        "a_descriptor.load([a_first, start])\n            tl.debug_barrier()\n",
    ),
    "depth not aligned": ("forward, unaligned", '_COUNTS = ["n", "S",', '_COUNTS = ["D", "n", "S",'),
    "gradient, depth not aligned": ("gradient, unaligned", '_GRADIENT_COUNTS = ["n",', '_GRADIENT_COUNTS = ["D", "n",'),
    "gradient, width not aligned": ("gradient, stored", "width = width // 16 * 16", "width = width"),
    "logits stored to the last column": (
        "forward, stored",
        "mask=(local_row < n - stored_row)[:, None],",
        "mask=(local_row < n - stored_row)[:, None] & (local_column < V - first_column)[None, :],",
    ),
    "rows of dW not aligned": ("dW = Gt H", "rows = rows // 16 * 16", "rows = rows"),
    "depth of dH not aligned": ("dH += G W", "depth = depth // 16 * 16", "depth = depth"),
}


def main() -> None:
    """Compile each and print its faults."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, (mutant, (name, before, after)) in enumerate(MUTANTS.items()):
            kernels = mutated.kernels(Path(folder), f"mutant_{index}", before, after)
            for kernel_name, kernel, *rest in aot.kernels(BY_TARGET["sm_90"]):
                if kernel_name == name:
                    changed = next(k for k in kernels if k.__name__ == kernel.__name__)
                    signature, constants, tile = rest
                    tile = replace(tile, descriptors=tile.descriptors and "stored" not in name)  # stores by pointer
                    arguments = (kernel_name, changed, signature, constants, tile, "sm_90")
                    found[mutant] = aot.compile_kernel(*arguments).faults
    print(json.dumps(found))


if __name__ == "__main__":
    main()
