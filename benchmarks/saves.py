"""How long a save stalls training: checkpoints written in the background, and before training continues.

    python benchmarks/saves.py [--top_layers 8] [--ranks 2]

Trains the top layers of the embedded backbone on the demo's rows and saves them, with both moments, every second step.
Runs alternate between checkpoint.asynchronous true and false; stalls and step times come from their TensorBoard logs.
"""

from __future__ import annotations

import argparse
import json
import platform
import socket
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent


def run(output: Path, asynchronous: bool, top_layers: int, ranks: int) -> tuple[list[float], float, float]:
    """Stall of each save (s), median step time (s), and size of a checkpoint (MB)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = {
        "output_dir": output, "model.finetune": "full", "model.top_layers": top_layers, "data.dev": "null",
        "train.batch_size": 8, "train.max_steps": 13, "train.eval_every": "null", "checkpoint.every": 2,
        "checkpoint.keep_last": 2, "checkpoint.asynchronous": str(asynchronous).lower(),
    }  # fmt: skip
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(ranks), "--master_port", port]
    command += ["train.py", *(f"--{key}={value}" for key, value in settings.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-1000:] + done.stderr[-3000:])
    log = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0})
    log.Reload()
    stalls = [event.value for event in log.Scalars("checkpoint/stall_seconds")]
    times = [event.wall_time for event in log.Scalars("loss/total")]
    marker = sorted((output / "checkpoints").glob("step-*/committed.json"))[-1]
    size = sum(file["bytes"] for file in json.loads(marker.read_text())["files"].values())
    return stalls, median(b - a for a, b in pairwise(times)), size / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--top_layers", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=2)
    own = parser.parse_args()
    print(f"{platform.machine()}, {own.ranks} ranks, top {own.top_layers} layers of SmolLM2-135M\n")
    print("| checkpoint.asynchronous | saves | median stall, s | longest, s | a step, s | a checkpoint, MB |")
    print("|---|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for number, asynchronous in enumerate((True, False, True, False)):
            stalls, step, size = run(Path(folder) / str(number), asynchronous, own.top_layers, own.ranks)
            name = str(asynchronous).lower()
            print(
                f"| {name} | {len(stalls)} | {median(stalls):.3f} | {max(stalls):.3f} | {step:.2f} | {size:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
