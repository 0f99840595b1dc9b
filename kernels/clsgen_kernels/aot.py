"""Compile every kernel for real chips, without owning one, and inspect the machine code.

    python -m clsgen_kernels.aot                  # the table
    python -m clsgen_kernels.aot --targets sm_90

The gate, for each kernel and chip of :data:`clsgen_kernels.launch.BY_TARGET`: matrix instructions; in the loops over
the inner dimension no local loads or stores (spills; ``ptxas -v`` misses some) and no loads of one or two bytes; no
stores of two anywhere; a few spilled scalars outside; shared memory for the stages that the tile asks for (a pipeline)
and within the chip's limit; on NVIDIA chips, barriers and fences around the counter at which the splits of the
vocabulary meet.
Exits with 1 if a kernel fails. It does not measure speed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clsgen_kernels import machine_code
from clsgen_kernels.launch import BY_TARGET, Launch, Tile

SHARED_LIMIT_KB = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "gfx942": 64}
_LOCAL_LIMIT = 32
_COPY_ENGINE = r"\bUTMALDG"
_MATRIX = {"sm_80": r"\bHMMA", "sm_90": r"\bHGMMA", "sm_100": r"\bUTC\w*MMA", "gfx942": r"v_mfma"}


@dataclass(frozen=True)
class Compiled:
    """One kernel compiled for one chip."""

    kernel: str
    target: str
    registers: int
    stack_bytes: int
    local_accesses: int
    loop_local_accesses: int
    """Of these, those in the innermost loops with matrix instructions."""
    narrow_accesses: int
    """Loads of one or two bytes in these loops (in all, if it multiplies nothing), and stores of two bytes."""
    shared_kb: float
    pipeline_kb: float
    """Shared memory that the stages of the tile take, the least it needs."""
    matrix_instructions: int | None
    """None if the kernel multiplies nothing."""
    descriptor_loads: int | None
    """Loads by the copy engine; None if the tile does not use descriptors."""
    arrival: list[str] = field(default_factory=list)
    """Faults in the order of stores, arrival counter and loads."""

    @property
    def faults(self) -> list[str]:
        """Why it fails the gate; empty if it passes."""
        faults = []
        if self.loop_local_accesses or self.local_accesses > _LOCAL_LIMIT:
            faults.append(f"{self.local_accesses} local accesses, {self.loop_local_accesses} in the inner loop")
        if self.narrow_accesses:
            faults.append(f"{self.narrow_accesses} loads or stores of one or two bytes")
        if self.shared_kb < self.pipeline_kb:
            faults.append(f"{self.shared_kb:.0f} KB shared, the tile's stages take {self.pipeline_kb:.0f}: no pipeline")
        if self.shared_kb > SHARED_LIMIT_KB[self.target]:
            faults.append(f"{self.shared_kb:.0f} KB shared, the chip has {SHARED_LIMIT_KB[self.target]}")
        if self.matrix_instructions == 0:
            faults.append(f"no matrix instructions ({_MATRIX[self.target]})")
        if self.descriptor_loads == 0:
            faults.append(f"no loads by descriptor ({_COPY_ENGINE})")
        return faults + self.arrival


def kernels(launch: Launch) -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Tile]]:
    """Name, kernel, signature, constants and tile of each kernel that training launches, in bf16."""
    from clsgen_kernels.triton_backward import gradient_kernel, matmul_kernel
    from clsgen_kernels.triton_forward import forward_kernel

    forward = {
        **dict.fromkeys(("hidden_nD", "weight_VD", "pooled_SD"), "*bf16"),
        **dict.fromkeys(("target_n", "label"), "*i64"),
        **dict.fromkeys(("bias_V", "token_weight_n", "head_CD", "head_bias_C", "class_weight_C"), "*fp32"),
        **dict.fromkeys(("maximum_Pn", "total_Pn", "target_logit_Pn", "logit_sum_Pn"), "*fp32"),
        **dict.fromkeys(("maximum_n", "target_logit_n", "logit_sum_n"), "*fp32"),
        **dict.fromkeys(("loss_n", "lse_n", "class_logits_SC", "class_loss_S", "tile_loss"), "*fp32"),
        **{"arrived": "*i32", "hit_n": "*i8", "logits_snK": "*bf16", "offset_Tn": "*fp32"},
        **dict.fromkeys(("label_smoothing", "smoothing_share", "z_loss", "softcap", "focal_gamma"), "fp32"),
    }
    plain = {
        "KIND": 0,
        **dict.fromkeys(("HAS_BIAS", "HAS_TOKEN_WEIGHT", "HAS_CLASS_WEIGHT", "HAS_FOCAL"), False),
        **dict.fromkeys(("HAS_SMOOTHING", "HAS_SOFTCAP", "STORE_LOGITS"), False),
    }
    everything = {**dict.fromkeys(plain, True), "KIND": 0}
    yield "forward", forward_kernel, forward, plain, launch.forward
    yield "forward, unaligned", forward_kernel, forward, plain, replace(launch.forward, descriptors=False)
    yield "forward, stored", forward_kernel, forward, {**plain, "STORE_LOGITS": True}, launch.forward
    yield "forward, multi-label", forward_kernel, forward, {**plain, "KIND": 1}, launch.forward
    yield "forward, ordinal", forward_kernel, forward, {**plain, "KIND": 2}, launch.forward
    yield "forward, soft", forward_kernel, forward, {**plain, "KIND": 3}, launch.forward
    yield "forward, all options", forward_kernel, forward, everything, launch.forward_more
    gradient = {
        **dict.fromkeys(("hidden_nD", "weight_VD", "logits_nK", "grad_nK"), "*bf16"),
        **{"bias_V": "*fp32", "target_n": "*i64", "lse_n": "*fp32", "upstream_n": "*fp32", "offset_Tn": "*fp32"},
        **dict.fromkeys(("label_smoothing", "smoothing_share", "z_loss", "softcap"), "fp32"),
    }
    no_options = {
        **dict.fromkeys(("HAS_BIAS", "HAS_SOFTCAP", "STORED"), False),
        **{"WIDTH_BY_16": True, "STORED_COLUMNS": launch.forward.columns},
    }
    yield "gradient", gradient_kernel, gradient, no_options, launch.gradient
    yield (
        "gradient, unaligned",
        gradient_kernel,
        gradient,
        no_options,
        replace(launch.gradient, descriptors=False),
    )
    all_options = {**no_options, "HAS_BIAS": True, "HAS_SOFTCAP": True}
    yield "gradient, stored", gradient_kernel, gradient, {**no_options, "STORED": True}, launch.gradient
    yield "gradient, all options", gradient_kernel, gradient, all_options, launch.gradient_more
    product = dict.fromkeys(("a", "b"), "*bf16")
    # dW = Gᵀ·H reads the workspace along its rows; dH += G·W.
    yield (
        "dW = Gt H",
        matmul_kernel,
        {**product, "out": "*bf16", "a_row_stride": "1"},
        {"ACCUMULATE": False, "ROWS_BY_16": True, "COLUMNS_BY_16": True, "DEPTH_BY_16": False},
        launch.matmul,
    )
    yield (
        "dH += G W",
        matmul_kernel,
        {**product, "out": "*fp32", "a_inner_stride": "1"},
        {"ACCUMULATE": True, "ROWS_BY_16": False, "COLUMNS_BY_16": True, "DEPTH_BY_16": True},
        launch.matmul,
    )


def compile_kernel(
    name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], tile: Tile, target: str
) -> Compiled:
    """Compile for one chip and parse the machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {**constants, "PRECISION": "ieee" if target.startswith("gfx") else "tf32x3", "WIDEN": False}
    block_names = (
        ("BLOCK_M", "BLOCK_N", "BLOCK_K") if "BLOCK_M" in kernel.arg_names else ("BLOCK_N", "BLOCK_V", "BLOCK_D")
    )
    constants |= dict(zip(block_names, (tile.rows, tile.columns, tile.depth), strict=True))
    # The launcher specialises strides of 1 by itself.
    constants |= {name: 1 for name, kind in types.items() if kind == "1"}
    if kernel.__name__ == "matmul_kernel":
        constants["b_column_stride"] = 1
    else:
        constants["DESCRIPTORS"] = tile.descriptors
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in kernel.arg_names}
    # As the launcher does, which takes nothing for granted of arguments that it does not specialise.
    unspecialised = {parameter.name for parameter in kernel.params if parameter.do_not_specialize}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, (argument, kind) in enumerate(signature.items())
        if kind.startswith("*") or argument.endswith("stride") or argument in ("D", "first", "slab")
        if kind != "constexpr" and argument not in unspecialised
    }
    gpu = GPUTarget("hip", target, 64) if target.startswith("gfx") else GPUTarget("cuda", int(target[3:]), 32)
    built = triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=gpu,
        options={"num_warps": tile.warps, "num_stages": tile.stages},
    )
    return _read(name, kernel, built, tile, target, multiplies=not constants.get("STORED"))


def _read(name: str, kernel: Any, built: Any, tile: Tile, target: str, *, multiplies: bool) -> Compiled:
    """Parse the machine code of a compiled kernel."""
    shared_kb = built.metadata.shared / 1024
    pipeline_kb = _pipeline_bytes(tile, target) / 1024 if multiplies else 0
    if target.startswith("gfx"):
        text = built.asm["amdgcn"]
        loops = machine_code.matrix_loops(text, _MATRIX[target])
        narrow = loops.narrow_loads if multiplies else machine_code.narrow_loads(text)
        return Compiled(
            name,
            target,
            _number(r"\.vgpr_count:\s+(\d+)", text),
            _number(r"\.private_segment_fixed_size:\s+(\d+)", text),
            _number(r"\.vgpr_spill_count:\s+(\d+)", text),
            loops.local_accesses,
            narrow + machine_code.narrow_stores(text),
            shared_kb,
            pipeline_kb,
            len(re.findall(_MATRIX[target], text)) if multiplies else None,
            None,
        )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(built.asm["cubin"])
        sass = _tool("nvdisasm", "-c", str(cubin))
        usage = _tool("cuobjdump", "-res-usage", str(cubin))
    loops = machine_code.matrix_loops(sass, _MATRIX[target])
    narrow = loops.narrow_loads if multiplies else machine_code.narrow_loads(sass)
    arrival = []
    if "arrived" in kernel.arg_names:
        arrival = machine_code.arrival_faults(sass)
        if not machine_code.asks_for_barrier(built.asm["ttir"]):
            arrival.append("the kernel asks for no barrier before the arrival counter")
    return Compiled(
        name,
        target,
        _number(r"REG:(\d+)", usage),
        _number(r"STACK:(\d+)", usage),
        machine_code.local_accesses(sass),
        loops.local_accesses,
        narrow + machine_code.narrow_stores(sass),
        shared_kb,
        pipeline_kb,
        len(re.findall(_MATRIX[target], sass)) if multiplies else None,
        len(re.findall(_COPY_ENGINE, sass)) if tile.descriptors else None,
        arrival,
    )


def _pipeline_bytes(tile: Tile, target: str) -> int:
    """Shared memory of the stages of a bf16 tile; on sm_80 and gfx942 one stage is in registers."""
    stages = tile.stages if target in ("sm_90", "sm_100") else tile.stages - 1
    return stages * (tile.rows + tile.columns) * tile.depth * 2


def _tool(name: str, *arguments: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([str(path), *arguments], check=True, capture_output=True, text=True).stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if not found:
        raise RuntimeError(f"the compiler's report has no match for {pattern!r}, expected one; update the pattern")
    return int(found[1])


def main() -> None:
    """Compile the kernels for each target and print what the compiler made of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=list(BY_TARGET), default=list(BY_TARGET))
    chosen = parser.parse_args().targets
    columns = (
        "kernel, bf16",
        "chip",
        "registers",
        "stack",
        "local",
        "in loop",
        "narrow",
        "shared KB",
        "matrix",
        "descriptor loads",
        "gate",
    )
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    failed = False
    for target in chosen:
        for kernel in kernels(BY_TARGET[target]):
            c = compile_kernel(*kernel, target)
            failed = failed or bool(c.faults)
            local = c.local_accesses, c.loop_local_accesses
            matrix = "-" if c.matrix_instructions is None else c.matrix_instructions
            numbers = (c.registers, c.stack_bytes, *local, c.narrow_accesses, round(c.shared_kb), matrix)
            loads = "-" if c.descriptor_loads is None else c.descriptor_loads
            gate = "; ".join(c.faults) or "pass"
            print(f"| {' | '.join(map(str, (c.kernel, c.target, *numbers, loads, gate)))} |", flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
