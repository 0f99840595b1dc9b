"""The dual-head loss on a GPU: correctness first, then time and peak memory against the installed peers.

    python benchmarks/loss_gpu.py                    # heads of Llama-3 8B and 70B; 2048, 16384, 65536 supervised tokens
    python benchmarks/loss_gpu.py --heads 8b --supervised 1024 --rounds 20
    python benchmarks/loss_gpu.py --tiles            # speed of each kernel by tile, to choose launch parameters
    python benchmarks/loss_gpu.py --dry-run          # without a GPU: sizes and roofline only

Forward and backward, bf16, W trained, a quarter of the tokens supervised. First each method's loss is held against
float64 at a small size, and one that is wrong is left out. Rounds are interleaved over the methods; the table gives
medians, peak memory beyond inputs and gradients, and the time that ``clsgen_kernels.cost`` predicts for this chip.
Missing peers are listed and skipped: ``pip install liger-kernel cut-cross-entropy quack-kernels``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from clsgen_kernels import Execution, cost, dual_head_loss

HEADS = {"8b": 4096, "70b": 8192}
VOCABULARY = 128256
CLASSES, ROWS = 2, 16
SUPERVISED = (2048, 16384, 65536)
# Dense bf16 FLOP/s and bytes/s: vendors' data sheets, times 0.8 and 0.9, about what good kernels reach.
CHIPS = {"A100": (250e12, 1.8e12), "H100": (790e12, 3.0e12), "H200": (790e12, 4.3e12), "B200": (1800e12, 7.2e12)}

Step = Callable[[], torch.Tensor]


def inputs(tokens: int, width: int, device: str) -> dict[str, Any]:
    """Hidden states, weights and indices of one call."""
    generator = torch.Generator(device).manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator, device=device, dtype=torch.bfloat16)  # noqa: E731
    supervised = torch.randperm(tokens, generator=generator, device=device)[: tokens // 4].sort().values
    return {
        "hidden_ND": normal(tokens, width).requires_grad_(),
        "lm_weight_VD": (normal(VOCABULARY, width) * width**-0.5).requires_grad_(),
        "head_weight_CD": torch.zeros(CLASSES, width, device=device).requires_grad_(),
        "head_bias_C": torch.zeros(CLASSES, device=device).requires_grad_(),
        "supervised_index_n": supervised,
        "target_n": torch.randint(0, VOCABULARY, supervised.shape, generator=generator, device=device),
        "class_index_S": torch.arange(0, tokens, tokens // ROWS, device=device)[:ROWS],
        "label_S": torch.randint(0, CLASSES, (ROWS,), generator=generator, device=device),
    }


def methods(given: dict[str, Any]) -> dict[str, Step]:
    """Each method's generation loss (clsgen's also computes the classification head)."""
    import torch.nn.functional as F

    hidden, weight = given["hidden_ND"], given["lm_weight_VD"]
    index, target = given["supervised_index_n"], given["target_n"]
    labels = torch.full((hidden.shape[0],), -100, device=hidden.device)
    labels[index] = target

    def clsgen(**options: Any) -> Step:
        def step() -> torch.Tensor:
            out = dual_head_loss(**given, impl="triton", reduction="sum", execution=Execution(**options))
            return out.generation_loss + out.class_loss

        return step

    found: dict[str, Step] = {
        "naive, all tokens": lambda: F.cross_entropy((hidden @ weight.T).float(), labels, reduction="sum"),
        "naive, supervised only": lambda: F.cross_entropy((hidden[index] @ weight.T).float(), target, reduction="sum"),
        "clsgen": clsgen(),
        "clsgen, recomputed": clsgen(store_bytes=0),
        "clsgen, all logits stored": clsgen(store_bytes=2**40),
    }
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        found["Liger, all tokens"] = lambda: liger(weight, hidden, labels)
        found["Liger, supervised only"] = lambda: liger(weight, hidden[index], target)
        with contextlib.suppress(ImportError):  # releases since August 2026
            from liger_kernel.ops.cutedsl import LigerFusedLinearCrossEntropySM90Function as LigerSM90

            found["Liger CuTe, supervised only"] = lambda: LigerSM90.apply(hidden[index], weight, target).sum()
    if hasattr(F, "linear_cross_entropy"):
        found["torch, supervised only"] = lambda: F.linear_cross_entropy(hidden[index], weight, target, reduction="sum")
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        found["cut-cross-entropy"] = lambda: linear_cross_entropy(hidden, weight, labels, reduction="sum")
    if importlib.util.find_spec("quack") and importlib.util.find_spec("cutlass"):
        from quack.linear_cross_entropy import chunked_linear_cross_entropy

        found["quack"] = lambda: chunked_linear_cross_entropy(hidden[index], weight, target, reduction="sum")
    return found


def check(device: str) -> None:
    """Compare losses and gradients with float64 on a small shape (seconds); exits if they differ."""
    given = inputs(512, 1024, device)
    tensors = {k: v for k, v in given.items() if isinstance(v, torch.Tensor) and v.requires_grad}
    truth = {k: v.detach().double().requires_grad_() for k, v in tensors.items()}
    pairs = []
    for leaves, impl in ((tensors, "triton"), (truth, "reference")):
        out = dual_head_loss(**{**given, **leaves}, impl=impl)
        grads = torch.autograd.grad(out.generation_loss.sum() + out.class_loss.sum(), list(leaves.values()))
        pairs.append([out.generation_loss, out.class_loss, *grads])
    for name, got, expected in zip(("loss", "class loss", *tensors), *pairs, strict=True):
        error = float((got.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
        if not error < (1e-5 if "loss" in name else 1e-2):
            raise SystemExit(f"wrong on this chip: {name} differs from float64 by {error:.1e}; not measuring times")
        print(f"against float64, {name}: {error:.1e}")


def without_wrong(steps: dict[str, Step], given: dict[str, Any]) -> list[str]:
    """Names of the methods whose loss of a small input is within 1 % of float64; the others are reported."""
    hidden, weight = (given[name].detach().double() for name in ("hidden_ND", "lm_weight_VD"))
    logits = hidden[given["supervised_index_n"]] @ weight.T
    truth = float(torch.nn.functional.cross_entropy(logits, given["target_n"], reduction="sum"))
    right = []
    for name, step in steps.items():
        try:
            loss = float(step())
        except Exception as error:  # a peer that does not run on this chip or torch is a line of the report
            print(f"{name} failed, left out: {type(error).__name__}: {str(error).splitlines()[0][:150]}")
            continue
        if "clsgen" not in name and not abs(loss - truth) <= 1e-2 * truth:  # ours is checked by itself, with both heads
            print(f"{name} is wrong, left out: loss {loss:.1f}, in float64 {truth:.1f}")
            continue
        right.append(name)
    return right


def measure(steps: dict[str, Step], given: dict[str, Any], rounds: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds and peak extra MB of each method."""
    gradients = [v for v in given.values() if isinstance(v, torch.Tensor) and v.requires_grad]
    peaks = {}
    for name, step in list(steps.items()):
        try:
            step().backward()
        except Exception as error:  # a peer that does not run on this chip or torch is a line of the report
            print(f"{name} failed, left out: {type(error).__name__}: {str(error).splitlines()[0][:150]}")
            del steps[name]
            torch.cuda.empty_cache()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 2):
        for name, step in steps.items():
            for leaf in gradients:
                leaf.grad = None
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step().backward()
            end.record()
            torch.cuda.synchronize()
            kept = sum(leaf.grad.nbytes for leaf in gradients if leaf.grad is not None)
            peaks[name] = (torch.cuda.max_memory_allocated() - before - kept) / 1e6
            if round_ >= 2:
                times[name].append(start.elapsed_time(end))
    return {name: (statistics.median(t), peaks[name]) for name, t in times.items()}


_CANDIDATES = [
    *((128, 128, 64, 8, 4), (128, 128, 64, 4, 3), (128, 256, 64, 8, 3), (128, 256, 64, 8, 4), (256, 128, 64, 8, 3)),
    *((64, 256, 64, 4, 4), (64, 256, 64, 4, 3), (64, 256, 64, 4, 2)),
]
TILES = {
    "forward": _CANDIDATES,
    "forward, stored": _CANDIDATES,
    "gradient": _CANDIDATES,
    "gradient, stored": _CANDIDATES,
}
"""Candidates, ``rows, columns, depth, warps, stages``; all by descriptor."""


def tiles(tokens: int, width: int, rounds: int) -> None:
    """Print milliseconds and TFLOP/s of one pass by kernel and tile, and of the vendor's products of the same size."""
    from dataclasses import replace
    from functools import partial

    from clsgen_kernels import fused
    from clsgen_kernels.inputs import ClassOptions, GenerationOptions, HeadInputs, LMInputs
    from clsgen_kernels.launch import Tile, choose

    given = inputs(tokens, width, "cuda")
    with torch.no_grad():
        hidden, weight = given["hidden_ND"][given["supervised_index_n"]], given["lm_weight_VD"]
        lm = LMInputs(hidden, weight, given["target_n"], None, GenerationOptions(), VOCABULARY)
        pooled = given["hidden_ND"][given["class_index_S"]]
        head = HeadInputs(pooled, given["head_weight_CD"], given["head_bias_C"], given["label_S"], ClassOptions())
        n = hidden.shape[0]
        chosen = choose(hidden.device, hidden.dtype)
        upstream, lse = torch.ones(n, device="cuda"), torch.full((n,), 11.0, device="cuda")
        slab = chosen.slab(n, VOCABULARY, 2)
        space, wide = hidden.new_empty(n, slab), torch.zeros(n, width, device="cuda")
        print(f"\n| kernel, n={n}, D={width} | tile | ms | TFLOP/s |\n|---|---|--:|--:|")

        def timed(name: str, tile: str, step: Callable[[], Any], flops: float) -> None:
            try:
                step()
                torch.cuda.synchronize()
            except Exception as error:  # a tile that does not fit is a result
                print(f"| {name} | {tile} | {type(error).__name__}: {str(error)[:60]} | |", flush=True)
                return
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(rounds):  # queued one behind the other: the host's time does not count
                step()
            end.record()
            torch.cuda.synchronize()
            ms = start.elapsed_time(end) / rounds
            print(f"| {name} | {tile} | {ms:.2f} | {flops / ms / 1e9:.0f} |", flush=True)

        one_pass, part = 2.0 * n * width * VOCABULARY, 2.0 * n * width * slab
        stored_snK = hidden.new_empty(-(-VOCABULARY // slab), n, slab)
        fused.forward(lm, head, stored_snK=stored_snK)
        for kernel, candidates in TILES.items():
            for numbers in candidates:
                launch = replace(chosen, **{kernel.split(",")[0]: Tile(*numbers, descriptors=True)})
                if kernel.startswith("gradient"):
                    logits = stored_snK[0] if "stored" in kernel else None
                    step = partial(fused.gradient_of_logits, lm, lse, upstream, logits, space, 0, launch)
                    timed(kernel, str(numbers), step, part)
                else:
                    kept = stored_snK if "stored" in kernel else None
                    step = partial(fused.forward, lm, head, launch=launch, stored_snK=kept)
                    timed(kernel, str(numbers), step, one_pass)
        out = torch.empty_like(weight[:slab])
        timed("dW, library", f"{slab} columns", lambda: torch.mm(space.T, hidden, out=out), part)
        timed(
            "dH, library",
            f"{slab} columns",
            lambda: torch.addmm(wide, space, weight[:slab], out_dtype=torch.float32, out=wide),
            part,
        )
        timed("logits, library", "", lambda: torch.mm(hidden, weight[:slab].T, out=space), part)


def modelled(n: int, width: int) -> dict[str, cost.Cost]:
    """The cost model's estimate for each method that it covers."""
    tokens = 4 * n
    return {
        "naive, all tokens": cost.naive(tokens, width, VOCABULARY),
        "naive, supervised only": cost.naive(n, width, VOCABULARY),
        "clsgen": cost.ours(n, width, VOCABULARY),
        "clsgen, recomputed": cost.ours(n, width, VOCABULARY, store_bytes=0),
        "clsgen, all logits stored": cost.ours(n, width, VOCABULARY, store_bytes=2**40),
        "Liger, all tokens": cost.liger(tokens, width, VOCABULARY),
        "Liger, supervised only": cost.liger(n, width, VOCABULARY),
        "Liger CuTe, supervised only": cost.chunked(n, width, VOCABULARY, 1024),
        "cut-cross-entropy": cost.cce(n, width, VOCABULARY),
        "quack": cost.chunked(n, width, VOCABULARY, 4096),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS))
    parser.add_argument("--supervised", type=int, nargs="+", default=SUPERVISED, help="of four times as many tokens")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tiles", action="store_true", help="compare tiles of each kernel instead of methods")
    parser.add_argument("--dry-run", action="store_true", help="print only the cost model, for an H100")
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        raise SystemExit("no GPU found; --dry-run prints sizes and roofline, benchmarks/loss_cpu.py measures the CPU")
    chip = "H100" if args.dry_run else torch.cuda.get_device_name()
    speeds = next((s for name, s in CHIPS.items() if name in chip), None)
    print(f"{'not measured: the model for' if args.dry_run else 'measured on'} {chip}, torch {torch.__version__}, bf16")
    right = None
    if not args.dry_run:
        check("cuda")
        small = inputs(512, 1024, "cuda")
        right = without_wrong(methods(small), small)
    for n, head in itertools.product(args.supervised, args.heads):
        width = HEADS[head]
        if args.tiles:
            tiles(4 * n, width, args.rounds)
            continue
        print(f"\nLlama-3 {head} head: N={4 * n}, n={n}, D={width}, V={VOCABULARY}")
        print(f"| {'method':27} | ms | extra MB | roofline ms | TFLOP | GB moved | extra MB, model |")
        print(f"|{'-' * 29}|---:|---------:|------------:|------:|---------:|----------------:|")
        model = modelled(n, width)
        measured: dict[str, tuple[float, float]] = {}
        if right is not None:
            given = inputs(4 * n, width, "cuda")
            found = methods(given)
            measured = measure({name: found[name] for name in right}, given, args.rounds)
        for name in measured or model:
            ms, extra = (f"{v:.1f}" for v in measured[name]) if name in measured else ("-", "-")
            c = model.get(name)
            line = f"{c.flops / 1e12:.1f} | {c.moved_bytes / 1e9:.0f} | {c.extra_bytes / 1e6:.0f}" if c else "- | - | -"
            roof = f"{c.seconds(*speeds) * 1e3:.1f}" if c and speeds else "-"
            print(f"| {name:27} | {ms} | {extra} | {roof} | {line} |")
        missing = [m for m in ("liger_kernel", "cut_cross_entropy", "quack") if not importlib.util.find_spec(m)]
        if missing and not args.dry_run:
            print(f"not installed, skipped: {', '.join(missing)}")


if __name__ == "__main__":
    main()
