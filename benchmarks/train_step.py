"""Seconds and peak memory of a training step, to compare two trees: run it in each, in turns.

    python benchmarks/train_step.py                  # the demo's run on one rank and two threads, 12 steps: 40 seconds
    git worktree add /tmp/before REVISION; cp benchmarks/train_step.py /tmp/before/benchmarks/; cd /tmp/before && ...

Prints the median of the steps after the first two, and the process's peak memory.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS, WARM_UP = 14, 2


def main() -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.setdefault("MASTER_PORT", "29517")
    import torch

    torch.set_num_threads(2)
    from clsgen_dist.config import parse_settings
    from clsgen_dist.training import step, trainer

    seconds: list[float] = []
    take = step.TrainStep.__call__

    def timed(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = take(*args, **options)
        seconds.append(time.perf_counter() - start)
        return result

    step.TrainStep.__call__ = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--output_dir={folder}", "--overwrite=true", f"--train.max_steps={STEPS}", "--train.eval_every=null"]
        settings = parse_settings([*flags, "--data.dev=null", *sys.argv[1:]], default_config="configs/demo.yaml")
        trainer.train(settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{statistics.median(seconds[WARM_UP:]):.3f} s a step, {peak:.0f} MB at the peak")


if __name__ == "__main__":
    main()
