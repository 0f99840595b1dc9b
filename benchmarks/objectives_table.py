"""The tables of benchmarks/objectives.py, from the raw output of its runs."""

from __future__ import annotations

import argparse
import platform
from typing import Any

import numpy as np

CURVES = {
    "evidence/attention": "attention on evidence",
    "preference/accuracy": "pairs told apart",
    "general/perplexity": "general perplexity",
}
"""Last values of these dev curves, and what their columns are called."""


def measures(run: dict[str, Any], *, further: bool = False) -> dict[str, float]:
    """The run's row of the table; ``further``: with the columns of part 2."""
    from clsgen_dist.calibration.affine import fit_affine
    from clsgen_dist.evaluation.metrics import class_metrics

    logits, labels = np.array(run["test"]["logits"]), np.array(run["test"]["labels"])
    calibration = fit_affine(np.array(run["dev"]["logits"]), np.array(run["dev"]["labels"]))
    p_NC = calibration.probabilities(logits)
    positive = logits.shape[1] - 1
    found = class_metrics(p_NC, labels, "single", positive, names=("auroc", "f1", "ece", "brier"))
    found["seconds"] = run.get("seconds_a_step", float("nan"))
    found["peak_memory"] = run.get("peak_memory", float("nan")) / 1e6
    found["generation_loss"] = run.get("generation_loss", float("nan"))
    stated = np.array(run["test"].get("stated", []))
    found["agreement"] = float((stated == p_NC.argmax(axis=1)).mean()) if len(stated) else float("nan")
    if further:
        found["AUROC of the stated class"], found["κ"] = _alignment(p_NC, stated)
        found |= {name: run.get(name, float("nan")) for name in CURVES}
        found["simulatable"] = _simulatable(run, p_NC.argmax(axis=1))
    return found


def _alignment(p_NC: np.ndarray, stated_N: np.ndarray) -> tuple[float, float]:
    """AUROC of the probabilities for the class that the explanation states; Cohen's kappa of it and the decision.

    Rows whose explanation names no class are left out; NaN where explanations state one class only.
    """
    from clsgen_dist.evaluation.classification import auroc
    from clsgen_dist.explanations.stated_class import cohen_kappa

    named_N = stated_N >= 0
    if len(set(stated_N[named_N])) < 2:
        return float("nan"), float("nan")
    p_NC, stated_N = p_NC[named_N], stated_N[named_N]
    return auroc(p_NC, stated_N, p_NC.shape[1] - 1), cohen_kappa(stated_N, p_NC.argmax(axis=1), p_NC.shape[1])


def _simulatable(run: dict[str, Any], decided_N: np.ndarray) -> float:
    """Share of rows whose decision a reader tells from the explanation without the classes' names."""
    from clsgen_dist.explanations.simulatability import simulatability

    texts = run["test"].get("explanations")
    if not texts or len(set(decided_N)) < 2:
        return float("nan")
    names = [f"class {n}" for n in range(decided_N.max() + 1)] if "classes" not in run else run["classes"]
    return simulatability(texts, texts, decided_N, names).masked.mean


def paired(ours: list[dict[str, Any]], base: list[dict[str, Any]], draws: int = 1000) -> list[float]:
    """Mean difference in AUROC over seeds, and its 95 % interval over seeds and test rows."""
    from clsgen_dist.evaluation.classification import auroc

    def value(run: dict[str, Any], rows: np.ndarray) -> float:
        logits = np.array(run["test"]["logits"])[rows]
        p_NC = np.exp(logits - logits.max(axis=1, keepdims=True))
        return auroc(p_NC / p_NC.sum(axis=1, keepdims=True), np.array(run["test"]["labels"])[rows], logits.shape[1] - 1)

    rng = np.random.default_rng(0)
    rows = len(base[0]["test"]["labels"])
    everything = np.arange(rows)
    mean = np.mean([value(a, everything) - value(b, everything) for a, b in zip(ours, base, strict=True)])
    found = []
    for _ in range(draws):
        at = rng.integers(rows, size=rows)
        found.append(
            np.mean([value(ours[s], at) - value(base[s], at) for s in rng.integers(len(base), size=len(base))])
        )
    return [float(mean), *(float(q) for q in np.nanquantile(found, [0.025, 0.975]))]


def report(args: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Print the table of the finished runs."""
    by_arm = {arm: {r["seed"]: r for r in results if r["arm"] == arm} for arm in args.settings}
    bases = ("classification only", "before")[: args.part]
    rows = len(results[0]["test"]["labels"])
    precision = "/".join(sorted({r["precision"] for r in results}))
    devices = ", ".join(sorted({r.get("device", "CPU") for r in results}))
    print(f"{devices} ({platform.machine()}); {args.set}: {args.tokens} tokens a run, {precision}, {rows} test rows")
    if before := [r["perplexity_before"] for r in results if "perplexity_before" in r]:
        print(f"perplexity of general texts before training: {np.mean(before):.3f}")
    shown = [
        "f1",
        "ece",
        "brier",
        "generation_loss",
        "agreement",
        *(("AUROC of the stated class", "κ", *CURVES, "simulatable") if args.part == 2 else ()),
    ]
    names = [CURVES.get(key, key.replace("_", " ")) for key in shown]
    minus = [f"- {base}" for base in bases]
    print(f"| {' | '.join(['arm', 'seeds', 'AUROC', *minus, *names, 's a step', 'peak MB'])} |")
    print(f"|---|{'--:|' * (len(shown) + len(bases) + 4)}")
    for arm, runs in by_arm.items():
        if not runs:
            continue
        columns = [measures(run, further=args.part == 2) for run in runs.values()]
        differences = [_difference(arm, runs, base, by_arm[base]) for base in bases]
        cells = {key: _cell([c[key] for c in columns]) for key in columns[0]}
        costs = [_mean([c["seconds"] for c in columns], 2), _mean([c["peak_memory"] for c in columns], 0)]
        print(
            f"| {' | '.join([arm, str(len(runs)), cells['auroc'], *differences, *(cells[k] for k in shown), *costs])} |"
        )


def _difference(arm: str, runs: dict[int, Any], base: str, base_runs: dict[int, Any]) -> str:
    """How much higher the arm's AUROC is than another's, over the seeds that both have."""
    shared = sorted(set(runs) & set(base_runs))
    if arm == base or not shared:
        return ""
    mean, low, high = paired([runs[s] for s in shared], [base_runs[s] for s in shared])
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def _mean(values: list[float], digits: int) -> str:
    known = [value for value in values if not np.isnan(value)]
    return f"{np.mean(known):.{digits}f}" if known else ""


def _cell(values: list[float]) -> str:
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return ""
    spread = f" ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else ""
    return f"{np.mean(known):.3f}{spread}" + (
        f" ({len(known)} of {len(values)} runs)" if len(known) < len(values) else ""
    )
