"""A cluster: its GPU, its links and its disks, from one YAML file with the source of each number next to it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clsgen_dist.errors import SettingsError
from clsgen_dist.io.duplicate_keys import duplicate_key

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The hardware of a node. Rates are for one direction; GB are 10⁹ bytes, GiB 2³⁰."""

    name: str
    """Its name in tables."""
    gpus_per_node: int
    """GPUs of a node."""
    memory_gib: float
    """Memory of a GPU as the driver reports it."""
    reserved_gib: float
    """Memory that the CUDA (HIP) context, NCCL and cuBLAS take outside torch's allocator."""
    tflops: float
    """Peak of dense bf16 matrix products, in TFLOP/s."""
    achievable: float
    """Share of that peak that large matrix products reach, at the clock that the power limit allows."""
    achievable_attention: float
    """Share of that peak that causal flash-attention reaches, forward and backward together."""
    hbm_gb_s: float
    """Memory bandwidth of a GPU."""
    achievable_hbm: float
    """Share of it that elementwise operations on large tensors reach."""
    inside_gb_s: float
    """Rate at which a GPU receives from the others of its node in a collective, as measured by nccl-tests (busbw)."""
    between_gb_s: float
    """Rate at which a GPU's share of the node's network cards receives from other nodes in a collective."""
    latency_us: float
    """Added to a collective for each hop between nodes; a tenth of it for one inside a node."""
    overlap: float
    """Share of the shorter of compute and communication that overlaps with the longer, with overlap_comm."""
    pcie_gb_s: float
    """Rate between a GPU and its host."""
    host_memory_gib: float
    """Memory of a node's host."""
    disk_write_gb_s: float
    """Rate at which one node writes checkpoints to the shared file system."""
    disk_read_gb_s: float
    """Rate at which one node reads them back."""
    disk_total_gb_s: float
    """Rate of the file system for all nodes together, reading or writing."""
    batched_rows_s: float = 30000.0
    """Rows per second that a rank's loader batches on one core; the default is from docs/results.md."""
    launch_us: float = 25.0
    """Time in which a host launches one kernel of a model that is not compiled, with Python, adapters and hooks."""
    host_adam_b_s: float = 2.0
    """Billions of elements per second that DeepSpeedCPUAdam updates on a node. Measured: 2.9 (fairseq, 13B on 8 V100,
    20 threads a rank), 1.8 (DeepSpeed issue 6834, 72B on 4 A100 nodes), 1.7 at most (ZenFlow's blog, 7B on 4 A100)."""
    offload_gb_s: float = 2.0
    """Rate at which a GPU's gradients are copied to an optimizer on the host and added there, and weights copied back.
    Measured: 1.8 (ZenFlow's blog: 7B on 4 A100, 2 s a backward pass); 2.0 (LLaMA-7B on 8 A800, 0.8 s more for each
    micro-step)."""
    unpacked_g_s: float = 80.0
    """Billions of 4-bit weights per second that bitsandbytes dequantises to bf16, which happens at each use."""
    tflops_fp32: float | None = None
    """Peak of fp32 arithmetic without tensor cores, in TFLOP/s; needed only for runs in fp32."""
    nvme_gb_s: float | None = None
    """Rate of a node's local NVMe disks, for weights offloaded there; if missing, times exclude reading them."""
    failures_per_gpu_hour: float = 419 / (54 * 24 * 16384)
    """Interruptions; the default is Llama 3's: 419 in 54 days on 16,384 H100 (arXiv 2407.21783, section 3.3.4)."""
    staging_gb_s: float = 0.113
    """Effective rate at which a GPU's share of a checkpoint is copied to host memory in a running job; the default is
    KempnerForge's: 60 s for 2.45 TB on 360 H200 (its benchmarks/175b_360gpu). PCIe is not the limit: with pinned memory
    torchtitan took 0.78 s for a 70B model on 1,856 (PyTorch blog, 2025-04-30)."""
    staging_total_gb_s: float = 41.0
    """The same for all GPUs together, from the same measurement, which does not show which limit applies."""
    restart_minutes: float = 10.0
    """From a fault to the next step: detection, requeueing, startup, loading."""

    @property
    def memory_bytes(self) -> int:
        """Bytes of a GPU."""
        return round(self.memory_gib * GIB)

    @property
    def reserved_bytes(self) -> int:
        """Bytes outside torch's allocator."""
        return round(self.reserved_gib * GIB)

    def peak(self, bytes_per_element: int) -> float:
        """Peak FLOP/s of a GPU for elements of that size; SettingsError if the file lacks it."""
        if bytes_per_element == 2:
            return self.tflops * 1e12
        if self.tflops_fp32 is None:
            raise SettingsError(
                f"train.precision is fp32, but the cluster {self.name!r} has no tflops_fp32; add the chip's fp32 peak "
                "to its file, or set train.precision to bf16"
            )
        return self.tflops_fp32 * 1e12


def load_cluster(path: Path) -> Cluster:
    """Read a cluster's YAML; SettingsError names the field that is missing, unknown or not a positive number."""
    import yaml

    try:
        text = path.read_text()
        values: Any = yaml.safe_load(text)
        twice = duplicate_key(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid YAML ({error}); fix the file that --cluster names") from None
    if not isinstance(values, dict):
        raise SettingsError(
            f"{path} holds {type(values).__name__}, expected a mapping of fields; copy configs/clusters/h100.yaml"
        )
    if twice:
        raise SettingsError(f"{path}: {twice}")
    fields = {f.name: f for f in dataclasses.fields(Cluster)}
    missing = [n for n, f in fields.items() if n not in values and f.default is dataclasses.MISSING]
    errors = [f"{name!r} is missing" for name in missing]
    errors += [f"{name!r} is unknown" for name in values if name not in fields]
    errors += [message for name, value in values.items() if name in fields and (message := _field_error(name, value))]
    if not errors and values["reserved_gib"] >= values["memory_gib"]:
        errors = [f"reserved_gib is {values['reserved_gib']}, expected less than memory_gib, {values['memory_gib']}"]
    if errors:
        raise SettingsError(f"{path}: {'; '.join(errors)}; see configs/clusters/h100.yaml for every field")
    return Cluster(**{**values, "gpus_per_node": int(values["gpus_per_node"])})


def _field_error(name: str, value: Any) -> str | None:
    """The error in a field, if it has one."""
    if name == "name":
        return None if isinstance(value, str) and value else f"name is {value!r}, expected text"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and value > 0):
        return f"{name} is {value!r}, expected a number above 0"
    if not math.isfinite(value):
        return f"{name} is {value!r}, expected a finite number"
    if name == "gpus_per_node" and value != int(value):
        return f"gpus_per_node is {value}, expected an integer"
    if name in ("achievable", "achievable_attention", "achievable_hbm", "overlap") and value > 1:
        return f"{name} is {value}, expected a share up to 1"
    return None
