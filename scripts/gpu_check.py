"""Everything that only a GPU can show, in one command; writes one page of results to send back.

    make gpu-check                                        # 25 to 60 minutes; needs one GPU, and checks more with two
    .venv/bin/python scripts/gpu_check.py --only loss     # the steps whose name contains a word

Writes ``results.md``, ``results.json`` and the log of each step into ``runs/gpu-check/TIME``. Each step runs in
processes of its own within a time limit; one that fails or hangs is ended, with all that it started, and the others go
on. Exit code 0: no step failed; 1: some did; 2: ``--only`` names no step; 3: no GPU was found; 143: SIGTERM ended it
and the step that ran. A missed aim is not a failure: the page lists it.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limited_steps import ROOT, Aim, Figures, Outcome, Result, Step, run

PASSED_CODE, FAILED_CODE, NO_GPU_CODE, TERMINATED_CODE = 0, 1, 3, 128 + signal.SIGTERM
PACKAGES = [
    *("torch", "triton", "deepspeed", "transformers", "flash-attn", "flash-attn-3", "bitsandbytes", "peft"),
    *("liger-kernel", "cut-cross-entropy", "quack-kernels", "nvidia-nccl-cu12", "nvidia-nccl-cu13"),
]


@dataclass(frozen=True)
class Devices:
    """The GPUs of this machine."""

    count: int
    names: tuple[str, ...] = ()
    driver: str = ""
    why_none: str = ""


def probe(limit_s: float = 120) -> Devices:
    """The GPUs that torch sees, asked in another process: a broken driver can hang it."""
    code = (
        "import json, torch; n = torch.cuda.device_count() if torch.cuda.is_available() else 0; "
        "print(json.dumps([torch.cuda.get_device_name(i) for i in range(n)]))"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=limit_s)
        names = tuple(json.loads(done.stdout.strip().splitlines()[-1])) if done.returncode == 0 else ()
    except subprocess.TimeoutExpired:
        return Devices(0, why_none=f"torch did not answer within {limit_s:.0f} s whether there is one")
    why = "" if names else (done.stderr.strip().splitlines() or ["torch.cuda.is_available() is False"])[-1]
    return Devices(len(names), names, _driver() if names else "", why)


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.strip().split("\n")[0]
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def environment(devices: Devices) -> dict[str, str]:
    """Chips, driver, and versions of what computes."""
    found = {"GPUs": ", ".join(devices.names), "driver": devices.driver, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            if not package.startswith("nvidia"):
                found[package] = "not installed"
    try:
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        found["revision"] = subprocess.run(git, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        found["revision"] = f"not known ({type(error).__name__})"
    return found


# --- figures


def tests_passed(folder: Path, log: str) -> Figures:
    """Counts of pytest's last line; ValueError if no test ran."""
    counts = {word: float(number) for number, word in re.findall(r"(\d+) (passed|skipped)", log.splitlines()[-1])}
    if not counts.get("passed"):
        raise ValueError(f"no test ran: {log.splitlines()[-1]}")
    return counts


def loss_table(folder: Path, log: str) -> Figures:
    """Milliseconds and extra MB of each method and head of ``benchmarks/loss_gpu.py``; ValueError if there are none."""
    found, head = {}, ""
    for line in log.splitlines():
        if title := re.search(r"(\w+) head: N=(\d+), n=(\d+)", line):
            head = f"{title[1]} n={title[3]}"
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if head and line.startswith("|") and len(cells) > 2 and re.fullmatch(r"[\d.]+", cells[1]):
            found[f"{head} {cells[0]}, ms"] = float(cells[1])
            if re.fullmatch(r"-?[\d.]+", cells[2]):
                found[f"{head} {cells[0]}, extra MB"] = float(cells[2])
    if not found:
        raise ValueError("the benchmark's table has no figures")
    return found


def predicted(folder: Path, log: str) -> Figures:
    """How many rows have a prediction and an explanation; ValueError if one has none."""
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    failed = [row["error"] for row in rows if "error" in row]
    if failed or not rows:
        raise ValueError(f"{len(failed)} of {len(rows)} rows have no prediction: {failed[:1]}")
    return {"rows": float(len(rows)), "with explanation": float(sum(bool(row["explanation"]) for row in rows))}


def step_table(folder: Path, log: str) -> Figures:
    """The figures that ``benchmarks/step_gpu.py`` prints as JSON on its last line."""
    return {str(name): float(value) for name, value in json.loads(log.strip().splitlines()[-1]).items()}


def training(name: str) -> Callable[[Path, str], Figures]:
    """Reads speed, peak memory and both losses, first and last, of a run's TensorBoard log."""

    def read(folder: Path, log: str) -> Figures:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        series: dict[str, list[float]] = {}
        for file in sorted((folder / name).rglob("*tfevents*")):
            events = EventAccumulator(str(file))
            events.Reload()
            for tag in events.Tags()["scalars"]:
                series.setdefault(tag, []).extend(event.value for event in events.Scalars(tag))
        figures = {
            "steps": float(len(series["loss/generation"])),
            "tokens/s": statistics.median(series["speed/tokens_per_second"]),
            "peak GiB": max(series["memory/peak_gib"]),
        }
        for loss in ("generation", "classification"):
            values = series[f"loss/{loss}"]
            few = max(1, len(values) // 10)
            figures[f"{loss} loss, first"] = statistics.mean(values[:few])
            figures[f"{loss} loss, last"] = statistics.mean(values[-few:])
        return figures

    return read


# --- the steps


def _pytest(*words: str) -> tuple[str, ...]:
    return ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", *words)


def _train(name: str, *words: str) -> tuple[str, ...]:
    return ("train.py", "--config", "configs/demo.yaml", f"--output_dir={{folder}}/{name}", "--data.dev=null",
            "--train.eval_every=null", "--train.micro_batch_tokens=8192", "--train.batch_size=64", *words)  # fmt: skip


def _five_minutes(ranks: int) -> tuple[Step, Step]:
    name, run_name = f"train on {ranks} GPU{'s' * (ranks > 1)}", f"run-{ranks}"
    command = _train(run_name, "--train.epochs=100000", "--model.finetune=full", "--model.top_layers=null",
                     "--optim.lr=1e-4", "--optim.warmup_fraction=0", "--resume=auto")  # fmt: skip
    falls = Aim(f"{name}: generation loss, last", "≤", f"{name}: generation loss, first", 0.9)
    faster = Aim(f"{name}: tokens/s", "≥", "train on 1 GPU: tokens/s", 1.5)
    return (
        Step(name, command, 600, ranks, is_rank=True, signal_after_s=300, figures=training(run_name),
             aims=(falls, faster) if ranks > 1 else (falls,)),
        Step(f"resume on {ranks} GPU{'s' * (ranks > 1)}", command, 300, ranks, is_rank=True, signal_after_s=90,
             says="resumed from"),
    )  # fmt: skip


def _short(name: str, ranks: int, *words: str, needs: tuple[str, ...] = ()) -> Step:
    folder = f"run-{name.replace(' ', '-')}"
    command = _train(folder, "--train.max_steps=20", *words)
    return Step(name, command, 900, ranks, is_rank=True, needs=needs, figures=training(folder))


_LOSS = "loss benchmark: 70b n=2048 "
_NATIVE = (("TRITON_INTERPRET", "0"),)
STEPS: tuple[Step, ...] = (
    Step("gpu tests", _pytest("-m", "gpu"), 1200, environment=_NATIVE, figures=tests_passed),
    *_five_minutes(1),
    *_five_minutes(2),
    Step("export", ("-m", "clsgen_dist", "export", "--checkpoint", "{folder}/run-1", "--output", "{folder}/model"), 600,
         says="verified by reloading"),
    Step("predict", ("-m", "clsgen_dist", "predict", "--model", "{folder}/model", "--input", "demo:breast-cancer/test",
                     "--output", "{folder}/predictions.jsonl"), 600, figures=predicted),
    _short("qlora", 1, "--model.load_in_4bit=true", needs=("bitsandbytes",)),
    _short("adamw_8bit", 1, "--optim.name=adamw_8bit", "--model.finetune=full", needs=("bitsandbytes",)),
    _short("offload", 1, "--deepspeed=ds_configs/zero3_offload.json", "--optim.name=cpu_adamw"),
    _short("checkpointing", 1, "--train.activation_checkpointing=true"),
    _short("sdpa", 1, "--model.attention=sdpa"),
    _short("zeropp", 2, "--deepspeed={folder}/zeropp.json", "--model.finetune=full"),
    Step("loss benchmark", ("benchmarks/loss_gpu.py",), 1800, environment=_NATIVE, figures=loss_table, aims=(
        Aim(_LOSS + "clsgen, ms", "≤", 25.0),
        Aim(_LOSS + "clsgen, extra MB", "≤", 100.0),
        Aim(_LOSS + "clsgen, ms", "≤", _LOSS + "naive, supervised only, ms"),
        Aim(_LOSS.replace("70b", "8b") + "clsgen, ms", "≤",
            _LOSS.replace("70b", "8b") + "naive, supervised only, ms"),
    )),
    Step("step benchmark", ("benchmarks/step_gpu.py",), 900, environment=_NATIVE, figures=step_table, aims=(
        Aim("step benchmark: clsgen, ZeRO-3, tokens/s", "≥", "step benchmark: usual loss, ZeRO-3, tokens/s"),
        Aim("step benchmark: clsgen, ZeRO-3, peak MB", "≤", "step benchmark: usual loss, ZeRO-3, peak MB"),
    )),
)  # fmt: skip


# --- the page


def page(environment_: dict[str, str], results: Sequence[Result], steps: Sequence[Step]) -> str:
    """The results as Markdown."""
    counts = ", ".join(f"{sum(r.outcome is o for r in results)} {o}" for o in Outcome)
    lines = ["# Results of `make gpu-check`", "", counts + ".", "", "| environment | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in environment_.items()]
    lines += ["", "| check | outcome | seconds | reason |", "|---|---|--:|---|"]
    lines += [f"| {r.name} | {r.outcome} | {r.seconds:.0f} | {r.reason.replace('|', '/')} |" for r in results]
    figures = {name: value for r in results for name, value in r.figures.items()}
    lines += ["", "## Aims", ""]
    marks = {True: "met", False: "**missed**", None: "–"}
    for words, met in (aim.words(figures) for step in steps for aim in step.aims):
        lines.append(f"- {marks[met]}: {words}")
    lines += ["", "## Figures", "", "| figure | value |", "|---|--:|"]
    lines += [f"| {name} | {value:.5g} |" for name, value in figures.items()]
    return "\n".join(lines) + "\n"


def check(steps: Sequence[Step], devices: Devices, folder: Path) -> int:
    """Run all steps, write the page after each; the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    found, results = environment(devices), list[Result]()
    for step in steps:
        print(f"{step.name} (at most {step.limit_s / 60:.0f} minutes) ...", flush=True)
        results.append(run(step, devices.count, folder))
        print(f"  {results[-1].outcome} after {results[-1].seconds:.0f} s  {results[-1].reason}", flush=True)
        (folder / "results.md").write_text(page(found, results, steps), encoding="utf-8")
        parts: dict[str, Any] = {"environment": found, "results": [dataclasses.asdict(result) for result in results]}
        (folder / "results.json").write_text(json.dumps(parts, indent=2) + "\n", encoding="utf-8")
    print(f"send back {folder / 'results.md'} and {folder / 'results.json'}")
    failed = any(result.outcome in (Outcome.FAILED, Outcome.TIMED_OUT) for result in results)
    return FAILED_CODE if failed else PASSED_CODE


def prepare(folder: Path, devices: Devices) -> None:
    """Write what the steps read: ZeRO++ for the GPUs of this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    zero = json.loads((ROOT / "ds_configs/zero3_zeropp.json").read_text())
    zero["zero_optimization"]["zero_hpz_partition_size"] = min(2, devices.count)
    (folder / "zeropp.json").write_text(json.dumps(zero))


def main() -> int:
    """Check this machine; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs/gpu-check" / time.strftime("%Y%m%d-%H%M%S"))
    parser.add_argument("--only", default="", help="run the steps whose name contains this")
    args = parser.parse_args()
    steps = [step for step in STEPS if args.only in step.name]
    if not steps:
        parser.error(f"--only {args.only}: no step has this in its name; they are {', '.join(s.name for s in STEPS)}")
    # Raised in the main thread, so that whoever runs a step ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED_CODE))
    devices = probe()
    if devices.count == 0:
        print(f"no GPU found, nothing checked ({devices.why_none})")
        return NO_GPU_CODE
    prepare(args.output, devices)
    return check(steps, devices, args.output.resolve())


if __name__ == "__main__":
    sys.exit(main())
