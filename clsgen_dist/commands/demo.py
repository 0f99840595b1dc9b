"""``clsgen demo``: the main job on the embedded default, from nothing to a report.

Trains under ZeRO-3 with DeepSpeed's launcher exactly as a user would, exports, calibrates on the dev split, and
measures on the held-out split, with baselines on the same rows: the majority class, logistic regression on the
note's words, on the raw numbers behind the note, and on the frozen backbone's states (a linear probe).
"""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clsgen_dist.data.demos import breast_cancer
from clsgen_dist.errors import UserError

if TYPE_CHECKING:
    from clsgen_dist.data.example import Example
    from clsgen_dist.evaluation.report import Report, Scores
    from clsgen_dist.inference.predict import Prediction, Predictor
    from clsgen_dist.io.value_ranges import NonNegativeInt, PositiveInt


class DemoError(UserError):
    """A step of the demo failed; the message says which, and where to look."""


def run(
    output: str = "runs/demo",
    ranks: PositiveInt = 1,
    seed: NonNegativeInt = 0,
    predictions: NonNegativeInt = 3,
) -> None:
    """Train, export, calibrate and evaluate the embedded demo, and print a report.

    Args:
        output: Folder for checkpoints, TensorBoard log, model and report; an earlier demo's there is replaced.
        ranks: Processes to shard over; one per core or GPU at most.
        seed: Seed of the split, the new weights, and the order of rows.
        predictions: Held-out rows to show with probability and explanation.
    """
    start = time.monotonic()
    run, model = Path(output), Path(output) / "model"
    _train(run, ranks, seed)
    trained = time.monotonic()

    import numpy as np

    from clsgen_dist.hf_export.export import export
    from clsgen_dist.inference.calibrate import calibrate
    from clsgen_dist.inference.evaluate import build_report
    from clsgen_dist.inference.predict import Predictor
    from clsgen_dist.inference.rows import labelled_rows, predict_rows

    _say("exporting to a plain Hugging Face folder, and verifying it")
    export(run, model)
    _say("calibrating on the dev rows")
    calibrate(model, _rows("dev", seed))
    _say("predicting and explaining the held-out rows")
    predictor = Predictor(model)
    held_out = labelled_rows(predictor, _rows("test", seed)).examples
    train_rows = labelled_rows(predictor, _rows("train", seed)).examples
    predicted = predict_rows(predictor, held_out, batch_size=50, explain=True)
    _say("fitting the baselines")
    report = build_report(predictor, held_out, predicted, train_rows)
    true_evidence = [
        breast_cancer.evidence_is_true(row.text, prediction.explanation or "")
        for row, prediction in zip(held_out, predicted, strict=True)
    ]
    report = dataclasses.replace(
        report,
        scores=[*report.scores, *_demo_baselines(predictor, seed, train_rows, held_out)],
        explanations={
            **report.explanations,
            "explanation's evidence is true to the note": float(np.mean(true_evidence)),
        },
    )
    (run / "report.json").write_text(report.to_json())
    _print(report, held_out, predicted[:predictions], run, model)
    print(f"took {trained - start:.0f} s to train, {time.monotonic() - trained:.0f} s for everything after")


def _train(run: Path, ranks: int, seed: int) -> None:
    """Run the launcher as a user would; DemoError if it fails."""
    command = [
        *(str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks), "--master_port", str(_free_port())),
        *("--log_level", "warning", "--module", "clsgen_dist", "train", "--overwrite", "true"),
        *("--output_dir", str(run), "--seed", str(seed)),
        *("--data.train", _rows("train", seed), "--data.dev", _rows("dev", seed)),
    ]
    _say(f"training: {' '.join(command[1:])}")
    done = subprocess.run(command, env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ}, check=False)
    if done.returncode:
        raise DemoError(f"training ended with status {done.returncode}; its messages are above")


def _demo_baselines(
    predictor: Predictor, seed: int, train_rows: Sequence[Example], held_out: Sequence[Example]
) -> list[Scores]:
    """Logistic regression on the raw numbers, and on the frozen backbone's states."""
    import torch

    from clsgen_dist.evaluation.report import linear_baseline, score
    from clsgen_dist.inference.predict import classification_states
    from clsgen_dist.model import smollm2
    from clsgen_dist.model.backbone import backbone_path, load_backbone, open_backbone

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
        score(name, probabilities, test.is_malignant, positive=1, threshold=None)
        for name, probabilities in (
            ("frozen backbone, linear probe", probe),
            ("logistic regression, 30 raw numbers", numbers),
        )
    ]


def _print(
    report: Report, held_out: Sequence[Example], predicted: Sequence[Prediction], run: Path, model: Path
) -> None:
    print(f"\n{report.text()}\n")
    for example, prediction in zip(held_out, predicted, strict=False):
        print(f"{example.id} ({example.label})  {example.text}")
        print(f"    {prediction.probabilities['malignant']:.1%} malignant: {prediction.explanation}\n")
    print(
        "Decision support, not a decision. Logistic regression on clean numbers wins here, as it should: the demo "
        "shows the machinery; text is what it is for."
    )
    print(f"both loss curves  tensorboard --logdir {run / 'tensorboard'}")
    print(f"the model         {model}   (clsgen predict --model {model} --text '...')")
    print(f"the report        {run / 'report.json'}")


def _rows(split: str, seed: int) -> str:
    return f"demo:{breast_cancer.NAME}/{split}?seed={seed}"


def _say(text: str) -> None:
    print(f"-- {text}", flush=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
