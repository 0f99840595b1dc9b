"""Compare the planner with real runs on CPU, DeepSpeed's estimators and published runs; print a table of goodput.

    python benchmarks/plan.py                       # everything, several minutes
    python benchmarks/plan.py --ranks 2             # measured runs on two ranks only, and the rest
    python benchmarks/plan.py --ranks none          # no measured runs

It prints the tables of docs/plan_validation.md and docs/plan.md. Published runs used other code (FSDP, MPT, Llama); the
planner knows only their shapes. Each chip has one set of constants, from configs/clusters. Runs with tensor or pipeline
parallelism or fp8 are excluded, since ZeRO-3 has none of these. "selective" checkpointing is planned as none. MPT is
planned as a Llama of the same width, depth and number of parameters.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests/plan"), str(ROOT), str(ROOT / "kernels")]

LLAMA3 = {"vocab_size": 128256, "num_key_value_heads": 8, "tie_word_embeddings": False}
LLAMA2 = {"vocab_size": 32000, "tie_word_embeddings": False}
QWEN = {"vocab_size": 151936, "attention_bias": True, "tie_word_embeddings": False}


def _shape(width: int, inner: int, depth: int, heads: int, **more: Any) -> dict[str, Any]:
    shape = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": depth, "num_attention_heads": heads}
    return {"tie_word_embeddings": True, **shape, **more}


MODELS: dict[str, dict[str, Any]] = {
    "Llama 3 8B": _shape(4096, 14336, 32, 32, **LLAMA3),
    "Llama 3 13B": _shape(5120, 17920, 40, 40, **LLAMA3),
    "Llama 3 70B": _shape(8192, 28672, 80, 64, **LLAMA3),
    "Llama 3.2 3B": _shape(3072, 8192, 28, 24, vocab_size=128256, num_key_value_heads=8, head_dim=128),
    "Llama 2 7B": _shape(4096, 11008, 32, 32, **LLAMA2),
    "Llama 2 13B": _shape(5120, 13824, 40, 40, **LLAMA2),
    "Llama 2 34B": _shape(8192, 22016, 48, 64, num_key_value_heads=8, **LLAMA2),
    "Llama 2 70B": _shape(8192, 28672, 80, 64, num_key_value_heads=8, **LLAMA2),
    "Mistral 7B": _shape(4096, 14336, 32, 32, num_key_value_heads=8, **LLAMA2),
    "PowerLM 3B": _shape(2304, 9216, 40, 36, vocab_size=49152),
    "Qwen-1.8B": _shape(2048, 5504, 24, 16, **QWEN),
    "Qwen-7B": _shape(4096, 11008, 32, 32, **QWEN),
    "Qwen-14B": _shape(5120, 13696, 40, 40, **QWEN),
    "Qwen-72B": _shape(8192, 24576, 80, 64, **QWEN),
    **{
        f"MPT {name}": _shape(width, 8 * width // 3, depth, width // head, vocab_size=50368)
        for name, width, depth, head in (
            ("1b", 2048, 24, 128),
            ("3b", 2560, 32, 80),
            ("7b", 4096, 32, 128),
            ("13b", 5120, 40, 128),
            ("30b", 7168, 48, 112),
            ("70b", 8192, 80, 128),
        )
    },
}


@dataclass(frozen=True)
class Published:
    """A published run in bf16: fully sharded, or on one GPU."""

    source: str
    chip: str
    model: str
    gpus: int
    gpus_per_node: int
    sequence: int
    micro_batch: int
    """Sequences per GPU in a micro-step."""
    accumulation: int
    checkpointing: str
    """``full``, ``none``, or ``selective``, which is planned as none."""
    finetune: str
    """``full``, ``lora``, or ``qlora``."""
    lora_rank: int | None
    compiled: str
    tokens_s_gpu: float
    memory_gib: float | None
    """Peak allocation; None if the source does not give it, or keeps all model states in bf16, unlike the plan."""
    note: str

    @property
    def held_out(self) -> bool:
        """Whether the row was kept out of fitting the constants: about half of the rows, by a checksum of their key."""
        key = (self.source, self.model, self.finetune, self.gpus, self.sequence, self.micro_batch, self.checkpointing)
        return bool(zlib.crc32(repr(key).encode()) & 1)


def published() -> list[Published]:
    """The rows of published_runs.csv."""
    with (ROOT / "benchmarks/published_runs.csv").open() as file:
        return [Published(**{name: _read(name, text) for name, text in row.items()}) for row in csv.DictReader(file)]


def _read(name: str, text: str) -> Any:
    if name in ("gpus", "gpus_per_node", "sequence", "micro_batch", "accumulation", "lora_rank"):
        return int(text) if text else None
    return (float(text) if text else None) if name in ("tokens_s_gpu", "memory_gib") else text


def table(rows: list[list[str]]) -> None:
    from clsgen_dist.io.tables import markdown_table

    print(markdown_table(rows))
    print()


def real_runs(ranks: list[int]) -> None:
    """Measured memory and traffic of real engines, against the plan."""
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
                        error(planned.moved(cases.GATHERS), gathered),
                        f"{reduced / 1e6:.2f}",
                        error(planned.moved(cases.REDUCTIONS), reduced),
                    ]
                )
    table(rows)


def error(planned: float, actual: float) -> str:
    return f"{100 * (planned / actual - 1):+.1f}%" if actual else "-"


class PublishedPlanner:
    """Plans published runs, from the model shapes above."""

    def __init__(self, folder: Path) -> None:
        from transformers import LlamaConfig

        for name, shape in MODELS.items():
            LlamaConfig(**shape).save_pretrained(folder / name)
        self.folder = folder
        self._planners: dict[Any, Any] = {}

    def plan(self, run: Published) -> Any:
        from clsgen_dist.config import parse_settings
        from clsgen_dist.plan.cluster import load_cluster
        from clsgen_dist.plan.plan import Planner, RowAssumptions

        settings = parse_settings(
            [
                "--config",
                str(ROOT / "configs/recipe.yaml"),
                f"--model.backbone={self.folder / run.model}",
                f"--model.finetune={run.finetune.removeprefix('q')}",
                f"--model.load_in_4bit={str(run.finetune == 'qlora').lower()}",
                f"--model.lora_rank={run.lora_rank or 16}",
                f"--train.micro_batch_tokens={run.sequence * run.micro_batch}",
                f"--train.batch_size={run.gpus * run.micro_batch * run.accumulation}",
                f"--train.activation_checkpointing={str(run.checkpointing == 'full').lower()}",
            ]
        )
        stated = RowAssumptions(rows=100_000, tokens_per_row=run.sequence, supervised_per_row=run.sequence - 1)
        cluster = load_cluster(ROOT / f"configs/clusters/{run.chip}.yaml")
        planner = self._planners.setdefault((run.model, run.chip, run.sequence), Planner(settings, cluster, stated))
        return planner.plan(settings, nodes=-(-run.gpus // run.gpus_per_node), gpus_per_node=run.gpus_per_node)


def published_runs(planner: PublishedPlanner, every_row: bool) -> None:
    """Tokens per second per GPU, and memory: planned and published."""
    titles = "chip,model,trained,GPUs,sequence,micro-batch,checkpointing,tokens/s/GPU,planned,error,GiB,planned,error"
    rows = [[*titles.split(","), "rows", "source"]]
    found: list[tuple[Published, float, float | None]] = []
    for run in published():
        plan = planner.plan(run)
        rate = plan.stages[0].tokens_per_second / run.gpus
        allocated = (plan.memory.device_total - plan.memory.device.get("CUDA, NCCL, cuBLAS", 0)) / 2**30
        # Published runs keep all logits in memory (bf16, fp32, and an fp32 gradient); our loss does not.
        allocated += 10 * run.sequence * run.micro_batch * MODELS[run.model]["vocab_size"] / 2**30
        found.append((run, rate / run.tokens_s_gpu, allocated / run.memory_gib if run.memory_gib else None))
        rows.append(
            [
                run.chip,
                run.model,
                run.finetune + (f" {run.lora_rank}" if run.lora_rank else ""),
                str(run.gpus),
                str(run.sequence),
                str(run.micro_batch),
                run.checkpointing,
                f"{run.tokens_s_gpu:,.0f}",
                f"{rate:,.0f}",
                error(rate, run.tokens_s_gpu),
                f"{run.memory_gib:.0f}" if run.memory_gib else "-",
                f"{allocated:.0f}",
                error(allocated, run.memory_gib) if run.memory_gib else "-",
                "held out" if run.held_out else "fitted",
                run.source + (", compiled" if run.compiled == "yes" else "") + (f"; {run.note}" if run.note else ""),
            ]
        )
    if every_row:
        table(rows)
    groups: dict[str, list[tuple[Published, float, float | None]]] = {"all": found}
    for item in found:
        groups.setdefault(item[0].chip, []).append(item)
        groups.setdefault(item[0].finetune, []).append(item)
        groups.setdefault(item[0].source, []).append(item)
    for what, place in (("speed", 1), ("memory", 2)):
        titles = [what, "fitted: runs", "median error", "held out: runs", "median error"]
        summary = [[*titles, "planned / published: p10", "p50", "p90"]]
        for name, items in groups.items():
            halves = [
                [i[place] for i in items if i[0].held_out is out and i[place] is not None] for out in (False, True)
            ]
            if any(halves):
                summary.append([name, *_errors(halves[0])[:2], *_errors(halves[1])])
        table(summary)


def _errors(ratios: list[Any]) -> list[str]:
    """Number of runs, median absolute error, and the 10th, 50th and 90th percentile of the ratio."""
    if not ratios:
        return ["0", *["-"] * 4]
    median_error = np.median([abs(ratio - 1) for ratio in ratios])
    return [
        str(len(ratios)),
        f"{median_error:.1%}",
        *(f"{value:.2f}" for value in np.quantile(ratios, [0.1, 0.5, 0.9])),
    ]


def estimators(planner: PublishedPlanner) -> None:
    """DeepSpeed's estimate of model states, against the parts of the plan."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    rows = [
        [
            "model",
            "GPUs",
            "estimate GiB",
            "of it largest layer",
            "planned states",
            "gathered",
            "(estimate - layer) · 16/18",
        ]
    ]
    for model, gpus in (("Llama 3 8B", 8), ("Llama 3 70B", 64)):
        plan = planner.plan(Published("", "h100", model, gpus, 8, 2048, 1, 1, "full", "full", None, "no", 1, None, ""))
        largest = MODELS[model]["vocab_size"] * MODELS[model]["hidden_size"]
        _, gpu, layer = estimate_zero3_model_states_mem_needs(
            total_params=plan.trace.parameters, largest_layer_params=largest, num_gpus_per_node=8,
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
    """Checkpoint interval and goodput of Llama-3-70B on 4,096 H100s, for the planned save time and for others."""
    from clsgen_dist.config import parse_settings
    from clsgen_dist.plan.cluster import load_cluster
    from clsgen_dist.plan.goodput import Faults, goodput, kept_share
    from clsgen_dist.plan.plan import Planner, RowAssumptions

    model = ROOT / "configs/models/llama-3-70b"
    settings = parse_settings(["--config", str(ROOT / "configs/70b_zero3.yaml"), f"--model.backbone={model}"])
    cluster = load_cluster(ROOT / "configs/clusters/h100.yaml")
    plan = Planner(settings, cluster, RowAssumptions(rows=10**6)).plan(settings, nodes=512)
    rows = [["save stops for", "written in", "Young", "Daly", "recommended", "goodput", "at 1/4 of it", "at 4x"]]
    saves = [(plan.stall_seconds, plan.write_seconds), (1, 60), (plan.write_seconds, 0), (60, 0), (300, 0)]
    for stall, written in saves:
        faults = Faults(
            gpus=plan.ranks, per_gpu_hour=cluster.failures_per_gpu_hour, restart_hours=cluster.restart_minutes / 60,
            save_hours=stall / 3600, write_hours=written / 3600,
        )  # fmt: skip
        best = goodput(faults)
        shorter, longer = (kept_share(faults, interval) for interval in (best.advised / 4, best.advised * 4))
        possible = best.advised / 4 >= faults.write_hours
        times = [f"{60 * hours:.3g} min" for hours in (best.young, best.daly, best.advised)]
        shares = [f"{best.at_advised:.2%}", f"{shorter:.2%}" if possible else "-", f"{longer:.2%}"]
        rows.append([f"{stall:.3g} s", f"{written:.3g} s" if written else "blocking", *times, *shares])
    print(f"Llama-3-70B, {plan.ranks:,} GPUs, a checkpoint of {plan.checkpoint_bytes / 1e9:,.0f} GB")
    table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ranks", default="1,2,4", help="rank counts of the measured runs, or none (default: %(default)s)"
    )
    parser.add_argument("--every_row", action="store_true", help="print each published run")
    arguments = parser.parse_args()
    if arguments.ranks != "none":
        real_runs([int(number) for number in arguments.ranks.split(",")])
    with tempfile.TemporaryDirectory() as folder:
        planner = PublishedPlanner(Path(folder))
        estimators(planner)
        published_runs(planner, arguments.every_row)
    saves_and_faults()


if __name__ == "__main__":
    main()
