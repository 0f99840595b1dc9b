"""Launch parameters of the Triton kernels by compute capability; the only place to tune them.

sm_90 is chosen by measurement on an H100 (``python benchmarks/loss_gpu.py --tiles``). The others are chosen with
``python -m clsgen_kernels.aot``, which compiles every entry and prints registers, spills and shared memory, and are not
measured on a GPU. Override with :class:`clsgen_kernels.Execution`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import lcm

import torch

STORE_BYTES = 2**32
"""Most bytes of memory of their own that stored logits take by default. Fixed, not chosen by the memory that is free,
so that a resumed run computes the same bits."""


@dataclass(frozen=True)
class Tile:
    """One kernel's tile: ``rows x columns`` of output, accumulated over the inner dimension in steps of ``depth``."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    descriptors: bool = False
    """Load by tensor descriptors (TMA) if the tensors are aligned for it."""


@dataclass(frozen=True)
class Launch:
    """Tiles of the kernels and the size of the backward's workspace."""

    forward: Tile
    forward_more: Tile
    """Forward with any option of the LM head: its epilogue needs more registers."""
    gradient: Tile
    """The gradient of the logits, recomputed into the workspace."""
    gradient_more: Tile
    """The same with any option of the LM head."""
    matmul: Tile
    """Both products with the workspace, by the hidden states and by the weights, where no vendor's library does it."""
    programs: int
    """Target number of forward programs of a group of row tiles: several per multiprocessor."""
    workspace_bytes: int
    """Least size of the backward's workspace, ``n x slab`` elements; about half of the L2 cache."""
    group_bytes: int = 20 * 2**20
    """Most bytes of hidden states whose row tiles pass over the vocabulary together: about half of the L2 cache."""
    slab_columns: int = 0
    """Columns of a slab, before slabs are made equal, even if the workspace grows for it (to 1 GiB at most): each slab
    reads and writes dH once, and a narrow product is slow."""

    def group(self, tile: Tile, rows: int, width: int, element_size: int) -> int:
        """Row tiles that pass over the vocabulary together: as few groups as ``group_bytes`` allows, of equal size."""
        row_tiles = max(1, -(-rows // tile.rows))
        most = max(1, self.group_bytes // (tile.rows * width * element_size))
        groups = -(-row_tiles // most)
        return -(-row_tiles // groups)

    def slab(self, rows: int, vocabulary: int, element_size: int) -> int:
        """Columns of a slab: as few slabs as the workspace allows, of equal width, whole tiles of each kernel."""
        row_bytes = max(1, rows) * element_size
        columns = max(self.workspace_bytes, min(self.slab_columns * row_bytes, 2**30)) // row_bytes
        tile = lcm(*(t.columns for t in (self.forward, self.forward_more, self.gradient, self.gradient_more)))
        slabs = -(-vocabulary // max(tile, columns // tile * tile))
        return -(-vocabulary // (slabs * tile)) * tile


_NARROW = Launch(
    forward=Tile(128, 128, 32, 8, 3),
    forward_more=Tile(64, 128, 32, 8, 3),
    gradient=Tile(128, 128, 32, 8, 3),
    gradient_more=Tile(128, 128, 32, 8, 3),
    matmul=Tile(128, 128, 32, 8, 3),
    programs=4 * 108,
    workspace_bytes=20 * 2**20,
    slab_columns=8192,
)
BY_TARGET = {
    "sm_80": _NARROW,
    "sm_90": Launch(
        forward=Tile(128, 256, 64, 8, 3, descriptors=True),
        forward_more=Tile(64, 128, 64, 8, 3, descriptors=True),
        gradient=Tile(64, 256, 64, 4, 4, descriptors=True),
        gradient_more=Tile(128, 128, 64, 8, 4, descriptors=True),
        matmul=Tile(128, 128, 64, 8, 3),
        programs=4 * 132,
        workspace_bytes=25 * 2**20,
        group_bytes=32 * 2**20,  # 2048 rows of D=8192 in bf16: measured, as fast as half of that
        slab_columns=8192,
    ),
    "sm_100": Launch(
        forward=Tile(128, 128, 64, 8, 4, descriptors=True),
        forward_more=Tile(64, 64, 64, 8, 3, descriptors=True),
        gradient=Tile(128, 64, 64, 8, 4, descriptors=True),
        gradient_more=Tile(128, 64, 64, 8, 4, descriptors=True),
        matmul=Tile(128, 128, 64, 8, 3),
        programs=4 * 148,
        workspace_bytes=60 * 2**20,
        group_bytes=60 * 2**20,
        slab_columns=8192,
    ),
    "gfx942": Launch(
        forward=Tile(128, 128, 32, 8, 2),
        forward_more=Tile(64, 128, 32, 8, 2),
        gradient=Tile(128, 128, 32, 8, 2),
        gradient_more=Tile(128, 128, 32, 8, 2),
        matmul=Tile(128, 128, 32, 8, 2),
        programs=2 * 304,
        workspace_bytes=64 * 2**20,
        group_bytes=64 * 2**20,
        slab_columns=8192,
    ),
}
"""Targets that the compiler check covers."""

# For the interpreter: tiles so small that a few dozen tokens already need several.
INTERPRETED = Launch(
    forward=Tile(16, 32, 16, 1, 1),
    forward_more=Tile(16, 32, 16, 1, 1),
    gradient=Tile(16, 32, 16, 1, 1),
    gradient_more=Tile(16, 32, 16, 1, 1),
    matmul=Tile(16, 32, 16, 1, 1),
    programs=6,
    workspace_bytes=8 * 1024,
    group_bytes=4 * 1024,
)


def choose(device: torch.device, dtype: torch.dtype) -> Launch:
    """The entry for this chip, or that of sm_80, which runs on all.

    For fp32 the smaller tiles, since its products take more registers, and half the depth, so as many bytes.
    """
    if device.type == "cpu":
        return INTERPRETED
    if torch.version.hip:
        launch = BY_TARGET["gfx942"]
    else:
        major, _ = torch.cuda.get_device_capability(device)
        # All others, including consumer Blackwell (12.x), have less shared memory than either.
        launch = BY_TARGET[{9: "sm_90", 10: "sm_100"}.get(major, "sm_80")]
    if dtype == torch.float32:
        forward, gradient, matmul = (
            replace(tile, depth=tile.depth // 2) for tile in (launch.forward_more, launch.gradient_more, launch.matmul)
        )
        return replace(
            launch, forward=forward, forward_more=forward, gradient=gradient, gradient_more=gradient, matmul=matmul
        )
    return launch
