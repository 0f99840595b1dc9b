"""Checks of a rank on its own node: chips and their errors, disk, time of a matrix product."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from clsgen_dist.errors import first_line

_SIDE, _REPEATS = {"cpu": 512, "cuda": 8192}, 8
_MIN_FREE_BYTES, _MIN_FREE_FILES = 10**9, 1000
_HARDWARE_XIDS = {48, 62, 63, 64, 74, 79, 92, 94, 95, 119, 120, 140, 143}
"""NVIDIA's Xid errors of chip, memory or links, as opposed to program errors (NVIDIA, "GPU Xid errors")."""


@dataclass
class Report:
    """One rank's findings."""

    rank: int
    node: str
    device: str = "none"
    matmul_ms: float | None = None
    """Fastest of several products of square matrices; None if the chip failed."""
    chips: list[str] = field(default_factory=list)
    """Name, driver and memory of the node's GPUs, from ``nvidia-smi``."""
    software: dict[str, str] = field(default_factory=dict)
    """Versions, which should be equal on all nodes."""
    notes: list[str] = field(default_factory=list)
    """Checks that could not be run."""
    faults: list[str] = field(default_factory=list)
    sees_run_dir: bool = True
    """Whether the run's folder is the same as on rank 0."""


def check_node(rank: int, node: str, local_rank: int, local_ranks: int, output: Path) -> Report:
    """All checks without other ranks; the node's first rank checks chips and disks for all of its ranks."""
    report = Report(rank, node, software=_software())
    if local_rank == 0:
        check_chips(report, local_ranks)
        for fault in (disk_fault(output), disk_fault(Path(tempfile.gettempdir()), room=True)):
            report.faults += [fault] if fault else []
    try:
        report.device, report.matmul_ms = _timed_matmul(local_rank)
    except (RuntimeError, AssertionError) as error:  # a missing, lost or broken chip
        report.faults.append(f"chip {local_rank} fails a matrix product: {first_line(error)}")
    return report


def _software() -> dict[str, str]:
    versions = {"torch": str(torch.__version__), "cuda": torch.version.cuda, "hip": torch.version.hip}
    if torch.cuda.is_available():
        versions["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return {name: version for name, version in versions.items() if version}


def check_chips(report: Report, needed: int) -> None:
    """Enough chips, no uncorrected memory errors, no rows pending a reset, no Xid in the last hour."""
    if shutil.which("nvidia-smi") is None:
        report.notes.append("nvidia-smi not found: chip errors not checked")
        return
    seen = _lines(report, "--query-gpu=index,ecc.errors.uncorrected.volatile.total,retired_pages.pending")
    if seen is not None and len(seen) < needed:
        report.faults.append(f"{len(seen)} GPUs found, {needed} needed")
    if seen is not None:
        chips = _lines(report, "--query-gpu=name,driver_version,memory.total")
        report.chips = [", ".join(words) for words in chips or ()]
    for index, errors, pending in (line for line in seen or () if len(line) == 3):
        if errors.isdigit() and int(errors) > 0:
            report.faults.append(f"GPU {index} has {errors} uncorrected ECC errors")
        if pending == "Yes":
            report.faults.append(f"GPU {index} has memory pages pending retirement: reset it")
    rows = _lines(report, "--query-remapped-rows=gpu_bus_id,remapped_rows.pending,remapped_rows.failure")
    for bus, pending, failure in (line for line in rows or () if len(line) == 3):
        if pending in ("Yes", "1"):
            report.faults.append(f"GPU {bus} has memory rows pending remapping: reset it")
        if failure in ("Yes", "1"):
            report.faults.append(f"GPU {bus} failed to remap a memory row")
    _check_xids(report)


def _lines(report: Report, query: str) -> list[list[str]] | None:
    """Output of an ``nvidia-smi`` query by line and field; None, and a fault in the report, if it fails."""
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=30
        )
    except subprocess.TimeoutExpired:
        report.faults.append("nvidia-smi timed out after 30 s")
        return None
    if done.returncode != 0:
        if "remapped" in query:  # older chips have none
            report.notes.append("nvidia-smi does not report remapped rows")
        else:
            report.faults.append(f"nvidia-smi fails: {(done.stdout + done.stderr).strip()[:200]}")
        return None
    return [[word.strip() for word in line.split(",")] for line in done.stdout.splitlines() if line.strip()]


def _check_xids(report: Report) -> None:
    try:
        log = subprocess.run(["dmesg", "--since", "1 hour ago"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        log = None
    if log is None or log.returncode != 0:
        report.notes.append("no permission to read the kernel log: Xid errors not checked")
        return
    for bus, xid in sorted(set(re.findall(r"NVRM: Xid \((?:PCI:)?([^)]+)\): (\d+)", log.stdout))):
        if int(xid) in _HARDWARE_XIDS:
            report.faults.append(f"Xid {xid} on {bus} within the last hour")


def disk_fault(folder: Path, *, room: bool = False) -> str | None:
    """Why files cannot be written to ``folder``, or None; ``room``: create it, and require free space and inodes."""
    try:
        if room:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"clsgen" * 1000)
            file.flush()
            os.fsync(file.fileno())
        disk = os.statvfs(folder)
    except OSError as error:
        return f"{folder} cannot be written: {error.strerror}"
    if room and disk.f_bavail * disk.f_frsize < _MIN_FREE_BYTES:
        return f"{folder} has {disk.f_bavail * disk.f_frsize / 1e9:.2f} GB free, less than 1"
    if room and disk.f_files and disk.f_favail < _MIN_FREE_FILES:
        return f"{folder} has {disk.f_favail} inodes free, less than {_MIN_FREE_FILES}"
    return None


def has_content(file: Path, token: str, *, within_s: float) -> bool:
    """Whether a file contains the token within ``within_s``; network file systems may show it with a delay."""
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(OSError):  # missing, or not visible yet
            os.listdir(file.parent)  # refreshes the client's cache
            if file.read_text() == token:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def _timed_matmul(local_rank: int) -> tuple[str, float]:
    """The chip's name, and its fastest product in ms; fp32 on the CPU, bf16 elsewhere."""
    device = chip(local_rank)
    side = _SIDE[device.type]
    matrix = torch.randn(side, side, device=device, dtype=torch.float32 if device.type == "cpu" else torch.bfloat16)
    times = []
    for _ in range(_REPEATS):
        _wait(device)
        start = time.perf_counter()
        product = matrix @ matrix
        _wait(device)
        times.append(1e3 * (time.perf_counter() - start))
    if not product.isfinite().all():
        raise RuntimeError("a product of finite matrices is not finite")
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", min(times)


def chip(local_rank: int) -> torch.device:
    """This rank's GPU (CUDA or ROCm), or the CPU if there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # With --gpus-per-task, a task sees only its own chip.
    torch.cuda.set_device(local_rank if torch.cuda.device_count() > 1 else 0)
    return torch.device("cuda", torch.cuda.current_device())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
