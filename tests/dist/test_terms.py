"""Terms of the loss on real ranks: adaptive weights that resume, norms that no rank count changes, a term of one's own."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clsgen_dist import checkpoint, export
from clsgen_dist.data.demos.breast_cancer import demo_file

pytestmark = [pytest.mark.dist, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
RUN = {
    "data__dev": "few",
    "model__finetune": "lora",
    "model__head_dropout": 0.1,
    "train__max_steps": 8,
    "checkpoint__every": 2,
    "objectives__generation__label_smoothing": 0.1,
    "objectives__generation__z_loss": 0.001,
    "objectives__classification__label_smoothing": 0.05,
    "objectives__classification__class_weights": "balanced",
    "objectives__classification__logit_adjustment": 1.0,
    "objectives__balance__rate": 0.3,
    "objectives__balance__interval": 2,
    "objectives__min_share": 0.0,
}
ALL_TERMS = (
    "generation", "classification", "classification_after", "consistency", "consistency_after", "evidence", "contrast",
    "preference", "retention",
)  # fmt: skip
TAGS = [f"{kind}/{name}" for kind in ("loss", "loss_weight", "gradient_share") for name in ("generation", "classification")]


def _reviewed(split: str, folder: Path) -> Path:
    """The demo's rows, some with an explanation that names what speaks against the label."""
    rows = [json.loads(line) for line in demo_file(split).read_text().splitlines()[:60]]
    for row in rows[::2]:
        row["rejected"] = f"{row['label'].capitalize()}: {', '.join(row['counter_evidence'])}." if row["counter_evidence"] else None
    file = folder / f"reviewed-{split}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _general(folder: Path) -> Path:
    """Sentences of the licence of this package."""
    file = folder / "general.jsonl"
    lines = [line.strip() for line in (ROOT / "LICENSE").read_text().splitlines() if len(line.split()) > 5]
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines[:40]))
    return file


def _curves(output: Path, tags: list[str]) -> dict[str, list[float]]:
    log = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0})
    log.Reload()
    return {tag: [event.value for event in log.Scalars(tag)] for tag in tags}


def _weights(output: Path) -> dict[str, torch.Tensor]:
    folder = checkpoint.committed(output / "checkpoints")[-1]
    states = [torch.load(p, weights_only=False) for p in sorted(folder.glob("*optim_states.pt"))]
    return {f"{rank}": torch.cat(s["optimizer_state_dict"]["fp32_flat_groups"]) for rank, s in enumerate(states)}


@pytest.mark.long
@pytest.mark.parametrize("method", ["gradient_norm", "uncertainty", "loss_ratio"])
def test_adaptive_weights_resume_bit_equal(method, train, ranks, recipe, tmp_path):
    run = {**RUN, "objectives__balance__method": method}
    train(tmp_path / "whole", **run)
    killed = ranks(recipe(tmp_path / "killed", **run), faults=[{"what": "kill", "step": 5, "rank": 1}])
    assert killed.status[1] == -signal.SIGKILL
    train(tmp_path / "killed", **run, resume="auto")
    whole = _curves(tmp_path / "whole", TAGS)
    assert _curves(tmp_path / "killed", TAGS) == whole
    assert len(set(whole["loss_weight/generation"])) > 1, "the weights adapt"
    expected, got = _weights(tmp_path / "whole"), _weights(tmp_path / "killed")
    assert all(torch.equal(got[rank], expected[rank]) for rank in expected)


@pytest.mark.long
def test_gradient_norms_and_adaptive_weights_do_not_depend_on_the_number_of_ranks(train, tmp_path):
    run = {**RUN, "objectives__balance__method": "gradient_norm", "model__head_dropout": 0.0, "train__max_steps": 4}
    found = []
    for count in (1, 2, 3):
        train(tmp_path / str(count), ranks=count, **run)
        found.append(_curves(tmp_path / str(count), TAGS))
    for other in found[1:]:
        for tag in TAGS:
            assert other[tag] == pytest.approx(found[0][tag], rel=2e-4), tag
    shares = [found[0][f"gradient_share/{name}"] for name in ("generation", "classification")]
    assert [sum(pair) for pair in zip(*shares, strict=True)] == pytest.approx([1.0] * 4)
    # From the second step on the weighted norms are drawn towards each other.
    assert abs(shares[0][-1] - 0.5) < abs(shares[0][0] - 0.5)


@pytest.mark.long
def test_several_terms_killed_and_resumed_at_other_rank_counts_keep_their_curves(train, ranks, recipe, tmp_path):
    """Two ranks, killed twice; one, killed; three to the end: the curves and weights of two uninterrupted ranks.

    As long as there are two, bit for bit.
    """
    run = {**RUN, "objectives__balance__method": "gradient_norm", "model__head_dropout": 0.0, "model__decide": "both", "train__max_steps": 10}
    run |= {f"objectives__{name}__{key}": value for name in ALL_TERMS[3:5] for key, value in (("weight", 0.5), ("learns", "both"))}
    run |= {"objectives__preference__weight": 0.5, "objectives__preference__loss": "kto", "data__columns__rejected": "rejected"}
    run |= {"data__train": _reviewed("train", tmp_path), "data__dev": _reviewed("dev", tmp_path), "train__batch_size": 6, "train__micro_batch_tokens": 512}
    run |= {"objectives__retention__weight": 0.5, "data__replay": _general(tmp_path), "data__replay_dev": _general(tmp_path)}
    run |= {"objectives__evidence__weight": 0.3, "objectives__contrast__weight": 0.2, "objectives__contrast__group": 2}
    at_the_end = [name for name in ALL_TERMS if name != "evidence"]  # which acts in the layers, not on the last states
    tags = [f"{kind}/{name}" for kind in ("loss", "loss_weight") for name in ALL_TERMS]
    tags += [f"gradient_share/{name}" for name in at_the_end]
    train(tmp_path / "whole", **run)
    for world, step in ((2, 4), (2, 6), (1, 8)):
        last = {"what": "kill", "step": step, "rank": world - 1}
        killed = ranks(recipe(tmp_path / "killed", **run, resume="auto"), ranks=world, faults=[last])
        assert killed.status[-1] == -signal.SIGKILL, killed.text
    done = train(tmp_path / "killed", ranks=3, **run, resume="auto")
    assert "resumed from" in done.stdout
    whole, resumed = _curves(tmp_path / "whole", tags), _curves(tmp_path / "killed", tags)
    for tag in tags:
        # A divergence near 0 is a difference of fp32 numbers near 1.
        steps = 9 if tag == "gradient_share/retention" else 10  # at first the model is the reference: no gradient
        assert len(whole[tag]) == steps and resumed[tag] == pytest.approx(whole[tag], rel=2e-4, abs=1e-7), tag
        assert resumed[tag][: steps - 6] == whole[tag][: steps - 6], tag
    assert all(len(set(whole[f"loss_weight/{name}"])) > 1 for name in at_the_end), "the weights adapt"
    dev = ["dev/loss/consistency", "dev/stated/agreement", "dev/evidence/attention", "dev/preference/accuracy"]
    dev += ["dev/general/perplexity"]
    found = _curves(tmp_path / "killed", dev)
    for tag, values in _curves(tmp_path / "whole", dev).items():
        assert values and found[tag] == pytest.approx(values, rel=2e-4), tag


@pytest.mark.long
def test_a_term_written_from_the_docs_trains(recipe, free_port, tmp_path):
    """The page's file and line, in a copy of the package: its curve is right, and the same on two ranks."""
    page = (ROOT / "docs/objectives.md").read_text(encoding="utf-8")
    file, line = re.findall(r"```(?:python|text)\n(.*?)```", page, flags=re.DOTALL)
    copy = tmp_path / "copy"
    for name in ("clsgen_dist", "ds_configs", "configs", "kernels"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "clsgen_dist/objectives/confidence_penalty.py").write_text(file)
    settings = copy / "clsgen_dist/objectives/settings.py"
    text = settings.read_text()
    first_import, first_field = "from clsgen_dist.objectives.adaptive_weights", "    schedule: Literal"
    assert first_import in text and first_field in text
    text = text.replace(
        first_import,
        "from clsgen_dist.objectives.confidence_penalty import ConfidencePenaltySettings\n" + first_import,
    )
    settings.write_text(text.replace(first_field, line + first_field, 1))

    def run(output: Path, count: int) -> None:
        flags = [*recipe(output, train__max_steps=2, model__head_init="zeros"), "--objectives.confidence_penalty.weight=0.1"]
        port = free_port()
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "clsgen_dist", "train", *flags],
                cwd=copy,
                env={
                    **os.environ, "PYTHONPATH": f"{copy}:{copy / 'kernels'}", "OMP_NUM_THREADS": "1", "RANK": str(rank),
                    "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_SIZE": str(count),
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(count)
        ]  # fmt: skip
        for process in processes:
            output_text, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output_text[-4000:]

    tags = ["loss/confidence_penalty", "loss_weight/confidence_penalty", "gradient_share/confidence_penalty", "loss/total"]
    run(tmp_path / "one", 1)
    one = _curves(tmp_path / "one", tags)
    assert one["loss/confidence_penalty"][0] == pytest.approx(-math.log(2), rel=1e-5)  # an untrained head
    assert one["loss_weight/confidence_penalty"] == pytest.approx([0.1, 0.1])
    run(tmp_path / "two", 2)
    for tag, values in _curves(tmp_path / "two", tags).items():
        assert values == pytest.approx(one[tag], rel=1e-3, abs=1e-6), tag


@pytest.mark.long
def test_interference_is_measured_and_changes_no_update(train, tmp_path):
    """Angles of the adapters' gradients on one rank and two; weights as without the measurement."""
    run = {**RUN, "model__head_dropout": 0.0, "train__max_steps": 4, "checkpoint__every": 4}
    train(tmp_path / "plain", **run)
    train(tmp_path / "two", **run, train__interference_every=2)
    train(tmp_path / "one", **run, train__interference_every=2, ranks=1)
    expected, got = _weights(tmp_path / "plain"), _weights(tmp_path / "two")
    for rank, weights in expected.items():
        torch.testing.assert_close(got[rank], weights, rtol=1e-4, atol=1e-6)
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "interference.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    layers, modules = 4, 7
    assert [row["step"] for row in two] == [2] * layers * modules * 2 + [4] * layers * modules * 2
    keys = ("step", "layer", "module", "matrix")
    assert [[row[key] for key in keys] for row in one] == [[row[key] for key in keys] for row in two]
    for a, b in zip(one, two, strict=True):
        assert b["generation_norm"] == pytest.approx(a["generation_norm"], rel=1e-2, abs=1e-9)
        if a["cosine"] is not None:
            assert b["cosine"] == pytest.approx(a["cosine"], abs=2e-2) and abs(a["cosine"]) <= 1
    # B starts at 0, so A learns nothing at first; by the second step it does.
    assert {row["matrix"] for row in two if row["cosine"] is not None} == {"A", "B"}
    (mean, last) = _curves(tmp_path / "two", ["interference/B"])["interference/B"]
    assert last == pytest.approx(sum(r["cosine"] for r in two if r["step"] == 4 and r["matrix"] == "B") / 28, abs=1e-6)
    assert -1 <= mean <= 1


@pytest.mark.long
def test_reviews_train_a_stage_of_their_own_on_an_exported_model(train, tmp_path):
    """Rows first, then what people thought of explanations: the second run goes on with the first one's head."""
    run = {**RUN, "model__head_dropout": 0.0, "train__batch_size": 6, "train__micro_batch_tokens": 512}
    train(tmp_path / "rows", **run | {"train__max_steps": 4, "checkpoint__every": 4, "optim__head_lr": 0.3})
    first = export(tmp_path / "rows", tmp_path / "first")
    run |= {"model__backbone": first, "model__head_init": "auto", "checkpoint__every": 20, "train__max_steps": 20}
    run |= {"data__train": _reviewed("train", tmp_path), "data__dev": _reviewed("dev", tmp_path)}
    run |= {"objectives__preference__weight": 1.0, "data__columns__rejected": "rejected"}
    run |= {"train__epochs": 4, "optim__lr": 3e-3, "train__eval_every": 10}
    done = train(tmp_path / "reviews", **run)
    assert f"the head starts from that of {first}" in done.stdout
    found = _curves(tmp_path / "reviews", ["loss/preference", "dev/preference/accuracy", "dev/auroc"])
    assert found["loss/preference"][0] == pytest.approx(math.log(2), rel=1e-5)  # the export is the reference
    assert sum(found["loss/preference"][-5:]) / 5 < 0.68 and found["dev/preference/accuracy"][-1] > 0.9
    assert found["dev/auroc"][-1] > 0.9  # what the first run's head knew
    # Consistency makes the LM name the class that such a head decides for.
    run |= {"objectives__preference__weight": 0.0, "objectives__consistency__weight": 2.0, "train__max_steps": 40}
    train(tmp_path / "consistent", **run | {"objectives__generation__weight": 0.1})
    agreement = _curves(tmp_path / "consistent", ["dev/stated/agreement"])["dev/stated/agreement"]
    assert agreement[-1] >= 0.85 and agreement[-1] > agreement[0]


@pytest.mark.long
def test_the_model_at_the_runs_start_is_a_reference_too(train, ranks, recipe, tmp_path):
    """With LoRA both references are the same model; with all weights, a run that was killed goes on with its start's."""
    run = {**RUN, "model__head_dropout": 0.0, "train__max_steps": 6, "train__micro_batch_tokens": 512, "train__batch_size": 6}
    run |= {"data__train": _reviewed("train", tmp_path), "data__dev": _reviewed("dev", tmp_path)}
    run |= {"objectives__preference__weight": 0.5, "data__columns__rejected": "rejected"}
    tags = ["loss/preference", "gradient_share/preference", "dev/preference/accuracy", "dev/loss/preference"]
    for loss in ("dpo", "kto"):
        run["objectives__preference__loss"] = loss
        train(tmp_path / f"{loss}-off", **run)
        train(tmp_path / f"{loss}-start", **run, objectives__preference__reference="start")
        off, start = (_curves(tmp_path / f"{loss}-{name}", tags) for name in ("off", "start"))
        assert off["loss/preference"][0] == pytest.approx(math.log(2) if loss == "dpo" else 0.5, rel=1e-5)
        for tag in tags:
            assert start[tag] == pytest.approx(off[tag], rel=1e-4), (loss, tag)
    run |= {"model__finetune": "full", "objectives__preference__reference": "start"}
    train(tmp_path / "whole", **run)
    killed = ranks(recipe(tmp_path / "killed", **run), faults=[{"what": "kill", "step": 5, "rank": 1}])
    assert killed.status[1] == -signal.SIGKILL
    (tmp_path / "killed/reference-dev.npz").write_bytes(b"damaged")  # computed again
    train(tmp_path / "killed", **run, resume="auto")
    assert _curves(tmp_path / "killed", tags) == _curves(tmp_path / "whole", tags)
    assert _curves(tmp_path / "whole", tags)["loss/preference"][-1] < 0.5
