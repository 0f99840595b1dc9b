"""torch.compile of decoder layers on the CPU, under ZeRO-3 and without an engine: does a training step get faster?

    python benchmarks/compiled_layers.py      # four layers of SmolLM2-135M, the demo's rows: 10 to 20 minutes

``layer`` compiles each decoder layer, ``mlp`` its feed-forward part, for dynamic shapes: every packed batch has
another length. Each case runs in a process of its own. There, every batch is stepped through twice, compiled and not
(``torch.compiler.set_stance``), so the ratio is not one of two machines' states. The first steps, which compile, are
given apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES = ("mlp, no engine", "layer, no engine", "mlp, ZeRO-3", "layer, ZeRO-3")
LAYERS, WARM_UP = 4, 4


def cut_backbone(folder: str) -> None:
    """SmolLM2's first layers as a backbone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from clsgen_dist.model.smollm2 import smollm2_folder

    lm: Any = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=torch.float32)
    lm.model.layers = lm.model.layers[:LAYERS]
    lm.config.num_hidden_layers = LAYERS
    lm.config.layer_types = None
    lm.save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2_folder()).save_pretrained(folder)


def worker(case: str, backbone: str, rounds: int) -> dict[str, Any]:
    """Seconds of a step, compiled and not; what dynamo counted."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import step_cpu
    import torch
    from torch._dynamo.utils import counters

    from clsgen_dist.engine.world import process_group
    from clsgen_dist.model import backbone as backbones

    backbones.backbone_path = lambda *_: backbone  # type: ignore[assignment]
    what, _, engine = case.partition(", ")
    torch._dynamo.config.recompile_limit = 16 * LAYERS  # each layer's hooks are another module's
    with contextlib.ExitStack() as stack:
        if engine == "ZeRO-3":
            stack.enter_context(process_group(600))
        dual, batches, _ = step_cpu.prepare("smollm2", "demo", 8, "packed")
        if engine == "ZeRO-3":
            backbones.set_zero3_units(dual)
        dual.train()
        for layer in backbones._layer_stack(dual.lm)[1]:
            (layer.mlp if what == "mlp" else layer).compile(dynamic=True)
        step = step_cpu.our_step(dual, engine=engine == "ZeRO-3")
        seconds: dict[str, list[float]] = {"default": [], "force_eager": []}
        for round_ in range(WARM_UP + rounds):
            for stance, taken in seconds.items():
                with torch.compiler.set_stance(stance):  # type: ignore[no-untyped-call]
                    start = time.perf_counter()
                    step(batches[round_ % len(batches)])
                    taken.append(time.perf_counter() - start)
    compiled, eager = (statistics.median(taken[WARM_UP:]) for taken in seconds.values())
    return {
        "compiled": compiled,
        "eager": eager,
        "compiling": sum(seconds["default"][:WARM_UP]),
        "graphs": counters["stats"].get("unique_graphs", 0),
        "breaks": sum(counters["graph_break"].values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(*args.worker, args.rounds)))
        return
    print("| compiled | ms, compiled | ms, not | ratio | s, first steps | graphs | graph breaks |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        cut_backbone(folder)
        for case in CASES:
            command = [sys.executable, __file__, "--rounds", str(args.rounds), "--worker", case, folder]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"| {case} | failed: {done.stderr.strip().splitlines()[-1][:100]} | | | | | |", flush=True)
                continue
            found = json.loads(done.stdout.strip().splitlines()[-1])
            ratio = found["compiled"] / found["eager"]
            print(
                f"| {case} | {1e3 * found['compiled']:.0f} | {1e3 * found['eager']:.0f} | {ratio:.2f} "
                f"| {found['compiling']:.0f} | {found['graphs']} | {found['breaks']} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
