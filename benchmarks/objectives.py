"""Do explanations help the label, and which way of joining the two losses? Real rows, equal tokens, several seeds.

    python benchmarks/objectives.py --set hatecheck --precision bf16 --jobs 2    # needs ../shared/data; 5 minutes a run
    python benchmarks/objectives.py --set hatecheck --precision bf16 --jobs 8 --micro-batch-tokens 8192    # on a GPU
    python benchmarks/objectives.py --set demo --tokens 30000 --part 2 --jobs 2    # the further terms
    python benchmarks/objectives.py --set demo --tokens 2000 --test-rows 40 --seeds 1 --arms before both    # smoke test
    python benchmarks/objectives.py --set demo --tokens 8000 --test-rows 8 --seeds 1 --part 2    # seconds and memory

classification only   the head alone; no explanation is learnt
generation only       the LM alone: the class's word comes first, and its probability is read from the LM head
before, after, both   dual head, read before the explanation, after it, or at both places (reported: before)
moving weights        before; the classification weight rises from 0.2 to 1 on a cosine
gradient_norm, uncertainty, loss_ratio      before; weights that adapt (objectives.balance.method)

Part 2 adds the terms that join explanation and decision to "before", each alone: consistency, consistency_after (with
both readings), evidence, contrast, preference (rejected: what speaks against the row's label), retention (replays half
of the general texts, the other half is measured); "all" adds all of them, "evidence and retention" these two. A set
whose rows have no evidence, or nothing that speaks against their label, lacks the terms that need it. Further columns,
of the test rows: the AUROC of the head's probability for the class that the explanation states, Cohen's kappa of this
class and the decision, and how often a reader tells the decision from the explanations without the classes' names
(simulatability). Of the dev rows: the share of the decision's attention on evidence, and how many pairs the model tells
apart better than the reference (where that is learnt). And the perplexity of general texts (docstrings of Python's
standard library; before training: above the table).

Every explanation begins with the class's name, so that it states a decision: "agreement" is the share of written
explanations whose class is the head's. All arms visit the same rows in the same order, as many as make --tokens tokens
of prompt and explanation. The model is SmolLM2-135M with LoRA on its upper 15 layers. After training, each run is
exported, recalibrated on the dev rows and measured on the test rows. "- classification only" is the difference in AUROC
with its 95 % interval of a bootstrap paired over seeds and test rows.

Finished runs are kept, a line each, in --results, so a benchmark that was killed continues with the missing ones.
--precision bf16 is twice as fast on a CPU with AMX and many times slower on one without; weights are kept in fp32.
"""

from __future__ import annotations

import argparse
import ast
import json
import multiprocessing
import os
import resource
import sys
import sysconfig
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from objectives_table import CURVES, measures, report

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WATCHED = {"objectives.evidence.weight": "1e-9", "data.replay_dev": "RUNS/general-dev.jsonl"}
"""So that every arm reports what evidence gets of the decision's attention, and the perplexity of general texts."""
ARMS: dict[str, dict[str, str]] = {
    "classification only": {"objectives.generation.weight": "0"},
    "generation only": {
        "objectives.classification.weight": "0",
        "model.head_init": "label_tokens",
        "optim.weight_decay": "0",
    },
    "before": {},
    "after": {"model.decide": "after"},
    "both": {"model.decide": "both"},
    "moving weights": {"objectives.schedule": "cosine"},
    "gradient_norm": {"objectives.balance.method": "gradient_norm"},
    "uncertainty": {"objectives.balance.method": "uncertainty", "objectives.balance.rate": "0.05"},
    "loss_ratio": {"objectives.balance.method": "loss_ratio", "objectives.balance.interval": "5"},
}
"""First part: ways of joining the two losses."""
PLAIN: dict[str, dict[str, str]] = {
    "classification only": {**ARMS["classification only"], **WATCHED},
    "before": WATCHED,
}
ADDITIONS: dict[str, dict[str, str]] = {
    "consistency": {"objectives.consistency.weight": "0.3", **WATCHED},
    "consistency_after": {"objectives.consistency_after.weight": "0.3", "model.decide": "both", **WATCHED},
    "evidence": {**WATCHED, "objectives.evidence.weight": "0.3"},
    "contrast": {"objectives.contrast.weight": "0.1", **WATCHED},
    "preference": {"objectives.preference.weight": "0.3", "data.columns.rejected": "rejected", **WATCHED},
    "retention": {"objectives.retention.weight": "1", "data.replay": "RUNS/general.jsonl", **WATCHED},
}
"""Second part: terms added to the dual head read before the explanation, each alone, and all of them."""
NEEDS = {"evidence": "evidence", "contrast": "evidence", "preference": "rejected"}
"""What the rows of a set must have for a term."""
SETS: dict[str, dict[str, str]] = {
    "hatecheck": {
        "data.labels": '["non-hateful", "hateful"]',
        "prompt.system": "Moderation.",
        "prompt.question": "Is it hateful or non-hateful, and why?",
    },
    "comve": {
        "data.labels": '["A", "B"]',
        "prompt.system": "Common sense.",
        "prompt.question": "Which one is against common sense, A or B, and why?",
    },
    "pubmedqa": {
        "data.labels": '["no", "maybe", "yes"]',
        "prompt.system": "Medicine.",
        "prompt.question": "Does it answer no, maybe or yes, and why?",
    },
    "contractnli": {
        "data.labels": '["contradiction", "entailment"]',
        "prompt.system": "Law.",
        "prompt.question": "Is it entailment or contradiction, and why?",
    },
    "demo": {},
}
HAS = {"demo": ("evidence", "rejected"), "contractnli": ("evidence",)}
"""What the rows of a set have beside text, label and explanation."""
LENGTHS = {"pubmedqa": ("320", "160"), "contractnli": ("400", "320")}
"""Tokens of the longest prompt and explanation, of the sets with long rows."""


def arms_of(part: int, name: str) -> dict[str, dict[str, str]]:
    """The arms of a part of the benchmark that a set has rows for, and their settings."""
    if part == 1:
        return ARMS
    has = HAS.get(name, ())
    alone = {arm: flags for arm, flags in ADDITIONS.items() if arm not in NEEDS or NEEDS[arm] in has}
    every = {key: value for flags in alone.values() for key, value in flags.items() if flags[key] != WATCHED.get(key)}
    arms = {**PLAIN, **alone, "all": WATCHED | every}
    if "evidence" in has:
        arms["evidence and retention"] = alone["retention"] | alone["evidence"]
    if "evidence" not in has:
        arms = {
            arm: {key: value for key, value in flags.items() if key != "objectives.evidence.weight"}
            for arm, flags in arms.items()
        }
    return arms


def prepare(runs: Path, name: str, test_rows: int) -> None:
    """Write the rows of a set, with the class's name before each explanation; of dev and test only the first rows."""
    runs.mkdir(parents=True, exist_ok=True)
    texts = general_texts()
    for file, some in (("general.jsonl", texts[::2]), ("general-dev.jsonl", texts[1::2])):
        (runs / file).write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    for split in ("train", "dev", "test"):
        if name == "demo":
            from clsgen_dist.data.demos.breast_cancer import demo_file

            source = demo_file(split)
        else:
            source = SHARED / name / f"{split}.jsonl"
        if not source.is_file():
            sys.exit(f"needs the real data sets in {SHARED}")
        rows = [json.loads(line) for line in source.open()]
        with (runs / f"{split}.jsonl").open("w") as file:
            for row in rows[:test_rows] if split != "train" else rows:
                given = row.get("explanations") or [row["explanation"]]
                stated = [f"{row['label'][:1].upper()}{row['label'][1:]}. {text}" for text in given]
                kept = {"id": row["id"], "text": row["text"], "label": row["label"], "explanations": stated}
                if row.get("counter_evidence"):
                    against = f"{row['label'].capitalize()}: {', '.join(row['counter_evidence'])}."
                    kept["rejected"] = f"{row['label'].capitalize()}. {against}"
                kept |= {name: row[name] for name in ("evidence", "counter_evidence") if name in row}
                if name == "contractnli":  # its explanations are the annotated spans of the text
                    kept["evidence"] = given
                file.write(json.dumps(kept) + "\n")


def general_texts() -> list[str]:
    """Prose that every machine has: the longer docstrings of the standard library's modules, up to 600 characters."""
    found = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = " ".join((ast.get_docstring(ast.parse(file.read_bytes())) or "").split())
        if len(text.split()) > 30:
            found.append(text[:600])
    return found


def settings_of(args: argparse.Namespace, arm: str, seed: int, runs: Path, steps: int | None) -> list[str]:
    """The flags of one run."""
    name = args.set
    longest = LENGTHS.get(name, ("128", "48"))
    settings = {
        "output_dir": str(runs / f"{arm.replace(' ', '-')}-{seed}"),
        "overwrite": "true",
        "seed": str(seed),
        "data.train": str(runs / "train.jsonl"),
        "data.dev": str(runs / "dev.jsonl"),
        "data.positive_label": "null",
        "model.backbone": args.backbone,
        "objectives.generation.weight": "1",
        "model.head_init": "zeros",
        "train.epochs": "20",
        "train.max_steps": str(steps) if steps else "null",
        "train.eval_every": "null",
        "train.batch_size": "16",
        "train.precision": args.precision,
        "train.micro_batch_tokens": str(args.micro_batch_tokens),
        "data.max_prompt_length": longest[0],
        "data.max_explanation_length": longest[1],
        "checkpoint.keep_last": "1",
        **SETS[name],
        **args.settings[arm],
    }
    return [f"--{key}={value.replace('RUNS', str(runs))}" for key, value in settings.items()]


def steps_for(args: argparse.Namespace, seed: int, runs: Path) -> int:
    """Optimizer steps in which a run of this seed visits so many tokens; the same for every arm."""
    from clsgen_dist.config import parse_settings
    from clsgen_dist.training.datasets import datasets_of_recipe
    from clsgen_dist.training.sampling_plan import plan_stream

    settings = parse_settings(settings_of(args, "before", seed, runs, None), default_config="configs/demo.yaml")
    stream = plan_stream(settings, datasets_of_recipe(settings), rank=0, world_size=1)
    visited = 0
    for step in range(stream.steps):
        visited += int(stream.bins(step)[2].sum())
        if visited >= args.tokens:
            return step + 1
    return stream.steps


def device() -> str:
    """The name of what runs train on."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def peak_memory() -> int:
    """Bytes: of the GPU's tensors, or of the process on a CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train_and_measure(args: argparse.Namespace, arm: str, seed: int) -> dict[str, Any]:
    """One run, measured."""
    runs = args.runs
    from clsgen_dist import Predictor, export, train
    from clsgen_dist.config import parse_settings
    from clsgen_dist.decoding.settings import DecodingSettings

    log_file = (runs / f"{arm.replace(' ', '-')}-{seed}.log").open("w")
    os.dup2(log_file.fileno(), 1)
    os.dup2(log_file.fileno(), 2)
    steps = steps_for(args, seed, runs)
    settings = parse_settings(settings_of(args, arm, seed, runs, steps), default_config="configs/demo.yaml")
    train(settings)
    peak = peak_memory()
    predictor = Predictor(export(settings.output_dir, Path(settings.output_dir) / "model"))
    log = training_log(Path(settings.output_dir))
    found: dict[str, Any] = {
        **{"arm": arm, "seed": seed, "tokens": args.tokens, "steps": steps, "precision": args.precision},
        "device": device(),
        "peak_memory": peak,
        "classes": predictor.card.labels,
    }
    if not args.untimed:
        ends = [event.wall_time for event in log.Scalars("loss/total")]
        found["seconds_a_step"] = float(np.median(np.diff(ends)))
    if arm != "classification only":
        found["generation_loss"] = float(log.Scalars("dev/loss/generation")[-1].value)  # nats a token
    for name in args.curves:
        if f"dev/{name}" in log.Tags()["scalars"]:
            found[name] = float(log.Scalars(f"dev/{name}")[-1].value)
            if name == "general/perplexity":
                found["perplexity_before"] = float(log.Scalars(f"dev/{name}")[0].value)
    for split in ("dev", "test"):
        rows = [json.loads(line) for line in (runs / f"{split}.jsonl").open()]
        writes = split == "test" and arm != "classification only"
        predictions = predictor.predict(
            [row["text"] for row in rows],
            batch_size=args.batch_size,
            explain=writes,
            decoding=DecodingSettings(redraws=0),
        )
        found[split] = {
            "logits": [[round(value, 4) for value in p.logits] for p in predictions],
            "labels": [predictor.card.labels.index(row["label"]) for row in rows],
        }
        if writes:
            found[split]["explanations"] = [p.explanation or "" for p in predictions]
            found[split]["stated"] = [stated_class(p.explanation or "", predictor.card.labels) for p in predictions]
        if writes and arm == "both":
            found[split]["after"] = [[round(v, 4) for v in p.after.logits] for p in predictions if p.after]
    return found


def stated_class(explanation: str, labels: list[str]) -> int:
    """The class whose name the explanation begins with; -1 for none."""
    named = [n for n, label in enumerate(labels) if explanation.lower().startswith(label.lower())]
    return max(named, key=lambda n: len(labels[n])) if named else -1


def training_log(output: Path) -> Any:
    """What the run wrote for TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0})
    log.Reload()
    return log


def parse_args() -> argparse.Namespace:
    """The command line; ``settings`` are those of each arm, ``curves`` the dev curves that are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, default="hatecheck")
    parser.add_argument("--backbone", default="demo:smollm2-135m")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=60_000, help="training tokens of each run")
    parser.add_argument("--test-rows", type=int, default=300, help="number of dev and of test rows used")
    parser.add_argument("--part", type=int, choices=(1, 2), default=1, help="1: joining the losses; 2: further terms")
    parser.add_argument("--arms", nargs="+", help="default: all of the part")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-objectives"))
    parser.add_argument("--results", type=Path, help="default: benchmarks/results/objectives-SET-TOKENS.jsonl")
    parser.add_argument(
        "--report", action="store_true", help="print the table of the runs there are, and train nothing"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--micro-batch-tokens", type=int, default=1024, help="more for a GPU; the sums are the same")
    parser.add_argument("--batch-size", type=int, default=50, help="rows predicted at a time")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; each gets its share of the cores")
    parser.add_argument("--untimed", action="store_true", help="record no seconds, where other work runs beside")
    args = parser.parse_args()
    args.settings = arms_of(args.part, args.set)
    args.curves = () if args.part == 1 else tuple(CURVES)
    args.arms = args.arms or list(args.settings)
    if unknown := [arm for arm in args.arms if arm not in args.settings]:
        parser.error(f"--arms has {unknown[0]!r}, expected some of {', '.join(args.settings)}")
    part = "" if args.part == 1 else "-terms"
    args.runs /= f"{args.set}-{args.tokens}{part}"
    args.results = args.results or (
        Path(__file__).parent / "results" / f"objectives-{args.set}-{args.tokens}{part}.jsonl"
    )
    return args


def main() -> None:
    args = parse_args()
    results = [json.loads(line) for line in args.results.open()] if args.results.exists() else []
    if args.report:
        if not results:
            sys.exit(f"{args.results} has no runs, expected some to report; run without --report first")
        return report(args, results)
    here = args.precision, device()
    other = {(r["precision"], r.get("device", "CPU")) for r in results} - {here}
    if other:
        sys.exit(
            f"{args.results} holds runs in {' on '.join(other.pop())}, and this is {' on '.join(here)}: "
            "give another --results"
        )
    prepare(args.runs, args.set, args.test_rows)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    failed = run_missing(args, results)
    if results:
        report(args, results)
    if failed:
        sys.exit(f"{failed} runs failed; start again to repeat them (logs: {args.runs})")


def run_missing(args: argparse.Namespace, results: list[dict[str, Any]]) -> int:
    """Add the runs that ``results`` lacks to it and to the file; how many failed."""
    done = {(r["arm"], r["seed"]) for r in results}
    missing = [(arm, seed) for seed in range(args.seeds) for arm in args.arms if (arm, seed) not in done]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.jobs)))
    # A fresh process for each run, forked from one that has imported everything and has not asked CUDA for GPUs.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload(["deepspeed", "clsgen_dist.training.trainer", "clsgen_dist.inference.predict"])
    failed = 0
    with ProcessPoolExecutor(args.jobs, mp_context=start, max_tasks_per_child=1) as pool:
        for future in as_completed([pool.submit(train_and_measure, args, arm, seed) for arm, seed in missing]):
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                sys.exit(f"a run's process was killed; start again to repeat what is missing (logs: {args.runs})")
            if error:
                failed += 1
                traceback.print_exception(error)
                continue
            found = future.result()
            with args.results.open("a") as file:
                file.write(json.dumps(found) + "\n")
            results.append(found)
            auroc = measures(found)["auroc"]
            print(f"seed {found['seed']} {found['arm']}: AUROC {auroc:.3f}", file=sys.stderr, flush=True)
    return failed


if __name__ == "__main__":
    main()
