"""Dual-head loss on the CPU against other implementations: time and peak extra memory, forward and backward.

    python benchmarks/loss_cpu.py                 # the reference shape: N=2048, n=512, D=576, V=49152, fp32
    python benchmarks/loss_cpu.py --growth        # also how each scales with n, V and D

Each method runs in its own process, so that a peak belongs to one method. Each round runs all methods in turn, since
the speed of a machine drifts; the table gives medians, and ratios of medians. "extra" is peak resident memory above
what was resident before the first call, so it includes the gradients (4·(N·D + V·D) bytes with a trained LM weight).
Methods whose package is not installed are listed and skipped. cut-cross-entropy: ``pip install cut-cross-entropy``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

Loss = Callable[..., torch.Tensor]


def naive(h, w, index, target):
    return F.cross_entropy(h @ w.T, _masked_targets(h, index, target), reduction="sum")


def naive_supervised(h, w, index, target):
    return F.cross_entropy(h[index] @ w.T, target, reduction="sum")


def _masked_targets(h, index, target):
    full = torch.full((h.shape[0],), -100)
    full[index] = target
    return full


def torch_linear_cross_entropy(h, w, index, target):
    return F.linear_cross_entropy(h, w, _masked_targets(h, index, target), reduction="sum")


def cut_cross_entropy(h, w, index, target):
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(h, w, _masked_targets(h, index, target), impl="torch_compile", reduction="sum")


def clsgen(h, w, index, target):
    from clsgen_kernels import dual_head_loss

    head = torch.zeros(2, h.shape[1], requires_grad=True)
    rows = torch.arange(0, h.shape[0], 256)
    out = dual_head_loss(
        h,
        w,
        head,
        torch.zeros(2, requires_grad=True),
        supervised_index_n=index,
        target_n=target,
        class_index_S=rows,
        label_S=rows % 2,
        reduction="sum",
    )
    return out.generation_loss + out.class_loss.sum()


METHODS: dict[str, tuple[Loss, str]] = {
    "naive, all tokens": (naive, ""),
    "naive, supervised only": (naive_supervised, ""),
    "torch F.linear_cross_entropy": (torch_linear_cross_entropy, ""),
    "cut-cross-entropy torch_compile": (cut_cross_entropy, "cut_cross_entropy"),
    "clsgen dual_head_loss": (clsgen, ""),
    "naive, supervised only, W frozen": (naive_supervised, ""),
    "clsgen dual_head_loss, W frozen": (clsgen, ""),
}


def worker(method: str, tokens: int, supervised: int, width: int, vocabulary: int) -> None:
    """Time one call per line on stdin; print seconds and peak extra MB as JSON."""
    import resource

    loss, _ = METHODS[method]
    torch.manual_seed(0)
    h = torch.randn(tokens, width, requires_grad=True)
    w = torch.randn(vocabulary, width).mul_(width**-0.5).requires_grad_("frozen" not in method)
    index = torch.randperm(tokens)[:supervised].sort().values
    target = torch.randint(0, vocabulary, (supervised,))
    torch.randn(64, 64) @ torch.randn(64, 64)  # allocate BLAS buffers first: they do not count as the method's memory
    resident = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6  # noqa: SIM115
    for _ in sys.stdin:
        h.grad = w.grad = None
        start = time.perf_counter()
        loss(h, w, index, target).backward()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 * 1.024
        print(json.dumps({"seconds": seconds, "extra": peak - resident}), flush=True)


def measure(shape: tuple[int, int, int, int], rounds: int, methods: list[str]) -> dict[str, tuple[float, float]]:
    """Median seconds and peak extra MB per method, rounds interleaved, one warm-up each."""
    workers = {
        method: subprocess.Popen(
            [sys.executable, __file__, "--worker", method, *(str(s) for s in shape)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for method in methods
    }
    answers: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    for _ in range(rounds + 1):
        for method, process in workers.items():
            assert process.stdin and process.stdout
            process.stdin.write("go\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"{method} died; run it alone: {__file__} --worker {method!r} {shape}")
            answers[method].append(json.loads(line))
    for process in workers.values():
        process.communicate()
    return {
        m: (statistics.median(a["seconds"] for a in answer[1:]), answer[-1]["extra"]) for m, answer in answers.items()
    }


def table(shape: tuple[int, int, int, int], rounds: int, methods: list[str]) -> None:
    tokens, supervised, width, vocabulary = shape
    print(f"\nN={tokens} tokens, n={supervised} supervised, D={width}, V={vocabulary}, fp32")
    print(f"| {'method':34} | seconds | ratio | extra MB |\n|{'-' * 36}|--------:|------:|---------:|")
    results = measure(shape, rounds, methods)
    base = results[methods[0]][0]
    for method, (seconds, extra) in results.items():
        print(f"| {method:34} | {seconds:7.3f} | {seconds / base:5.2f} | {extra:8.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", type=int, nargs=4, default=(2048, 512, 576, 49152), metavar=("N", "n", "D", "V"))
    parser.add_argument("--growth", action="store_true", help="also run with n, V and D doubled, one at a time")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        method, *shape = args.worker
        return worker(method, *(int(s) for s in shape))
    import importlib.util

    methods = []
    for name, (_, package) in METHODS.items():
        if package and importlib.util.find_spec(package) is None:
            print(f"skipped: {name} ({package} is not installed)")
        else:
            methods.append(name)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.rounds} rounds")
    n_tokens, n, width, vocabulary = args.shape
    table((n_tokens, n, width, vocabulary), args.rounds, methods)
    if args.growth:
        for shape in ((n_tokens, 2 * n, width, vocabulary), (n_tokens, n, width, 2 * vocabulary)):
            table(shape, args.rounds, methods)
        table((n_tokens, n, 2 * width, vocabulary), args.rounds, methods)


if __name__ == "__main__":
    main()
