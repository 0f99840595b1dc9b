"""A whole training step on one GPU, against the usual implementation: tokens/s and peak memory.

    python benchmarks/step_gpu.py                                    # SmolLM2-135M, LoRA, 32 rows of 256 tokens, bf16
    python benchmarks/step_gpu.py --model tiny --device cpu --rows 2x64 --rounds 1   # a smoke test without a GPU

The modes are those of ``benchmarks/step_cpu.py``, in bf16 here: "usual loss" pads, and computes the logits of all
tokens; "clsgen" packs, and has the fused loss. Each mode runs in a process of its own. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODES = ("usual loss, ZeRO-3", "clsgen, no engine", "clsgen, ZeRO-3")


def worker(mode: str, args: argparse.Namespace) -> dict[str, float]:
    """Tokens per second, the median of the rounds, and peak MB beyond model and optimizer."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import step_cpu
    import torch

    from clsgen_dist.engine.world import process_group
    from clsgen_dist.model.attention import choose_attention
    from clsgen_dist.model.backbone import set_zero3_units

    on_gpu = args.device == "cuda"
    synchronize = torch.cuda.synchronize if on_gpu else lambda: None
    with contextlib.ExitStack() as stack:
        if mode.endswith("ZeRO-3"):
            stack.enter_context(process_group(600))
        dual, batches, _ = step_cpu.prepare(args.model, args.rows, 8, "padded")
        if mode.startswith("clsgen"):
            dual.lm.set_attn_implementation(
                choose_attention("auto", on_gpu=on_gpu, dtype=torch.bfloat16, packed=True, lm=dual.lm)
            )
        if mode.endswith("ZeRO-3"):
            set_zero3_units(dual)
        dual.to(device=args.device, dtype=torch.bfloat16).train()
        make = step_cpu.our_step if mode.startswith("clsgen") else step_cpu.baseline_step
        step = make(dual, engine=mode.endswith("ZeRO-3"), bf16=True, device=args.device)
        seconds: list[float] = []
        before = 0
        for round_ in range(args.rounds + 1):
            if round_ == 1 and on_gpu:  # the first round compiles
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            synchronize()
            start = time.perf_counter()
            for samples in batches:
                step(samples)
            synchronize()
            seconds.append(time.perf_counter() - start)
        peak = (torch.cuda.max_memory_allocated() - before) / 1e6 if on_gpu else step_cpu.peak_mb()
    tokens = sum(len(sample.prompt) + len(sample.explanation) for samples in batches for sample in samples)
    return {"tokens/s": tokens / statistics.median(seconds[1:]), "peak MB": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("smollm2", "tiny"), default="smollm2")
    parser.add_argument("--rows", default="32x256", help="ROWSxTOKENS of a micro-batch")
    parser.add_argument("--rounds", type=int, default=5, help="of eight steps")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--worker", choices=MODES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(args.worker, args)))
        return
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU found; benchmarks/step_cpu.py measures the CPU")
    chip = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"{chip}, torch {torch.__version__}, bf16, {args.model}, rows {args.rows}")
    print("| one training step | tokens/s | peak MB |\n|---|--:|--:|")
    figures: dict[str, Any] = {}
    for mode in MODES:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--worker", mode], stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            raise SystemExit(f"{mode} failed with {done.returncode}: its message is above")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        print(f"| {mode} | {found['tokens/s']:.0f} | {found['peak MB']:.0f} |", flush=True)
        figures |= {f"{mode}, {name}": value for name, value in found.items()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
