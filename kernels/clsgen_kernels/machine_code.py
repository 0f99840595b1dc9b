"""What a compiled kernel's machine code does, read from its text: loops, loads, spills, order at the arrival counter.

In: SASS as ``nvdisasm -c`` prints it, AMD assembly, Triton's IR. Out: counts and faults, which
:mod:`clsgen_kernels.aot` holds against the gate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = re.compile(r"^(\.L\w+):", re.MULTILINE)
_BRANCH = re.compile(r"\b(?:BRA|s_c?branch\w*)\s.*?(\.L\w+)")
_LOCAL = re.compile(r"\b(?:LDL|STL)\b|\bscratch_(?:load|store)")
_NARROW = re.compile(r"\bLDG\.[\w.]*[US](?:8|16)\b|\b(?:global|buffer|flat)_load_(?:u|s)?(?:short|byte)\w*")


@dataclass(frozen=True)
class Loops:
    """Counts within the innermost loops that hold matrix instructions."""

    local_accesses: int
    """Loads and stores of spilled registers."""
    narrow_loads: int
    """Loads of one or two bytes from global memory."""


def matrix_loops(text: str, matrix: str) -> Loops:
    """Innermost loops with an instruction that matches ``matrix``: from a label to the last branch back to it."""
    labels = {found[1]: found.start() for found in _LABEL.finditer(text)}
    loops: dict[int, int] = {}
    for found in _BRANCH.finditer(text):
        start = labels.get(found[1], len(text))
        if start < found.start():
            loops[start] = found.end()
    places = [found.start() for found in re.finditer(matrix, text)]
    holding = [(a, b) for a, b in loops.items() if any(a < place < b for place in places)]
    inner = [(a, b) for a, b in holding if not any(a < c and d <= b and (c, d) != (a, b) for c, d in holding)]
    bodies = [text[a:b] for a, b in inner]
    return Loops(sum(len(_LOCAL.findall(b)) for b in bodies), sum(len(_NARROW.findall(b)) for b in bodies))


def local_accesses(text: str) -> int:
    """Loads and stores of spilled registers in the whole kernel."""
    return len(_LOCAL.findall(text))


def narrow_loads(text: str) -> int:
    """Loads of one or two bytes from global memory in the whole kernel."""
    return len(_NARROW.findall(text))


def narrow_stores(text: str) -> int:
    """Stores of two bytes to global memory; one byte is what a flag takes."""
    return len(re.findall(r"\bSTG\.[\w.]*[US]16\b|\b(?:global|buffer|flat)_store_short\w*", text))


_BARRIER, _FENCE, _COUNTER = r"BAR\.SYNC\S*", r"MEMBAR\.(?:ALL|SC)\.GPU", r"ATOMG\.E\.ADD\.STRONG\.GPU"
_EVENT = re.compile(rf"\b(?:{_BARRIER}|MEMBAR\S*|ATOMG\.E\.ADD\S*|CCTL\.IVALL|LDG\S*|STG\S*)")


def arrival_faults(sass: str) -> list[str]:
    """Why the last split to arrive might read what others have not yet written; empty if it cannot.

    Expected: the partial results are stored, all threads meet, a fence orders them before the counter for the whole
    GPU, the L1 cache is invalidated, all threads meet again, and the partial results are loaded past the L1 cache.
    """
    events = _EVENT.findall(sass)
    at = [i for i, event in enumerate(events) if event.startswith("ATOMG")]
    if len(at) != 1 or not re.fullmatch(_COUNTER, events[at[0]]):
        return [f"arrival counter {[events[i] for i in at]}, expected one {_COUNTER}"]
    before, after = events[: at[0]], events[at[0] + 1 :]
    stores = [i for i, event in enumerate(before) if event.startswith("STG")]
    published = before[stores[-1] + 1 :] if stores else []
    faults = []
    if not any(re.fullmatch(_BARRIER, event) for event in published):
        faults.append("no barrier between the partial results and the arrival counter")
    if not published or not re.fullmatch(_FENCE, published[-1]):
        faults.append("no fence for the whole GPU before the arrival counter")
    loads = [i for i, event in enumerate(after) if event.startswith("LDG")]
    acquired = after[: loads[0]] if loads else []
    if "CCTL.IVALL" not in acquired:
        faults.append("the L1 cache is not invalidated after the arrival counter")
    if not any(re.fullmatch(_BARRIER, event) for event in acquired):
        faults.append("no barrier between the arrival counter and the loads of partial results")
    weak = [after[i] for i in loads if "STRONG.GPU" not in after[i]]
    if not loads or weak:
        faults.append(f"partial results loaded by {sorted(set(weak)) or 'nothing'}, expected LDG….STRONG.GPU")
    return faults


def asks_for_barrier(ir: str) -> bool:
    """Whether the kernel itself asks for the barrier before the arrival counter, in Triton's IR.

    Triton 3.7 also places one before an atomic operation by itself, so the machine code cannot tell.
    """
    before = ir[: ir.find("tt.atomic_rmw")]
    return "tt.atomic_rmw" in ir and before.rfind("barrier all") > before.rfind("tt.store")
