"""Small runs whose memory and traffic are measured and predicted: families, finetune modes, optimizers, ZeRO-3."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clsgen_dist.config import SHIPPED, settings_from_yaml, to_yaml
from clsgen_dist.plan.communication import Flow, FlowKind, flows
from clsgen_dist.plan.memory import Memory, memory
from clsgen_dist.plan.meta_model import ModelSpec
from clsgen_dist.plan.plan import RowAssumptions
from clsgen_dist.plan.tracer import trace_micro_step
from clsgen_dist.plan.zero3_settings import zero3_settings
from clsgen_dist.plan.zero3_simulation import simulate

STATED = RowAssumptions(rows=10_000, tokens_per_row=1024, supervised_per_row=128)
"""Rows of the planner's tests."""

MICRO_STEPS = 2

SHAPES = {
    "llama-tied": ("Llama", {"tie_word_embeddings": True, "num_hidden_layers": 6, "vocab_size": 3001}),
    "llama-untied": ("Llama", {"tie_word_embeddings": False, "vocab_size": 6000, "hidden_size": 264}),
    "llama-deep": ("Llama", {"tie_word_embeddings": True, "num_hidden_layers": 12, "vocab_size": 1000}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "vocab_size": 4000, "num_key_value_heads": 1}),
    "biased": (
        "Llama",
        {
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "hidden_size": 272,
            "intermediate_size": 333,
            "num_attention_heads": 8,
            "num_hidden_layers": 4,
            "vocab_size": 7001,
        },
    ),
    "gemma3": ("Gemma3Text", {"tie_word_embeddings": True, "head_dim": 48, "sliding_window": 64}),
    "tiny": ("Llama", {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 100, "num_hidden_layers": 2}),
}
_COMMON = {
    "vocab_size": 2000,
    "hidden_size": 192,
    "intermediate_size": 520,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}

BUCKETS = {
    "reduce_bucket_size": 500_000,
    "stage3_prefetch_bucket_size": 300_000,
    "stage3_param_persistence_threshold": 1000,
}
"""As large for these models as the shipped buckets are for large ones."""
LETS_GO = {**BUCKETS, "stage3_max_reuse_distance": 400_000, "stage3_param_persistence_threshold": 0}
"""Weights are released between forward and backward, as those of a large model are."""
OFFLOAD = {"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}


@dataclass(frozen=True)
class Case:
    """A run to measure."""

    name: str
    shape: str
    zero: dict[str, Any]
    settings: dict[str, Any]
    lengths: tuple[int, ...] = (160, 128, 96, 128)
    supervised: int = 128
    text: int = 0
    """Tokens of a general text beside the rows."""
    timed_steps: int = 0
    """Optimizer steps whose time is measured, before the one that is counted."""


def _case(
    name: str, shape: str, zero: dict[str, Any], *, lengths: Sequence[int] = (), text: int = 0, **settings: Any
) -> Case:
    return Case(name, shape, zero, settings, tuple(lengths) or (160, 128, 96, 128), text=text)


CASES = [
    _case("all weights, untied", "llama-untied", LETS_GO),
    _case(
        "LoRA, checkpointing",
        "gemma3",
        BUCKETS,
        lengths=(320, 256, 192, 256),
        model__finetune="lora",
        train__activation_checkpointing=True,
    ),  # enough tokens to outweigh 3 MB of Python objects: hooks and graph of LoRA's modules
    _case("two top layers, 8-bit Adam", "llama-tied", LETS_GO, model__top_layers=2, optim__name="adamw_8bit"),
    _case("head alone", "qwen2", LETS_GO, model__finetune="head"),
    _case("offloaded", "llama-tied", {**LETS_GO, **OFFLOAD}, lengths=(96, 64)),
    _case("LoRA, biases", "biased", LETS_GO, lengths=(300, 43, 47, 71), model__finetune="lora"),
    _case(
        "LoRA, retention",
        "llama-tied",
        LETS_GO,
        text=64,
        model__finetune="lora",
        data__replay="none.jsonl",
        objectives__retention={"weight": 1.0},
    ),
    _case("LoRA, preference", "llama-tied", LETS_GO, model__finetune="lora", objectives__preference={"weight": 1.0}),
    _case(
        "all weights, preference",
        "llama-untied",
        LETS_GO,
        objectives__preference={"weight": 1.0, "reference": "start"},
    ),
    _case("all weights, sharded head", "llama-untied", LETS_GO, objectives__lm_head="sharded"),
    _case("LoRA, sharded head, tied", "qwen2", LETS_GO, model__finetune="lora", objectives__lm_head="sharded"),
]
MORE_CASES = [
    _case("all weights, kept gathered", "llama-tied", BUCKETS),
    _case("all weights, checkpointing", "llama-deep", LETS_GO, train__activation_checkpointing=True),
    _case("LoRA", "qwen2", LETS_GO, model__finetune="lora"),
    _case("head alone, untied", "llama-untied", LETS_GO, model__finetune="head"),
    _case("all weights, biases", "biased", LETS_GO, lengths=(511,)),
]
"""For benchmarks/plan.py, in addition to those that the tests run."""


def prepare(folder: Path, cases: Sequence[Case]) -> Path:
    """Random backbones, DeepSpeed files and settings of the cases; returns the file that the ranks read."""
    import transformers

    written = []
    lora = {"model__finetune": "lora", "train__activation_checkpointing": True, "optim__name": "adamw_8bit"}
    warm_up = Case("warm-up", "tiny", BUCKETS, lora, (16, 16), 8)  # so that no import falls into a measurement
    for number, case in enumerate([warm_up, *cases]):
        family, shape = SHAPES[case.shape]
        backbone = folder / case.shape
        if not backbone.exists():
            torch.manual_seed(0)
            config = getattr(transformers, f"{family}Config")(**{**_COMMON, **shape})
            name = f"{family.removesuffix('Text')}ForCausalLM"
            getattr(transformers, name)(config).save_pretrained(backbone)
        zero = json.loads((SHIPPED / "ds_configs/zero3.json").read_text())
        zero["zero_optimization"].update(case.zero)
        zero["zero_force_ds_cpu_optimizer"] = False
        file = folder / f"zero-{number}.json"
        file.write_text(json.dumps(zero))
        written.append(
            {
                "name": case.name,
                "lengths": case.lengths,
                "supervised": case.supervised,
                "text": case.text,
                "timed_steps": case.timed_steps,
                "micro_steps": MICRO_STEPS,
                "settings": _settings(case, backbone, file),
            }
        )
    path = folder / "cases.json"
    path.write_text(json.dumps(written))
    return path


def _settings(case: Case, backbone: Path, zero: Path) -> str:
    tree: dict[str, Any] = {
        "deepspeed": str(zero),
        "data": {"train": "none.jsonl"},
        "model": {"backbone": str(backbone), "finetune": "full", "head_init": "zeros"},
        "objectives": {},
        "optim": {},
        "train": {"precision": "fp32", "micro_batch_tokens": sum(case.lengths) + case.text},
    }
    for key, value in case.settings.items():
        section, name = key.split("__")
        tree[section][name] = value
    return to_yaml(settings_from_yaml(json.dumps(tree)))  # JSON is YAML


def measure(cases: Path, ranks: int, port: str, timeout: float = 600) -> dict[str, Any]:
    """Run the cases on ``ranks`` ranks; returns what the first of them measured, by name."""
    import os

    out = cases.with_name("report")
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(ranks), "--master_port", port]
    command += [str(Path(__file__).with_name("measured_ranks.py")), str(cases), str(out)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "MKL_DISABLE_FAST_MM": "1",  # else the first large product allocates 17 MB of buffers that stay in use
        "PYTHONPATH": f"{SHIPPED}:{SHIPPED / 'kernels'}",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
    report: dict[str, Any] = json.loads(Path(f"{out}.{ranks}.0").read_text())
    return report


GATHERS = (*(kind for kind in FlowKind if kind.is_gather), FlowKind.HEAD_GATHER)
REDUCTIONS = (FlowKind.REDUCE, FlowKind.HEAD_REDUCE)
SUMS = (FlowKind.SUMS, FlowKind.HEAD_SUMS)
EXCHANGES = (FlowKind.HEAD_EXCHANGE,)


@dataclass(frozen=True)
class Predicted:
    """The planner's prediction for a case."""

    memory: Memory
    flows: list[Flow]

    @property
    def total(self) -> int:
        """Device and host together: on CPU they are one."""
        return self.memory.device_total + self.memory.host_total

    def part(self, name: str) -> int:
        """Bytes of a part, on device and host."""
        return self.memory.device.get(name, 0) + self.memory.host.get(name, 0)

    def calls(self, kinds: Iterable[FlowKind]) -> float:
        """Number of collectives of these kinds."""
        return sum(f.calls for f in self.flows if f.kind in kinds)

    def moved(self, kinds: Iterable[FlowKind]) -> float:
        """Bytes of the complete tensors of these collectives."""
        return sum(f.whole_bytes for f in self.flows if f.kind in kinds)


def predict(written: dict[str, Any], ranks: int) -> Predicted:
    """Predict memory and traffic of a case, as :func:`prepare` wrote it, on ``ranks`` ranks of one CPU machine."""
    settings = settings_from_yaml(written["settings"])
    model = settings.model
    trace = trace_micro_step(
        ModelSpec.from_settings(model, backbone=model.backbone, classes=2, bf16=settings.train.precision == "bf16"),
        sequence_lengths=written["lengths"] + [written["text"]] * bool(written["text"]),
        supervised=written["supervised"],
        activation_checkpointing=settings.train.activation_checkpointing,
        attention="sdpa",
        terms=settings.objectives.terms_that_run_more(),
        texts=int(written["text"] > 0),
        head_ranks=ranks if settings.objectives.lm_head == "sharded" else 0,
    )
    zero = zero3_settings(json.loads(Path(settings.deepspeed).read_text()), ranks=ranks, ranks_per_node=ranks)
    simulation = simulate(trace, zero)
    return Predicted(
        memory(trace, zero, simulation, optimizer=settings.optim.name, on_gpu=False),
        flows(trace, zero, simulation, micro_steps=written["micro_steps"]),
    )
