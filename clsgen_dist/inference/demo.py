"""The main job on the embedded dataset, from nothing to a report.

Trains under ZeRO-3 with DeepSpeed's launcher exactly as a user would, exports, calibrates on the dev split, and
measures on the held-out split, with baselines on the same rows: the majority class, logistic regression on the
note's words, on the raw numbers behind the note, and on the frozen backbone's states (a linear probe).

Cost: minutes on two CPU cores (docs/results.md).
"""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from clsgen_dist.data.demos import breast_cancer
from clsgen_dist.data.example import Example
from clsgen_dist.errors import UserError
from clsgen_dist.evaluation.baselines import linear_baseline
from clsgen_dist.evaluation.report import ExplanationShare, Scores, score
from clsgen_dist.hf_export.export import export
from clsgen_dist.inference.calibrate import calibrate
from clsgen_dist.inference.evaluate import evaluate
from clsgen_dist.inference.evaluation import Evaluation
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.prefill import classification_states
from clsgen_dist.inference.rows import labelled_rows
from clsgen_dist.inference.write_report import write_report
from clsgen_dist.model import smollm2
from clsgen_dist.model.backbone import backbone_path, load_backbone, open_backbone

_INTERPOLATION = 0.6
"""Of the exported weights: keeps most of the backbone's language at hardly any cost (docs/results.md)."""
_FAITHFULNESS_ROWS = 24
_CAPABILITY_TOKENS = 8_000
"""Half a minute each on two CPU cores."""


class DemoError(UserError):
    """A step of the demo failed; the message says which, and where to look."""


@dataclass(frozen=True)
class Demo:
    """What the demo measured."""

    evaluation: Evaluation
    page: Path
    """The report."""
    training_seconds: float
    other_seconds: float


def run_demo(output: Path, *, ranks: int = 1, seed: int = 0) -> Demo:
    """Train, export (to ``output/model``), calibrate and evaluate; writes ``output/report``.

    Args:
        output: folder for checkpoints, TensorBoard log, model and report; an earlier demo's there is replaced.
        ranks: processes to shard over.
        seed: of the split, the new weights, and the order of rows.

    Raises:
        DemoError: training failed.
    """
    start = time.monotonic()
    _train(output, ranks, seed)
    trained = time.monotonic()
    _log("exporting to a plain Hugging Face folder, and verifying it")
    model = export(output, output / "model", interpolation=_INTERPOLATION)
    _log("calibrating on the dev rows")
    calibrate(model, _source("dev", seed))
    _log("evaluating on the held-out rows: predictions, explanations, faithfulness, language kept")
    test, train, folder = _source("test", seed), _source("train", seed), output / "report"
    found = evaluate(
        model,
        test,
        train,
        output=folder,
        batch_size=50,
        faithfulness_rows=_FAITHFULNESS_ROWS,
        capability_tokens=_CAPABILITY_TOKENS,
    )
    _log("fitting the baselines on raw numbers and on the frozen backbone")
    predictor = Predictor(model)
    baselines = _baselines(predictor, seed, labelled_rows(predictor, train).examples, found.examples)
    evidence_is_true = [
        breast_cancer.evidence_is_true(row.text, prediction.explanation or "")
        for row, prediction in zip(found.examples, found.predictions, strict=True)
    ]
    report = dataclasses.replace(
        found.report,
        scores=[*found.report.scores, *baselines],
        explanations={
            **found.report.explanations,
            ExplanationShare.EVIDENCE_IS_TRUE: float(np.mean(evidence_is_true)),
        },
    )
    found = dataclasses.replace(found, report=report)
    return Demo(found, write_report(found, folder), trained - start, time.monotonic() - trained)


def _train(run: Path, ranks: int, seed: int) -> None:
    """Run the launcher as a user would; DemoError if it fails."""
    command = [
        *(str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks), "--master_port", str(_free_port())),
        *("--log_level", "warning", "--module", "clsgen_dist", "train", "--overwrite", "true"),
        *("--output_dir", str(run), "--seed", str(seed)),
        *("--data.train", _source("train", seed), "--data.dev", _source("dev", seed)),
    ]
    _log(f"training: {' '.join(command[1:])}")
    done = subprocess.run(command, env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ}, check=False)
    if done.returncode:
        raise DemoError(f"training ended with status {done.returncode}; its messages are above")


def _baselines(
    predictor: Predictor, seed: int, train_rows: Sequence[Example], held_out: Sequence[Example]
) -> list[Scores]:
    """Logistic regression on the raw numbers, and on the frozen backbone's states."""
    splits = breast_cancer.load_splits(seed)
    train, test = splits["train"], splits["test"]
    numbers = linear_baseline(train.numbers, train.is_malignant, test.numbers)
    lm = load_backbone(
        open_backbone(backbone_path(f"demo:{smollm2.NAME}")), dtype=torch.float32, attention="sdpa"
    ).eval()
    train_states, test_states = (
        classification_states(lm, [predictor.encoder.prompt(r.text)[0] for r in rows], predictor.encoder.end_token)
        for rows in (train_rows, held_out)
    )
    probe = linear_baseline(train_states, train.is_malignant, test_states)
    return [
        score(name, probabilities, test.is_malignant, positive=1)
        for name, probabilities in (
            ("frozen backbone, linear probe", probe),
            ("logistic regression, 30 raw numbers", numbers),
        )
    ]


def _source(split: str, seed: int) -> str:
    return f"demo:{breast_cancer.NAME}/{split}?seed={seed}"


def _log(text: str) -> None:
    print(f"-- {text}", flush=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
