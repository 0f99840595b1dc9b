"""Does a curriculum help? Five ways to train on the same rows, at equal tokens, over five seeds, on two data sets.

    python benchmarks/curriculum.py --set demo            # 25 runs of about a minute and a half on two cores
    python benchmarks/curriculum.py --set comve           # needs ../shared/data; 25 runs of about three minutes
    python benchmarks/curriculum.py --set demo --model tiny --seeds 2 --tokens 4000      # a smoke test, two minutes

none             every row, shuffled
curriculum       easy first: a pool that grows from the easiest quarter to all rows (root pacing) over 60 % of the run
anti             the same, hardest first
random pool      the same growing pool in random order: the baseline a curriculum must beat (Wu et al. 2020)
moving weights   every row, shuffled; the classification weight rises from 0.2 to 1 on a cosine (others: constant)

Difficulty is length, rarity and margin, ranked within the class. The number of steps is set so that each method trains
on the same number of tokens, to within one step. AUROC and generation loss are measured on the dev rows after the last
step; differences to "none" have 95 % intervals of a paired bootstrap over seeds and dev rows (generation loss: over
seeds). Finished runs are kept under --runs, so a benchmark that was killed continues with the missing ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

GROWING = '[{{"name": "grow", "epochs": {grow}, "pacing": "root", "start": 0.25}}, {{"name": "all", "epochs": {rest}}}]'
ARMS: dict[str, dict[str, str]] = {
    "none": {},
    "curriculum": {"curriculum.order": "easy_first"},
    "anti": {"curriculum.order": "hard_first"},
    "random pool": {"curriculum.order": "random"},
    "moving weights": {"objectives.schedule": "cosine", "objectives.classification.range": "[0.2, 1.0]"},
}
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def flags(name: str, arm: str, seed: int, model: str, output: Path, epochs: float) -> list[str]:
    """The settings of one run; ``epochs`` is its length."""
    settings = {
        "output_dir": str(output),
        "overwrite": "true",
        "seed": str(seed),
        "model.top_layers": "8",
        "train.epochs": f"{epochs:.6f}",
        "train.eval_every": "null",
        "checkpoint.keep_last": "1",
        "curriculum.difficulty": '{"length": 1, "rarity": 1, "margin": 1}',
        **ARMS[arm],
    }
    if name == "comve":
        settings |= {
            "data.train": str(SHARED / "comve/train.jsonl"),
            "data.dev": str(output.parents[1] / "comve-dev.jsonl"),
            "data.labels": '["A", "B"]',
            "data.positive_label": "B",
            "prompt.system": "Common sense.",
            "prompt.question": "Which one is against common sense, A or B, and why?",
        }
    if model == "tiny":
        settings |= {"model.backbone": str(output.parents[1] / "tiny"), "model.top_layers": "2"}
    if "curriculum.order" in ARMS[arm]:
        settings["curriculum.stages"] = GROWING.format(grow=f"{0.6 * epochs:.6f}", rest=f"{0.4 * epochs:.6f}")
    return [f"--{key}={value}" for key, value in settings.items()]


def epochs_for(tokens: int, name: str, arm: str, seed: int, model: str, output: Path) -> float:
    """The number of epochs in which a method trains on this many tokens, by planning the run."""
    from clsgen_dist.config import parse_settings
    from clsgen_dist.data.encode import Encoder
    from clsgen_dist.model.backbone import backbone_path, load_tokenizer
    from clsgen_dist.training.datasets import open_datasets
    from clsgen_dist.training.sampling_plan import plan_stream

    epochs, rows = 1.0, None
    for _ in range(6):
        settings = parse_settings(flags(name, arm, seed, model, output, epochs), default_config="configs/demo.yaml")
        if rows is None:
            encoder = Encoder(
                load_tokenizer(backbone_path(settings.model.backbone)),
                **vars(settings.prompt),
                max_prompt_length=settings.data.max_prompt_length,
            )
            rows = open_datasets(settings.data, encoder, None)
        stream = plan_stream(settings, rows, rank=0, world_size=1)
        planned = sum(int(stream.bins(step)[2].sum()) for step in range(stream.steps))
        if abs(planned - tokens) < 0.01 * tokens:
            break
        epochs *= tokens / planned
    return epochs


def worker(name: str, arm: str, seed: int, model: str, output: Path, tokens: int) -> None:
    """One run; writes the results of its last evaluation to ``result.npz``."""
    from clsgen_dist.config import parse_settings
    from clsgen_dist.training import trainer

    epochs = epochs_for(tokens, name, arm, seed, model, output)
    settings = parse_settings(flags(name, arm, seed, model, output, epochs), default_config="configs/demo.yaml")
    evaluations: list[Any] = []
    evaluate = trainer.evaluate

    def keep(*args: Any, **options: Any) -> Any:
        evaluations.append(evaluate(*args, **options))
        return evaluations[-1]

    trainer.evaluate = keep  # type: ignore[assignment]
    start = time.perf_counter()
    trainer.train(settings)
    last = evaluations[-1]
    np.savez(
        output / "result.npz",
        logits=last.logits_NK,
        labels=last.labels,
        losses=[last.losses["generation"], last.losses["classification"]],
        seconds=time.perf_counter() - start,
        epochs=epochs,
    )


def prepare(runs: Path, name: str, model: str, dev_rows: int) -> None:
    """Write the dev rows used for evaluation, and the tiny model."""
    runs.mkdir(parents=True, exist_ok=True)
    if name == "comve":
        if not SHARED.is_dir():
            sys.exit(f"needs the real data sets in {SHARED}")
        lines = (SHARED / "comve/dev.jsonl").read_text().splitlines(True)[:dev_rows]
        (runs / "comve-dev.jsonl").write_text("".join(lines))
    if model == "tiny" and not (runs / "tiny").exists():
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from clsgen_dist.model.backbone import backbone_path, load_tokenizer

        tokenizer = load_tokenizer(backbone_path("demo:smollm2-135m"))
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4
        )
        LlamaForCausalLM(config).save_pretrained(runs / "tiny")
        tokenizer.save_pretrained(runs / "tiny")


def auroc(result: Any, rows: np.ndarray | None = None) -> float:
    from sklearn.metrics import roc_auc_score

    margin, label = result["logits"][:, 1] - result["logits"][:, 0], result["labels"]
    if rows is not None:
        margin, label = margin[rows], label[rows]
    return float(roc_auc_score(label, margin))


def interval(ours: list[Any], base: list[Any], draws: int = 1000) -> tuple[float, float, float]:
    """Mean AUROC difference over seeds, and its 95 % paired bootstrap interval over seeds and rows."""
    rng = np.random.default_rng(0)
    rows = len(base[0]["labels"])
    same = all(np.array_equal(r["labels"], base[0]["labels"]) for r in base)  # the demo's split depends on the seed
    found = []
    for _ in range(draws):
        chosen = rng.integers(len(base), size=len(base))
        at = rng.integers(rows, size=rows)
        differences = []
        for seed in chosen:
            mine = at if same else rng.integers(rows, size=rows)
            differences.append(auroc(ours[seed], mine) - auroc(base[seed], mine))
        found.append(np.mean(differences))
    mean = float(np.mean([auroc(a) - auroc(b) for a, b in zip(ours, base, strict=True)]))
    return mean, *(float(q) for q in np.quantile(found, [0.025, 0.975]))


def seed_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of paired differences, and its 95 % bootstrap interval over seeds."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(10_000, len(values)))].mean(axis=1)
    return float(values.mean()), *(float(q) for q in np.quantile(means, [0.025, 0.975]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=("demo", "comve"), default="demo")
    parser.add_argument("--model", choices=("smollm2", "tiny"), default="smollm2")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=30_000, help="training tokens of each run")
    parser.add_argument("--dev-rows", type=int, default=300, help="comve: number of dev rows used for evaluation")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-curriculum"))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    runs = args.runs / f"{args.model}-{args.tokens}"
    if args.worker:
        arm, seed = args.worker
        output = runs / args.set / f"{arm.replace(' ', '-')}-{seed}"
        return worker(args.set, arm, int(seed), args.model, output, args.tokens)
    prepare(runs, args.set, args.model, args.dev_rows)
    results: dict[str, list[Any]] = {arm: [] for arm in ARMS}
    for seed in range(args.seeds):
        for arm in ARMS:
            folder = runs / args.set / f"{arm.replace(' ', '-')}-{seed}"
            if not (folder / "result.npz").exists():
                command = [sys.executable, __file__, *sys.argv[1:], "--worker", arm, str(seed)]
                done = subprocess.run(
                    command, env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ}, capture_output=True, text=True
                )
                if done.returncode:
                    sys.exit(f"{arm}, seed {seed} failed:\n{done.stderr[-3000:]}")
            results[arm].append(dict(np.load(folder / "result.npz")))
            print(f"seed {seed} {arm}: AUROC {auroc(results[arm][-1]):.3f}", file=sys.stderr, flush=True)
    report(args, results)


def report(args: argparse.Namespace, results: dict[str, list[Any]]) -> None:
    import torch

    rows = len(results["none"][0]["labels"])
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.model}")
    print(f"{args.set}: {args.seeds} seeds, {args.tokens} tokens a run, {rows} dev rows")
    print("| method | AUROC | - none | generation loss | - none | seconds |")
    print("|---|--:|--:|--:|--:|--:|")
    base = results["none"]
    for arm, found in results.items():
        generation = np.array([float(r["losses"][0]) for r in found])
        cells = ["", ""]
        if arm != "none":
            mean, low, high = interval(found, base)
            cells[0] = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
            mean, low, high = seed_interval(generation - np.array([float(r["losses"][0]) for r in base]))
            cells[1] = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        print(
            f"| {arm} | {np.mean([auroc(r) for r in found]):.3f} | {cells[0]} | {generation.mean():.3f} | {cells[1]} "
            f"| {np.mean([float(r['seconds']) for r in found]):.0f} |"
        )
    print(json.dumps({arm: [round(auroc(r), 4) for r in found] for arm, found in results.items()}))


if __name__ == "__main__":
    main()
