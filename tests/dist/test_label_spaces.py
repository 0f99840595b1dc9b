"""Each label space from rows to report on two ranks: read, train, resume, export, predict, calibrate, evaluate.

The rows are generated with a known rule, so a tiny model learns them in a few seconds.
"""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from clsgen_dist import checkpoint
from clsgen_dist.hf_export.artifact import ModelCard, read_head
from clsgen_dist.hf_export.merge import trained_tensors
from clsgen_dist.inference.predict import Predictor

pytestmark = [pytest.mark.dist, pytest.mark.slow]

TOPICS = ("red", "green", "blue")
LEVELS = ("low", "medium", "high", "severe")


def _sets(rng: random.Random) -> dict:
    """Topics named in the text; sometimes as an object, sometimes with one not known, sometimes none."""
    named = [topic for topic in TOPICS if rng.random() < 0.4]
    words = [*named, *rng.choices(("stone", "river", "cloud", "table"), k=3)]
    rng.shuffle(words)
    form = rng.random()
    label: object = named
    if form < 0.2:
        label = {topic: topic in named for topic in TOPICS}
    elif form < 0.3:
        label = {TOPICS[0]: TOPICS[0] in named, TOPICS[1]: None}
    return {"text": " ".join(words), "label": label, "explanation": f"names {' and '.join(named) or 'none'}"}


def _ordered(rng: random.Random) -> dict:
    """As many marks as the level says; sometimes the votes of three people."""
    level = rng.randrange(4)
    label: object = LEVELS[level]
    if rng.random() < 0.15:
        label = [LEVELS[level], LEVELS[level], LEVELS[max(0, level - 1)]]
    words = ["alarm"] * level + rng.choices(("stone", "river", "cloud"), k=4 - level)
    rng.shuffle(words)
    return {"text": " ".join(words), "label": label, "explanation": f"{level} alarms"}


def _write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SPACES = {
    "multilabel": (_sets, {"data__label_space": "auto", "train__best_metric": "average_precision", "train__epochs": 6}),
    "ordinal": (
        _ordered,
        {
            "data__label_space": "ordinal",
            "data__labels": json.dumps(LEVELS),
            "train__best_metric": "quadratic_kappa",
            "objectives__classification__label_smoothing": 0.02,
        },
    ),
}


@pytest.fixture(
    scope="module", params=[pytest.param(s, marks=pytest.mark.long) if s == "ordinal" else s for s in SPACES]
)
def trained(request, train, run_command, tmp_path_factory):
    """The label space, the folder of its rows, run and export, and the run's settings."""
    make, settings = SPACES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    rng = random.Random(0)
    for name, count in (("train", 240), ("dev", 80), ("test", 120)):
        _write(folder / f"{name}.jsonl", [make(rng) for _ in range(count)])
    run = {
        "data__train": folder / "train.jsonl",
        "data__dev": folder / "dev.jsonl",
        "data__labels": "null",
        "data__positive_label": "null",
        "train__epochs": 4,
        "train__batch_size": 16,
        "train__micro_batch_tokens": 512,
        "train__eval_every": 30,
        "checkpoint__every": 30,
        "optim__lr": 3e-3,
        "optim__head_lr": 1e-2,
        "objectives__generation__weight": 0.2,
        "objectives__classification__weight": 1.0,
        **settings,
    }
    train(folder / "run", **run)
    run_command("clsgen", "export", "--checkpoint", str(folder / "run"), "--output", str(folder / "model"))
    return request.param, folder, run


@pytest.mark.long
def test_a_killed_run_ends_bit_equal(trained, train, ranks, recipe):
    _, folder, run = trained
    short = {**run, "train__max_steps": 12, "train__eval_every": 5, "checkpoint__every": 5}
    train(folder / "whole", **short)
    killed = ranks(recipe(folder / "killed", **short), faults=[{"what": "kill", "step": 7, "rank": 1}])
    assert killed.status[1] == -signal.SIGKILL
    assert "resumed from" in train(folder / "killed", **short, resume="auto").stderr
    ours, theirs = (
        trained_tensors(checkpoint.committed(folder / name / "checkpoints")[-1]) for name in ("whole", "killed")
    )
    assert ours.keys() == theirs.keys() and len(ours) > 10
    assert all(torch.equal(ours[name].contiguous(), theirs[name].contiguous()) for name in ours)


def test_the_rule_is_learnt_and_measured(trained, run_command):
    kind, folder, _ = trained
    model = str(folder / "model")
    run_command("clsgen", "calibrate", "--model", model, "--data", str(folder / "dev.jsonl"))
    report = folder / "report"
    table = run_command(
        *("clsgen", "evaluate", "--model", model, "--data", str(folder / "test.jsonl"), "--explain", "false"),
        *("--train", str(folder / "train.jsonl"), "--output", str(report)),
    ).stdout
    scores = {s["name"]: s for s in json.loads((report / "report.json").read_text())["scores"]}
    calibrated = scores["dual head, recalibrated"]
    assert calibrated["auroc"] > 0.9, table
    assert calibrated["nll"] < scores["dual head, raw"]["nll"] + 0.02
    assert scores["TF-IDF logistic regression"]["auroc"] > 0.9
    card = ModelCard.read(folder / "model")
    if kind == "multilabel":
        assert calibrated["average_precision"] > 0.85 and len(card.thresholds) == 3
        assert abs(scores["class frequencies"]["auroc"] - 0.5) < 0.01
    else:
        assert calibrated["quadratic_kappa"] > 0.7 and calibrated["mae"] < 0.6
        assert card.thresholds is None and card.calibration["method"] == card.calibration_choice["method"]
        assert card.distorted_by == ["objectives.classification.label_smoothing"]
    assert (card.label_space, card.labels) == (kind, sorted(TOPICS) if kind == "multilabel" else list(LEVELS))


def test_predictions_have_the_form_of_the_label_space(trained):
    kind, folder, _ = trained
    predictor = Predictor(folder / "model")
    [none, some] = predictor.predict(["stone cloud river stone", "alarm red alarm blue alarm"], explain=False)
    if kind == "multilabel":
        assert isinstance(some.label, list) and set(some.label) <= set(TOPICS)
        assert some.probabilities["red"] > none.probabilities["red"]
    else:
        assert some.label in LEVELS and sum(some.probabilities.values()) == pytest.approx(1)
        expected = [sum(p.probabilities[name] * rank for rank, name in enumerate(LEVELS)) for p in (none, some)]
        assert expected[0] < expected[1]
        assert (np.diff(none.logits) < 0).all(), "P(y > k) falls with k"


@pytest.mark.long
@pytest.mark.parametrize("decide", ["after", "both"])
def test_the_head_is_read_after_the_explanation(decide, train, run_command, tmp_path):
    """Explanations that count the alarms let even a tiny model decide; each reading has its own calibration."""
    rng = random.Random(1)
    for name, count in (("train", 160), ("dev", 60)):
        _write(tmp_path / f"{name}.jsonl", [_ordered(rng) for _ in range(count)])
    run = {
        "data__train": tmp_path / "train.jsonl",
        "data__dev": tmp_path / "dev.jsonl",
        "data__label_space": "ordinal",
        "data__labels": json.dumps(LEVELS),
        "data__positive_label": "null",
        "data__max_explanation_length": 16,
        "model__decide": decide,
        "train__best_metric": "nll",
        "train__epochs": 4,
        "train__batch_size": 16,
        "train__micro_batch_tokens": 512,
        "train__eval_every": 20,
        "optim__lr": 3e-3,
    }
    done = train(tmp_path / "run", **run)
    assert ("after/quadratic_kappa" in done.stderr) == (decide == "both")
    model = str(tmp_path / "model")
    run_command("clsgen", "export", "--checkpoint", str(tmp_path / "run"), "--output", model)
    run_command("clsgen", "calibrate", "--model", model, "--data", str(tmp_path / "dev.jsonl"))
    table = run_command("clsgen", "evaluate", "--model", model, "--data", str(tmp_path / "dev.jsonl")).stdout
    card = ModelCard.read(tmp_path / "model")
    assert card.decide == decide and card.calibration
    assert (card.calibration_after is not None) == ("after the explanation, recalibrated" in table) == (decide == "both")

    predictor = Predictor(model)
    text = "alarm river alarm stone"
    [quick], [full] = (predictor.predict([text], explain=explain) for explain in (False, True))
    assert quick.explanation is None and full.explanation is not None
    assert quick.logits == pytest.approx(full.logits, abs=1e-5)
    # By plain transformers: the head on the last state of prompt, explanation and end token.
    weight, bias = read_head(tmp_path / "model", card)
    prompt, end = predictor.encoder.prompt(text)[0].tolist(), predictor.encoder.end_token
    with torch.no_grad():
        written = predictor.lm.generate(
            torch.tensor([prompt]), max_new_tokens=card.max_explanation_length - 1, do_sample=False, eos_token_id=end, pad_token_id=end
        )[0, len(prompt) :].tolist()
        ids = [*prompt, *(written[: written.index(end)] if end in written else written), end]
        state = predictor.lm(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
    expected = torch.nn.functional.linear(state, weight, bias).tolist()
    read = full if decide == "after" else full.after
    assert read.logits == pytest.approx(expected, abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("kind", SPACES)
def test_losses_do_not_depend_on_ranks_or_accumulation(kind, train, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make, settings = SPACES[kind]
    rng = random.Random(2)
    rows = _write(tmp_path / "train.jsonl", [make(rng) for _ in range(60)])
    run = {
        "data__train": rows,
        "data__labels": "null",
        "data__positive_label": "null",
        "data__sampling": "balanced",
        "train__max_steps": 6,
        "train__batch_size": 12,
        "model__decide": "both",
        **settings,
        "train__best_metric": "loss",
    }
    curves = []
    for ranks, budget in ((1, 2048), (1, 192), (2, 256), (3, 192)):
        output = tmp_path / f"{ranks}-{budget}"
        train(output, ranks=ranks, train__micro_batch_tokens=budget, **run)
        log = EventAccumulator(str(output / "tensorboard"))
        log.Reload()
        tags = ("loss/generation", "loss/classification", "loss/classification_after", "optim/grad_norm")
        curves.append({tag: [event.value for event in log.Scalars(tag)] for tag in tags})
    for other in curves[1:]:
        for tag, values in curves[0].items():
            assert other[tag] == pytest.approx(values, rel=5e-4), tag
