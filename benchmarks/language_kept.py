"""What training costs the backbone's language, by learning rate, loss and place: perplexity on general text.

    python benchmarks/language_kept.py                             # the demo's recipe and changes of it, 40 minutes
    python benchmarks/language_kept.py --arms shipped --interpolation 0.6         # exported part of the way
    python benchmarks/language_kept.py --arms shipped --steps 4 --tokens 2100     # smoke test

Each arm trains the demo's recipe with one change, in fp32 on one rank, exports it, and compares it with its backbone on
the same windows of general text (clsgen_dist.inference.capability). On the demo's test rows, AUROC and the share of
explanations whose evidence is true say what the change costs. Brackets: 95 % intervals, bootstrapped over windows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ARMS: dict[str, dict[str, str]] = {
    "shipped": {},
    "lr 5e-4": {"optim.lr": "5e-4"},
    "lr 2e-4": {"optim.lr": "2e-4"},
    "lr 1e-4": {"optim.lr": "1e-4"},
    "lr 3e-4": {"optim.lr": "3e-4"},
    "explanations only": {"objectives.classification.weight": "0"},
    "classes only": {"objectives.generation.weight": "0"},
    "upper 8 layers": {"model.top_layers": "8"},
    "rank 4": {"model.lora_rank": "4", "model.lora_alpha": "8"},
}


def worker(arm: str, steps: int | None, tokens: int, runs: Path, interpolation: float) -> None:
    """One run, measured; prints its result as JSON."""
    import contextlib

    from transformers import AutoModelForCausalLM

    from clsgen_dist import Predictor, export, train
    from clsgen_dist.config import parse_settings
    from clsgen_dist.data.demos.breast_cancer import demo_file, evidence_is_true
    from clsgen_dist.decoding.settings import DecodingSettings
    from clsgen_dist.evaluation.classification import auroc
    from clsgen_dist.inference.capability import general_text, measure_capability
    from clsgen_dist.model.backbone import backbone_path

    with contextlib.redirect_stdout(sys.stderr):
        output = runs / arm.replace(" ", "-")
        changes = {"output_dir": str(output), "overwrite": "true", "checkpoint.keep_last": "1", **ARMS[arm]}
        if steps:
            changes |= {"train.max_steps": str(steps), "train.eval_every": "null", "train.best_metric": "loss"}
        settings = parse_settings([f"--{k}={v}" for k, v in changes.items()], default_config="configs/demo.yaml")
        train(settings)
        predictor = Predictor(export(output, output / "model", interpolation=interpolation))
        rows = [json.loads(line) for line in demo_file("test").open()]
        predictions = predictor.predict(
            [row["text"] for row in rows], batch_size=50, decoding=DecodingSettings(redraws=0)
        )
        logits = np.array([p.logits for p in predictions])
        true = [evidence_is_true(r["text"], p.explanation or "") for r, p in zip(rows, predictions, strict=True)]
        labels = np.array([predictor.card.labels.index(row["label"]) for row in rows])
        backbone: Any = AutoModelForCausalLM.from_pretrained(backbone_path(settings.model.backbone), dtype="float32")
        kept = measure_capability(predictor.lm, backbone.eval(), predictor.tokenizer, general_text(), tokens=tokens)
        found = {
            "arm": arm,
            "auroc": auroc(predictor.space.probabilities(logits), labels, predictor.space.positive_index),
            "evidence": float(np.mean(true)),
            "tokens": kept.tokens,
            "perplexity": [kept.perplexity_backbone, kept.perplexity],
            "drop": [kept.drop_percent.value, kept.drop_percent.interval.low, kept.drop_percent.interval.high],
            "agreement": kept.agreement.value,
            "kl": kept.kl.value,
            "instructions": [kept.instructions_backbone, kept.instructions_trained, kept.instructions],
        }
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, help="optimizer steps of each run; default: the recipe's epochs")
    parser.add_argument("--tokens", type=int, default=25_000, help="of general text")
    parser.add_argument("--interpolation", type=float, default=1.0, help="as of clsgen export")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-language"))
    parser.add_argument("--worker", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker, args.steps, args.tokens, args.runs, args.interpolation)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, fp32; {args.steps or 'all'} steps; {args.tokens} tokens of text"
    )
    print(
        "| recipe | perplexity, backbone | trained | higher by, % | same next token | KL, nats | instructions | "
        "AUROC | evidence true |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for arm in args.arms:
        child = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--worker", arm], capture_output=True, text=True, check=False
        )
        if child.returncode:
            sys.exit(f"{arm} failed:\n{child.stderr[-3000:]}")
        run = json.loads(child.stdout.strip().splitlines()[-1])
        (before, after), (drop, low, high), (theirs, ours, asked) = run["perplexity"], run["drop"], run["instructions"]
        print(
            f"| {arm} | {before:.2f} | {after:.2f} | {drop:+.1f} [{low:+.1f}, {high:+.1f}] | {run['agreement']:.3f} | "
            f"{run['kl']:.3f} | {ours} of {asked} (backbone {theirs}) | {run['auroc']:.3f} | "
            f"{run['evidence']:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
