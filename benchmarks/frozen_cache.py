"""Steps that start from kept states, beside steps that compute the frozen layers: tokens/s, bytes gathered, losses.

    python benchmarks/frozen_cache.py               # the demo's recipe, and finetune=head: 10 minutes on two cores
    python benchmarks/frozen_cache.py --blocks 8    # longer

Both kinds of steps alternate within one run, six of each, so that whatever else the machine does meets both alike; the
first two of each six are not counted. One rank and one thread for the times, in seconds of the processor, which other
processes on the machine change less, and of the clock. Two ranks, with every parameter partitioned, for what a step
gathers: the complete tensors of its all-gathers, the fewest of a kind. And two runs of 12 steps, one of each kind, for
the losses, whose packings differ from those in which the states were kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {
    "the demo's: LoRA on 15 of 30 layers": [],
    "the demo's with finetune=head": ["--model.finetune=head", "--model.top_layers=null"],
}
BLOCK, WARM_UP, PAIR = 6, 2, 12


def rank(number: int, ranks: int, port: str, kinds: str, out: str, flags: list[str]) -> None:
    """One rank of a run; ``kinds``: the kind of each step's block in turn, like ``computed,kept``."""
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    torch.set_num_threads(1)
    from clsgen_dist.config import parse_settings
    from clsgen_dist.training import step, trainer

    class Gathered(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "c10d" and "allgather" in func._overloadpacket.__name__:
                complete = [t for t in torch.utils._pytree.tree_leaves(args[0]) if isinstance(t, torch.Tensor)]
                Gathered.bytes += sum(t.numel() * t.element_size() for t in complete)
            return func(*args, **(kwargs or {}))

    take, found, turns = step.TrainStep.__call__, [], kinds.split(",")

    def counted(self: Any, number: int, share: Any, *rest: Any, known: bool = False) -> Any:
        kind = turns[number // BLOCK % len(turns)]
        assert known or kind == "computed", "the states are not there"
        Gathered.bytes, start = 0, (time.process_time(), time.perf_counter())
        if ranks > 1:
            with Gathered():
                result = take(self, number, share, *rest, known=kind == "kept")
        else:
            result = take(self, number, share, *rest, known=kind == "kept")
        processor, clock = time.process_time() - start[0], time.perf_counter() - start[1]
        tokens = sum(batch.tokens for batch in share.batches)
        step_found = {"kind": kind, "warm": number % BLOCK >= WARM_UP, "rates": (tokens / processor, tokens / clock)}
        found.append({**step_found, "gathered": Gathered.bytes, "loss": result.total_loss})
        return result

    step.TrainStep.__call__ = counted  # type: ignore[method-assign]
    trainer.train(parse_settings(flags, default_config="configs/demo.yaml"))
    if number == 0:
        Path(out).write_text(json.dumps(found))


def run(folder: Path, ranks: int, kinds: str, steps: int, flags: list[str]) -> list[dict[str, Any]]:
    """The steps of a run."""
    zero = json.loads((ROOT / "ds_configs/zero3.json").read_text())
    zero["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (folder / "zero3.json").write_text(json.dumps(zero))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    mode = "off" if kinds == "computed" else "on"
    flags = [
        f"--output_dir={folder / 'run'}", "--overwrite=true", f"--deepspeed={folder / 'zero3.json'}", "--data.dev=null",
        "--train.eval_every=null", "--train.epochs=20", f"--train.max_steps={steps}", f"--train.cache_frozen={mode}",
        *flags,
    ]  # fmt: skip
    out = folder / "found.json"
    command = [sys.executable, __file__, "--rank"]
    started = [
        subprocess.Popen(
            [*command, str(n), str(ranks), port, kinds, str(out), *flags], cwd=ROOT, stderr=subprocess.PIPE
        )
        for n in range(ranks)
    ]
    said = [process.communicate()[1].decode() for process in started]
    if any(process.returncode for process in started):
        sys.exit("\n".join(text[-3000:] for text in said))
    found: list[dict[str, Any]] = json.loads(out.read_text())
    return found


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        number, ranks, port, kinds, out, *flags = sys.argv[2:]
        return rank(int(number), int(ranks), port, kinds, out, flags)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, default=2, help="blocks of six steps of each kind")
    own = parser.parse_args()
    print(f"{platform.machine()}, fp32, SmolLM2-135M, 8 rows a step\n")
    print(
        "| recipe | computed, tokens a CPU second | kept | ratio | ratio by the clock "
        "| MB gathered a step, computed | kept | losses apart |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, flags in RECIPES.items():
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            timed = run(place, 1, "computed,kept", 2 * own.blocks * BLOCK, flags)
            moved = run(place, 2, "computed,kept", 2 * BLOCK, flags)
            pair = [run(place, 1, kind, PAIR, flags) for kind in ("computed", "kept")]
        computed, kept = (
            [statistics.median(s["rates"][of] for s in timed if s["warm"] and s["kind"] == kind) for of in (0, 1)]
            for kind in ("computed", "kept")
        )
        sizes = [min(s["gathered"] for s in moved if s["warm"] and s["kind"] == k) / 1e6 for k in ("computed", "kept")]
        apart = max(abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(*pair, strict=True))
        print(
            f"| {name} | {computed[0]:,.0f} | {kept[0]:,.0f} "
            f"| {kept[0] / computed[0]:.2f} | {kept[1] / computed[1]:.2f} "
            f"| {sizes[0]:,.1f} | {sizes[1]:,.3f} | {apart:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
