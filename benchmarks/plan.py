"""The planner against what is known: real runs on CPU, DeepSpeed's estimators, published runs; and a table of goodput.

    python benchmarks/plan.py                       # everything, some minutes
    python benchmarks/plan.py --ranks 2             # memory and traffic of real engines on two ranks
    python benchmarks/plan.py --ranks none          # DeepSpeed's estimators and published runs alone

Published runs are of other code (FSDP; MPT and Llama), of which the planner knows nothing but shapes: one set of
constants a chip, those of configs/clusters, and no row is fitted. Tensor and pipeline parallel runs and fp8 are left
out: ZeRO-3 has neither. "selective" checkpointing is planned without any. MPT is planned as a Llama of the same width,
depth and number of parameters.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests/plan"), str(ROOT), str(ROOT / "kernels")]

LLAMA3 = {"vocab_size": 128256, "num_key_value_heads": 8, "tie_word_embeddings": False}
MODELS: dict[str, dict[str, Any]] = {
    "Llama 3 8B": {**LLAMA3, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    "Llama 3 13B": {**LLAMA3, "hidden_size": 5120, "intermediate_size": 17920, "num_hidden_layers": 40},
    "Llama 3 70B": {**LLAMA3, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80},
    "Llama 2 7B": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
}
for name, width, depth in (
    ("1b", 2048, 24),
    ("3b", 2560, 32),
    ("7b", 4096, 32),
    ("13b", 5120, 40),
    ("30b", 7168, 48),
    ("70b", 8192, 80),
):
    MODELS[f"MPT {name}"] = {
        "vocab_size": 50368,
        "hidden_size": width,
        "intermediate_size": 8 * width // 3,
        "num_hidden_layers": depth,
        "tie_word_embeddings": True,
    }

TITAN = "torchtitan benchmarks/llama3_h100_202412"
TITAN_A = "torchtitan docs/performance.md (2024)"
MOSAIC = "llm-foundry scripts/train/benchmarking"
FORGE = "KempnerForge mfu_scaling_2026-04-05"
IBM = "PyTorch blog 2024-03-13 (IBM, Meta)"


@dataclass(frozen=True)
class Published:
    """A published run of fully sharded data parallelism in bf16."""

    source: str
    model: str
    cluster: str
    gpus: int
    sequence: int
    micro_batch: int
    """Sequences a GPU puts through at once."""
    accumulation: int
    checkpointing: bool
    tokens_s_gpu: float
    note: str = ""
    gpus_per_node: int = 8


RUNS = [
    Published(TITAN, "Llama 3 8B", "h100", 8, 8192, 2, 1, False, 5762, "96 GB, 500 W; selective"),
    Published(TITAN, "Llama 3 8B", "h100", 8, 8192, 2, 1, False, 6667, "the same, compiled"),
    Published(TITAN, "Llama 3 8B", "h100", 128, 8192, 2, 1, False, 5605, "96 GB, 500 W; selective"),
    Published(TITAN, "Llama 3 8B", "h100", 128, 8192, 2, 1, False, 6514, "the same, compiled"),
    Published(MOSAIC, "MPT 70b", "h100", 64, 2048, 8, 4, True, 1039),
    Published(MOSAIC, "MPT 70b", "h100", 32, 2048, 2, 16, True, 882),
    Published(MOSAIC, "MPT 30b", "h100", 32, 2048, 14, 3, True, 2308),
    Published(MOSAIC, "MPT 30b", "h100", 16, 2048, 10, 3, True, 2263),
    Published(MOSAIC, "MPT 30b", "h100", 8, 2048, 3, 21, True, 2002),
    Published(MOSAIC, "MPT 30b", "h100", 8, 8192, 1, 21, True, 1384),
    Published(MOSAIC, "MPT 13b", "h100", 64, 2048, 2, 1, False, 4800),
    Published(MOSAIC, "MPT 13b", "h100", 8, 2048, 2, 1, False, 4792),
    Published(MOSAIC, "MPT 13b", "h100", 8, 4096, 10, 3, True, 4717),
    Published(MOSAIC, "MPT 7b", "h100", 8, 2048, 6, 1, False, 10643),
    Published(MOSAIC, "MPT 7b", "h100", 8, 8192, 8, 2, True, 6935),
    Published(MOSAIC, "MPT 3b", "h100", 64, 2048, 6, 3, False, 22525),
    Published(FORGE, "Llama 3 8B", "h200", 4, 4096, 4, 2, True, 9746, "4 GPUs a node, compiled", 4),
    Published(FORGE, "Llama 3 13B", "h200", 8, 4096, 4, 4, True, 4426, "4 GPUs a node", 4),
    Published(TITAN_A, "Llama 3 8B", "a100", 64, 8192, 1, 1, False, 2904, "selective"),
    Published(TITAN_A, "Llama 3 70B", "a100", 64, 8192, 1, 1, True, 331),
    Published(IBM, "Llama 2 7B", "a100", 128, 4096, 2, 1, False, 3700, "compiled"),
    Published(MOSAIC, "MPT 70b", "a100", 64, 2048, 8, 4, True, 410),
    Published(MOSAIC, "MPT 70b", "a100", 32, 2048, 2, 16, True, 373),
    Published(MOSAIC, "MPT 30b", "a100", 8, 2048, 3, 21, True, 916),
    Published(MOSAIC, "MPT 13b", "a100", 8, 2048, 2, 3, False, 2262),
    Published(MOSAIC, "MPT 13b", "a100", 8, 8192, 5, 3, True, 1795),
    Published(MOSAIC, "MPT 7b", "a100", 8, 2048, 6, 2, False, 4641),
    Published(MOSAIC, "MPT 1b", "a100", 8, 2048, 14, 4, False, 20513),
]


def table(rows: list[list[str]]) -> None:
    from clsgen_dist.data_verbs.common import print_table

    print_table(rows)
    print()


def real_runs(ranks: list[int]) -> None:
    """Memory and traffic of real engines against the plan."""
    import plan_cases as cases

    rows = [["ranks", "run", "peak MB", "planned", "error", "gathered MB", "error", "reduced MB", "error"]]
    with tempfile.TemporaryDirectory() as folder:
        path = cases.prepare(Path(folder), cases.CASES + cases.MORE_CASES)
        written = {case["name"]: case for case in json.loads(path.read_text())}
        for number in ranks:
            for name, report in cases.measure(path, number, str(29800 + number), timeout=1800).items():
                if name == "warm-up":
                    continue
                planned = cases.predict(written[name], number)
                gathered = report["traffic"].get("_allgather_base_", 0)
                reduced = report["traffic"].get("_reduce_scatter_base_", 0)
                rows.append(
                    [
                        str(number),
                        name,
                        f"{report['peak'] / 1e6:.1f}",
                        f"{planned.total / 1e6:.1f}",
                        error(planned.total, report["peak"]),
                        f"{gathered / 1e6:.2f}",
                        error(planned.moved("gather"), gathered),
                        f"{reduced / 1e6:.2f}",
                        error(planned.moved("reduce"), reduced),
                    ]
                )
    table(rows)


def error(planned: float, known: float) -> str:
    return f"{100 * (planned / known - 1):+.1f}%" if known else "-"


class Planned:
    """Plans of the models above; the number of layers and their width are all that is told."""

    def __init__(self, folder: Path) -> None:
        from transformers import LlamaConfig

        for name, shape in MODELS.items():
            heads = shape["hidden_size"] // (80 if name == "MPT 3b" else 128)
            LlamaConfig(**shape, num_attention_heads=heads).save_pretrained(folder / name)
        self.folder = folder

    def plan(self, run: Published) -> Any:
        from clsgen_dist.config import parse_settings
        from clsgen_dist.plan.cluster import load_cluster
        from clsgen_dist.plan.plan import Planner, Stated

        settings = parse_settings(
            [
                "--config",
                str(ROOT / "configs/recipe.yaml"),
                f"--model.backbone={self.folder / run.model}",
                "--model.finetune=full",
                f"--train.micro_batch_tokens={run.sequence * run.micro_batch}",
                f"--train.batch_size={run.gpus * run.micro_batch * run.accumulation}",
                f"--train.activation_checkpointing={str(run.checkpointing).lower()}",
            ]
        )
        stated = Stated(rows=100_000, tokens_per_row=run.sequence, supervised_per_row=run.sequence - 1)
        cluster = load_cluster(ROOT / f"configs/clusters/{run.cluster}.yaml")
        planner = Planner(settings, cluster, stated)
        return planner.plan(
            settings, nodes=-(-run.gpus // run.gpus_per_node), gpus_per_node=min(run.gpus, run.gpus_per_node)
        )


def published_runs(planned: Planned) -> None:
    """Tokens a second and GPU, planned and published."""
    rows = [
        [
            "chip",
            "model",
            "GPUs",
            "sequence",
            "micro-batch",
            "checkpointing",
            "tokens/s/GPU",
            "planned",
            "error",
            "MFU planned",
            "GiB planned",
            "source",
        ]
    ]
    errors: dict[str, list[float]] = {}
    for run in RUNS:
        plan = planned.plan(run)
        rate = plan.stages[0].tokens_per_second / run.gpus
        errors.setdefault(run.cluster, []).append(abs(rate / run.tokens_s_gpu - 1))
        rows.append(
            [
                run.cluster,
                run.model,
                str(run.gpus),
                str(run.sequence),
                str(run.micro_batch),
                "yes" if run.checkpointing else "no",
                f"{run.tokens_s_gpu:,.0f}",
                f"{rate:,.0f}",
                error(rate, run.tokens_s_gpu),
                f"{plan.stages[0].mfu:.1%}",
                f"{plan.memory.device_total / 2**30:.0f}",
                run.source + (f"; {run.note}" if run.note else ""),
            ]
        )
    table(rows)
    for chip, found in errors.items():
        print(f"{chip}: median error {statistics.median(found):.1%}, largest {max(found):.1%}, {len(found)} runs")
    print()


def estimators(planned: Planned) -> None:
    """DeepSpeed's estimate of the states beside the plan's parts."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    rows = [
        ["model", "GPUs", "DeepSpeed GiB", "of it layer", "ours: states", "gathered", "16/18 of theirs, less the layer"]
    ]
    for model, gpus in (("Llama 3 8B", 8), ("Llama 3 70B", 64)):
        plan = planned.plan(Published("", model, "h100", gpus, 2048, 1, 1, True, 1))
        largest = MODELS[model]["vocab_size"] * MODELS[model]["hidden_size"]
        _, gpu, layer = estimate_zero3_model_states_mem_needs(
            total_params=plan.rehearsal.parameters, largest_layer_params=largest, num_gpus_per_node=8,
            num_nodes=gpus // 8, cpu_offload=False, cpu_offload_params=False, zero_init=True,
        )  # fmt: skip
        parts = plan.memory.device
        states = sum(parts[name] for name in ("weights", "master weights", "gradients", "optimizer"))
        rows.append(
            [
                model,
                str(gpus),
                f"{gpu / 2**30:.2f}",
                f"{layer / 2**30:.2f}",
                f"{states / 2**30:.2f}",
                f"{parts.get('gathered weights', 0) / 2**30:.2f}",
                f"{(gpu - layer) * 16 / 18 / 2**30:.2f}",
            ]
        )
    table(rows)


def saves_and_faults() -> None:
    """Saves and faults of Llama-3-70B on 4,096 H100: a save of the plan's, and others."""
    from clsgen_dist.config import parse_settings
    from clsgen_dist.plan.cluster import load_cluster
    from clsgen_dist.plan.goodput import Faults, goodput, kept_share
    from clsgen_dist.plan.plan import Planner, Stated

    model = ROOT / "configs/models/llama-3-70b"
    settings = parse_settings(["--config", str(ROOT / "configs/70b_zero3.yaml"), f"--model.backbone={model}"])
    cluster = load_cluster(ROOT / "configs/clusters/h100.yaml")
    plan = Planner(settings, cluster, Stated(rows=10**6)).plan(settings, nodes=512)
    rows = [
        ["stops for", "written in", "Young", "Daly", "to take", "goodput there", "at a quarter of it", "at four times"]
    ]
    saves = [(plan.stall_seconds, plan.write_seconds), (1, 60), (plan.write_seconds, 0), (60, 0), (300, 0)]
    for stops, written in saves:
        faults = Faults(
            gpus=plan.ranks, per_gpu_hour=cluster.failures_per_gpu_hour, restart_hours=cluster.restart_minutes / 60,
            save_hours=stops / 3600, write_hours=written / 3600,
        )  # fmt: skip
        best = goodput(faults)
        less, more = (kept_share(faults, interval) for interval in (best.advised / 4, best.advised * 4))
        possible = best.advised / 4 >= faults.write_hours
        times = [f"{60 * hours:.3g} min" for hours in (best.young, best.daly, best.advised)]
        shares = [f"{best.at_advised:.2%}", f"{less:.2%}" if possible else "-", f"{more:.2%}"]
        rows.append([f"{stops:.3g} s", f"{written:.3g} s" if written else "the same", *times, *shares])
    print(f"Llama-3-70B, {plan.ranks:,} GPUs, a checkpoint of {plan.checkpoint_bytes / 1e9:,.0f} GB")
    table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,2,4", help="of the real runs, or none (default: %(default)s)")
    given = parser.parse_args().ranks
    if given != "none":
        real_runs([int(number) for number in given.split(",")])
    with tempfile.TemporaryDirectory() as folder:
        planned = Planned(Path(folder))
        estimators(planned)
        published_runs(planned)
    saves_and_faults()


if __name__ == "__main__":
    main()
