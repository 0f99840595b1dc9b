"""A whole training step on the CPU, against the usual implementation: tokens/s and peak memory.

    python benchmarks/step_cpu.py                      # the demo's rows: real lengths, LoRA on 15 layers
    python benchmarks/step_cpu.py --rows 4x256         # 4 rows of 256 tokens a micro-batch
    python benchmarks/step_cpu.py --model tiny         # a smoke test, seconds

"clsgen" is this project's model and loss, under DeepSpeed ZeRO-3 on one rank and, to separate the cost of the engine
from that of the loss, without an engine. "HF Trainer" is the same dual-head model trained the usual way: transformers'
Trainer, padded batches, logits of all tokens, both cross-entropies; same backbone, same LoRA, same trainable
parameters, same rows in the same order, same optimizer (torch AdamW), fp32. "usual loss, ZeRO-3" is that loss under
the same engine as ours. Each runs in its own process; rounds are interleaved, since the speed of a machine drifts; the
table gives medians.

"extra" is peak resident memory above what was resident after model and optimizer were built and every weight was read
(weights are memory-mapped, and count only once touched). It is measured in separate processes whose allocator returns
freed memory at once, so that it counts only what a step needs; "as malloc keeps it" is the same with glibc's defaults,
measured in the timed processes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODES = ("HF Trainer", "clsgen, no engine", "usual loss, ZeRO-3", "clsgen, ZeRO-3")


# With these, glibc returns freed memory at once, which is slow: for measuring memory, not time.
RETURNING_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def resident_mb() -> float:
    import resource

    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def peak_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024 / 1e3


def prepare(model: str, rows: str, micro: int, attention: str) -> tuple[Any, list[Any], int]:
    """The dual-head model (LoRA, zero dropout), the samples of each step (the same for every mode), the layer count."""
    import torch

    from clsgen_dist.config import parse_settings
    from clsgen_dist.data.encode import Encoder
    from clsgen_dist.data.pack import Sample
    from clsgen_dist.model.attention import register_per_sequence_attention
    from clsgen_dist.model.backbone import backbone_path, build_model, load_backbone, load_tokenizer, open_backbone
    from clsgen_dist.model.classification_head import HeadSpec
    from clsgen_dist.training.datasets import open_datasets
    from clsgen_dist.training.sampling_plan import plan_stream

    settings = parse_settings([f"--train.batch_size={micro}"], default_config="configs/demo.yaml")
    path = backbone_path(settings.model.backbone)
    encoder = Encoder(load_tokenizer(path), system="Cytology.", question="Benign or malignant?", max_prompt_length=128)
    if model == "tiny":
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        lm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4
            )
        )
    else:
        lm = load_backbone(open_backbone(path), dtype=torch.float32, attention="sdpa")
    layers = lm.config.num_hidden_layers
    dual = build_model(
        lm,
        head=HeadSpec(2),
        finetune="lora",
        top_layers=layers // 2,
        lora_rank=16,
        lora_alpha=32,
    )
    lm.set_attn_implementation(register_per_sequence_attention() if attention == "packed" else "sdpa")
    encoded = open_datasets(settings.data, encoder, None)
    if rows == "demo":
        stream = plan_stream(settings, encoded, rank=0, world_size=1)
        steps = [stream.chosen(step) for step in range(len(encoded.train) // micro)]
        return dual, [[encoded.train.sample(int(r), int(k)) for r, k in zip(*s, strict=True)] for s in steps], layers
    count, length = (int(n) for n in rows.split("x"))
    generator = torch.Generator().manual_seed(0)
    long = []
    for row in range(8 * count):
        # A quarter of the tokens are supervised.
        tokens = torch.randint(100, 40_000, (length,), generator=generator, dtype=torch.int32).numpy()
        cut = length - length // 4
        long.append(Sample(tokens[:cut], tokens[cut:], row % 2))
    return dual, [long[i : i + count] for i in range(0, len(long), count)], layers


def baseline_step(dual: Any, *, engine: bool, bf16: bool = False, device: str = "cpu") -> Any:
    """Step function of the baseline (padded batches, all logits), by HF Trainer or, with ``engine``, by DeepSpeed."""
    import torch
    from peers import BaselineModel, padded, trainer_step

    if not engine:
        step = trainer_step(dual)
        return lambda samples: step([padded(samples)])
    model = BaselineModel(dual)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-5)
    wrapped = zero3_engine(model, optimizer, bf16=bf16)

    def engine_step(samples: Any) -> None:
        wrapped.backward(wrapped(**{name: values.to(device) for name, values in padded(samples).items()})["loss"])
        wrapped.step()

    return engine_step


def zero3_engine(model: Any, optimizer: Any, *, bf16: bool = False) -> Any:
    """A DeepSpeed ZeRO-3 engine of the model on one rank."""
    import deepspeed

    from clsgen_dist.config import resolve_path
    from clsgen_dist.engine.config import deepspeed_config

    config = deepspeed_config(
        resolve_path("ds_configs/zero3.json"),
        batch_size=8,
        world_size=1,
        max_grad_norm=1.0,
        bf16=bf16,
        optimizer="adamw",
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def our_step(dual: Any, *, engine: bool, bf16: bool = False, device: str = "cpu") -> Any:
    """Step function of this project, with or without DeepSpeed."""
    import torch

    from clsgen_dist.data.pack import collate
    from clsgen_dist.engine.optim import build_optimizer, parameter_groups

    optimizer = build_optimizer(
        "adamw", parameter_groups(dual, lr=5e-5, head_lr=None, weight_decay=0.0), betas=(0.9, 0.999), eps=1e-8
    )

    def joint_loss(output: Any, batch: Any) -> Any:
        return output.generation_loss.sum() / batch.supervised + output.class_loss.sum() / batch.labelled

    if not engine:
        parameters = [p for p in dual.parameters() if p.requires_grad]

        def plain(samples: Any) -> None:
            batch = collate(samples)
            joint_loss(dual(**batch.inputs(device)), batch).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return plain

    wrapped = zero3_engine(dual, optimizer, bf16=bf16)

    def step(samples: Any) -> None:
        batch = collate(samples)
        wrapped.backward(joint_loss(wrapped(**batch.inputs(device)), batch), scale_wrt_gas=False)
        wrapped.step()

    return step


def worker(mode: str, model: str, rows: str, micro: int) -> None:
    """Read a number of steps per line from stdin, run them, print seconds, tokens and peak extra MB as JSON."""
    import contextlib

    with contextlib.ExitStack() as stack:
        stdout, sys.stdout = sys.stdout, sys.stderr
        if mode.endswith("ZeRO-3"):
            from clsgen_dist.engine.world import process_group
            from clsgen_dist.model.backbone import set_zero3_units

            stack.enter_context(process_group(600))
        dual, batches, _ = prepare(model, rows, micro, "packed" if mode.startswith("clsgen") else "padded")
        if mode.endswith("ZeRO-3"):
            set_zero3_units(dual)
        dual.train()
        make_step = our_step if mode.startswith("clsgen") else baseline_step
        step = make_step(dual, engine=mode.endswith("ZeRO-3"))
        for parameter in dual.parameters():
            getattr(parameter, "ds_tensor", parameter).sum()
        resident, at = resident_mb(), 0
        for line in sys.stdin:
            chosen = [batches[(at + i) % len(batches)] for i in range(int(line))]
            at += len(chosen)
            start = time.perf_counter()
            for samples in chosen:
                step(samples)
            answer = {
                "seconds": time.perf_counter() - start,
                "tokens": sum(len(s.prompt) + len(s.explanation) for step in chosen for s in step),
                "extra": peak_mb() - resident,
            }
            print(json.dumps(answer), file=stdout, flush=True)


class Worker:
    """One mode in its own process."""

    def __init__(self, mode: str, flags: list[str], environment: dict[str, str]) -> None:
        self.command = [sys.executable, __file__, "--worker", mode, *flags]
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **environment},
            cwd=Path(__file__).resolve().parent.parent,
        )

    def steps(self, count: int) -> dict[str, float]:
        """Run ``count`` steps; returns what :func:`worker` prints."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker died; run it alone: echo 1 | {' '.join(map(repr, self.command))}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        self.process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("smollm2", "tiny"), default="smollm2")
    parser.add_argument("--rows", default="demo", help="'demo', or ROWSxTOKENS of a micro-batch")
    parser.add_argument("--micro", type=int, default=8, help="with --rows demo: rows per micro-batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps per round")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker, args.model, args.rows, args.micro)
    flags = ["--model", args.model, "--rows", args.rows, "--micro", str(args.micro)]
    timed = {mode: Worker(mode, flags, {}) for mode in MODES}
    answers: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for round_ in range(args.rounds + 1):
        for mode, worker_ in timed.items():
            answers[mode].append(worker_.steps(args.steps if round_ else 1))
    for worker_ in timed.values():
        worker_.close()
    extra_mb = {}
    for mode in MODES:
        worker_ = Worker(mode, flags, RETURNING_MALLOC)
        extra_mb[mode] = worker_.steps(3)["extra"]
        worker_.close()
    import torch

    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, fp32")
    print(f"{args.model}, rows {args.rows}, {args.rounds} rounds of {args.steps} steps")
    print(f"| {'one training step':18} | tokens/s | ratio | extra MB | ratio | as malloc keeps it |")
    print(f"|{'-' * 20}|---------:|------:|---------:|------:|-------------------:|")
    base: tuple[float, float] | None = None
    for mode, answer in answers.items():
        speed = statistics.median(a["tokens"] / a["seconds"] for a in answer[1:])
        base = base or (speed, extra_mb[mode])
        print(
            f"| {mode:18} | {speed:8.0f} | {speed / base[0]:5.2f} "
            f"| {extra_mb[mode]:8.0f} | {extra_mb[mode] / base[1]:5.2f} | {answer[-1]['extra']:18.0f} |"
        )


if __name__ == "__main__":
    main()
