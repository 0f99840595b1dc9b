"""The kernels from a copy of their sources with one expression replaced, to prove that a check sees the fault."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from clsgen_kernels import fused


def kernels(folder: Path, name: str, before: str, after: str, count: int = 1) -> fused._Kernels:
    """The kernels with ``before``, which must occur ``count`` times, replaced; as package ``name`` in ``folder``."""
    sources = {path.name: path.read_text() for path in Path(fused.__file__).parent.glob("triton_*.py")}
    found = sum(source.count(before) for source in sources.values())
    assert found == count, f"{before!r} occurs {found} times"
    package = folder / name
    package.mkdir()
    for file, source in sources.items():
        (package / file).write_text(source.replace(before, after).replace("clsgen_kernels.triton", f"{name}.triton"))
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        backward = importlib.import_module(f"{name}.triton_backward")
        forward = importlib.import_module(f"{name}.triton_forward")
    finally:
        sys.path.remove(str(folder))
    return fused._Kernels(forward.forward_kernel, backward.gradient_kernel, backward.matmul_kernel)
