"""Multi-label and ordinal labels of real sets, learnt end to end: train, export, calibrate, evaluate beside baselines.

    python benchmarks/label_spaces.py --set hatecheck     # which groups a post is about: seven classes, several or none
    python benchmarks/label_spaces.py --set pubmedqa      # does an abstract answer no, maybe or yes: ordered

Needs ../shared/data. SmolLM2-135M with LoRA on its upper 15 layers; about ten minutes on two cores for each set.
HateCheck names one target a post; in a third of the rows two posts are joined, and posts without a target give empty
sets, so that rows have none, one or two classes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SETTINGS: dict[str, dict[str, str]] = {
    "hatecheck": {
        "data.label_space": "multilabel",
        "data.labels": "null",
        "train.best_metric": "average_precision",
        "prompt.system": "Moderation.",
        "prompt.question": "Which groups is it about?",
    },
    "pubmedqa": {
        "data.label_space": "ordinal",
        "data.labels": '["no", "maybe", "yes"]',
        "train.best_metric": "quadratic_kappa",
        "data.max_prompt_length": "320",
        "data.max_explanation_length": "160",
        "prompt.system": "Medicine.",
        "prompt.question": "Does it answer no, maybe or yes, and why?",
    },
}


def targets(split: str, count: int) -> list[dict[str, Any]]:
    """HateCheck's posts with the groups they are about, some of them joined in pairs."""
    rng = random.Random(0)
    posts = [json.loads(line) for line in (SHARED / f"hatecheck/{split}.jsonl").open()]
    rows = []
    for number, post in enumerate(posts[:count]):
        parts = [post, rng.choice(posts)] if rng.random() < 1 / 3 else [post]
        named = sorted({target for part in parts if (target := part["meta"].get("target"))})
        text = " ".join(part["text"] for part in parts)
        reason = f"It is about {' and '.join(named)}." if named else "It is about no group."
        rows.append({"id": f"{split}-{number}", "text": text, "label": named, "explanation": reason})
    return rows


def answers(split: str, count: int) -> list[dict[str, Any]]:
    """PubMedQA as it is."""
    return [json.loads(line) for line in (SHARED / f"pubmedqa/{split}.jsonl").open()][:count]


def main() -> None:
    from clsgen_dist import calibrate, evaluate, export, load_settings, train

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETTINGS, default="hatecheck")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--test-rows", type=int, default=300)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-label-spaces"))
    args = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit(f"needs the real data sets in {SHARED}")
    folder = args.runs / args.set
    folder.mkdir(parents=True, exist_ok=True)
    make = targets if args.set == "hatecheck" else answers
    for split, count in (("train", 10_000), ("dev", args.test_rows), ("test", args.test_rows)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make(split, count)))
    settings = load_settings(
        "configs/demo.yaml",
        {
            "output_dir": str(folder / "run"),
            "overwrite": True,
            "data.train": str(folder / "train.jsonl"),
            "data.dev": str(folder / "dev.jsonl"),
            "data.positive_label": "null",
            "objectives.generation.weight": 1.0,
            "train.batch_size": 16,
            "train.epochs": 20,
            "train.max_steps": args.steps,
            "train.eval_every": args.steps // 2,
            **SETTINGS[args.set],
        },
    )
    train(settings)
    model = export(settings.output_dir, folder / "model")
    calibrate(model, str(folder / "dev.jsonl"))
    report = evaluate(model, str(folder / "test.jsonl"), str(folder / "train.jsonl"), explain=False)
    print(report.text())


if __name__ == "__main__":
    main()
