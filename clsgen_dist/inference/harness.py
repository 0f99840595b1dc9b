"""Tasks of EleutherAI's lm-evaluation-harness, for the trained model and for its backbone.

Tasks are files in the harness's own YAML; what they measure, and how, is theirs. Both models are asked the same
documents, without chat template, so the drop is also measured on each document where a score is a mean over documents:
hard ones cancel, and its interval (Student's) is narrower than two standard errors suggest.

A task's file may name Python functions, which are run. Cost: what the harness takes for two models, and the memory of
both.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from clsgen_dist.errors import SettingsError, first_line
from clsgen_dist.evaluation.interval import UNDEFINED, Estimate, mean_interval

_RESAMPLES = 1000
"""Of the harness's own bootstraps."""


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One metric of one task."""

    documents: int
    higher_is_better: bool
    model: float
    model_stderr: float
    """The harness's standard error; NaN where it has none."""
    backbone: float
    backbone_stderr: float
    drop: Estimate
    """How much worse than the backbone; below 0: better. The interval is of paired documents, for means over them."""


@dataclass(frozen=True, kw_only=True)
class HarnessScores:
    """The trained model and its backbone on tasks of the harness."""

    version: str
    """Of lm_eval."""
    scores: dict[str, TaskScore]
    """By task and metric: ``my_task acc``; the metric with its filter, if it has one."""


def load_tasks(paths: Sequence[str | Path]) -> list[Any]:
    """The tasks of YAML files, and all of those in folders.

    Raises:
        SettingsError: lm_eval is not installed, or the tasks cannot be loaded.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise SettingsError(
            "--lm_eval_tasks needs the package lm_eval, which is not installed; run: pip install 'clsgen-dist[lm-eval]'"
        )
    from lm_eval.tasks import TaskManager

    found: dict[str, Any] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise SettingsError(f"--lm_eval_tasks {path} does not exist; give a task's YAML file, or a folder of them")
        try:
            manager = TaskManager(include_path=path if path.is_dir() else path.parent, include_defaults=False)
            tasks = manager.load(manager.all_subtasks if path.is_dir() else [str(path)])["tasks"]
        except Exception as error:  # whatever its reader, its data set and its functions raise
            raise SettingsError(
                f"--lm_eval_tasks {path} cannot be loaded ({type(error).__name__}: {first_line(error)}); fix the task"
            ) from error
        if not tasks:
            raise SettingsError(f"--lm_eval_tasks {path} has no task; give a folder with YAML files that name a task")
        if twice := sorted(found.keys() & tasks.keys()):
            raise SettingsError(f"--lm_eval_tasks has the task {twice[0]!r} twice; rename one, or give it once")
        found |= tasks
    return list(found.values())


def measure_tasks(
    paths: Sequence[str | Path], trained: Any, backbone: Any, tokenizer: str | Path, *, batch_size: int = 32
) -> HarnessScores:
    """Run tasks for two causal language models of one tokenizer.

    Args:
        paths: files and folders of tasks.
        trained: the trained model.
        backbone: the model it was trained from.
        tokenizer: folder of the tokenizer of both.
        batch_size: requests put through a model together.

    Raises:
        SettingsError: as :func:`load_tasks`.
    """
    ours, theirs = (_run(load_tasks(paths), lm, str(tokenizer), batch_size) for lm in (trained, backbone))
    scores: dict[str, TaskScore] = {}
    for task, metrics in ours["results"].items():
        for key, value in metrics.items():
            metric, _, filtered = key.partition(",")
            if filtered and not metric.endswith("_stderr") and isinstance(value, Real):
                name = f"{task} {metric}" if filtered == "none" else f"{task} {metric} ({filtered})"
                scores[name] = _score(ours, theirs, task, metric, filtered)
    return HarnessScores(version=importlib.metadata.version("lm_eval"), scores=scores)


def _run(tasks: list[Any], lm: Any, tokenizer: str, batch_size: int) -> Any:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    return simple_evaluate(
        HFLM(pretrained=lm, tokenizer=tokenizer, batch_size=batch_size),
        tasks=tasks,
        task_manager=TaskManager(include_defaults=False),  # the tasks are loaded; its own would take seconds
        bootstrap_iters=_RESAMPLES,
    )


def _score(ours: Any, theirs: Any, task: str, metric: str, filtered: str) -> TaskScore:
    higher = ours["higher_is_better"][task].get(metric) is not False
    model, backbone = (float(run["results"][task][f"{metric},{filtered}"]) for run in (ours, theirs))
    drop, interval = backbone - model if higher else model - backbone, UNDEFINED
    runs = (theirs, ours) if higher else (ours, theirs)
    first, second = ([s[metric] for s in run["samples"][task] if s["filter"] == filtered] for run in runs)
    if all(isinstance(value, Real) for value in [*first, *second]):
        drop_N = np.array(first, dtype=float) - np.array(second, dtype=float)
        if math.isclose(drop_N.mean(), drop, abs_tol=1e-9):
            interval = mean_interval(drop_N)
    return TaskScore(
        documents=ours["n-samples"][task]["effective"],
        higher_is_better=higher,
        model=model,
        model_stderr=_stderr(ours, task, metric, filtered),
        backbone=backbone,
        backbone_stderr=_stderr(theirs, task, metric, filtered),
        drop=Estimate(drop, interval),
    )


def _stderr(run: Any, task: str, metric: str, filtered: str) -> float:
    value = run["results"][task].get(f"{metric}_stderr,{filtered}")
    return float(value) if isinstance(value, Real) else math.nan
