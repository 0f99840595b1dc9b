"""Training with an LM head that stays sharded, on real ranks, against one process that has all of it."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clsgen_dist import checkpoint
from clsgen_dist.hf_export.export import export
from clsgen_dist.hf_export.merge import trained_tensors

pytestmark = [pytest.mark.dist, pytest.mark.slow]

SMOOTH = {"optim__eps": 1e-2, "optim__lr": 0.05, "train__max_steps": 4}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows with and without label, and with and without explanation: some ranks' micro-batches supervise no token."""
    from clsgen_dist.data.demos.breast_cancer import load_splits

    kept = []
    for i, row in enumerate(load_splits(0)["train"].rows[:40]):
        left_out = {1: "label", 2: "explanations", 3: "explanations"}.get(i % 4)
        kept.append({key: value for key, value in row.items() if key != left_out})
    path = tmp_path_factory.mktemp("rows") / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return path


def _trained(output):
    folder = checkpoint.committed(output / "checkpoints")[-1]
    return {name: tensor.contiguous().detach().clone().double() for name, tensor in trained_tensors(folder).items()}


def _worst(got, truth):
    """Largest difference of an update, relative to the norm of the parameter."""
    assert got.keys() == truth.keys()
    return max(((got[name] - truth[name]).norm() / truth[name].norm()).item() for name in truth)


@pytest.fixture(scope="module")
def odd_backbones(tiny_backbone, tmp_path_factory):
    """Backbones with one row more than the tokenizer has tokens, so that two ranks cut a row; tied and untied."""
    import transformers

    def build(tied):
        folder = tmp_path_factory.mktemp("odd") / ("tied" if tied else "untied")
        config = transformers.AutoConfig.from_pretrained(tiny_backbone)
        config.vocab_size, config.tie_word_embeddings = config.vocab_size + 1, tied
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(folder)
        return folder

    return {tied: build(tied) for tied in (True, False)}


SHARDED = {"objectives__lm_head": "sharded", "train__micro_batch_tokens": 160}


@pytest.mark.parametrize(
    ("tied", "world"),
    [(True, 2), *(pytest.param(tied, world, marks=pytest.mark.long) for tied, world in ((True, 4), (False, 2), (False, 4)))],
)
def test_weights_equal_those_of_one_process(tied, world, train, rows, odd_backbones, tmp_path):
    """Rows are packed unevenly, so some micro-batches supervise no token on some rank; gradients are clipped."""
    options = {"data__train": rows, "model__backbone": odd_backbones[tied], "optim__max_grad_norm": 0.5, **SMOOTH}
    train(tmp_path / "one", ranks=1, **options)
    train(tmp_path / "sharded", ranks=world, **options, **SHARDED)
    assert _worst(_trained(tmp_path / "sharded"), _trained(tmp_path / "one")) < 1e-6


@pytest.mark.long
def test_a_killed_run_resumes_bit_equal_and_at_other_rank_counts_and_is_exported(
    train, ranks, recipe, rows, odd_backbones, tmp_path
):
    """Two ranks, killed; two to the end: bit-equal. Two ranks, killed; three, killed; one gathered to the end: alike."""
    run = {"data__train": rows, "model__backbone": odd_backbones[True], "train__epochs": 2, "checkpoint__every": 2}
    run |= {**SMOOTH, **SHARDED, "train__max_steps": 8, "model__head_dropout": 0.1}
    train(tmp_path / "whole", **run)

    def kill(folder, world, step):
        last = {"what": "kill", "step": step, "rank": world - 1}
        killed = ranks(recipe(folder, **run, resume="auto"), ranks=world, faults=[last])
        assert killed.status[-1] == -signal.SIGKILL, killed.text

    kill(tmp_path / "same", 2, 5)
    assert "resumed from" in train(tmp_path / "same", **run, resume="auto").stdout
    whole, same = _trained(tmp_path / "whole"), _trained(tmp_path / "same")
    assert all(torch.equal(whole[name], same[name]) for name in whole)

    run["model__head_dropout"] = 0.0  # it is drawn anew for other micro-batches
    kill(tmp_path / "other", 2, 3)
    kill(tmp_path / "other", 3, 6)
    train(tmp_path / "other", ranks=1, **{**run, "objectives__lm_head": "gathered"}, resume="auto")
    train(tmp_path / "gathered", **{**run, "objectives__lm_head": "gathered"})
    assert _worst(_trained(tmp_path / "other"), _trained(tmp_path / "gathered")) < 5e-6
    export(tmp_path / "other", tmp_path / "exported", max_shard_bytes=10**9, verify_logits=True)


@pytest.mark.long
def test_every_term_of_the_loss_is_that_of_a_gathered_head(train, tmp_path):
    """The LM head frozen under LoRA: terms that read it once more, and the classes' names at the prompts' ends."""
    row = {"text": "The cell nuclei are large and irregular.", "label": "malignant", "explanation": "Malignant: large nuclei."}
    other = {"text": "The cell nuclei are small and round.", "label": "benign", "explanation": "Benign: small round nuclei."}
    reviewed = [{**(other if i % 2 else row), "rejected": "Benign: it looks odd." if i % 3 else None} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in reviewed))
    texts = [{"text": f"The train to town number {i} leaves in the morning."} for i in range(12)]
    (tmp_path / "general.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    run = {"data__train": tmp_path / "rows.jsonl", "data__dev": tmp_path / "rows.jsonl", "model__finetune": "lora"}
    run |= {"data__columns__rejected": "rejected", "data__replay": tmp_path / "general.jsonl", "train__eval_every": 2}
    run |= {"objectives__preference__weight": 0.5, "objectives__preference__loss": "kto", "train__batch_size": 6}
    run |= {"objectives__retention__weight": 0.5, "objectives__consistency__weight": 0.5, "train__max_steps": 4}
    curves = []
    for lm_head in ("gathered", "sharded"):
        train(tmp_path / lm_head, **run, objectives__lm_head=lm_head)
        log = EventAccumulator(str(tmp_path / lm_head / "tensorboard"), size_guidance={"scalars": 0})
        log.Reload()
        tags = [tag for tag in log.Tags()["scalars"] if tag.startswith(("loss/", "dev/", "gradient", "accuracy", "optim"))]
        curves.append({tag: [event.value for event in log.Scalars(tag)] for tag in tags})
    gathered, sharded = curves
    assert gathered.keys() == sharded.keys() and {"loss/preference", "loss/retention", "dev/stated/agreement"} <= set(gathered)
    for tag, values in gathered.items():
        # A divergence near 0 is a difference of fp32 numbers near 1.
        rel = 3e-4 if tag.endswith("retention") else 2e-5
        assert sharded[tag] == pytest.approx(values, rel=rel, abs=1e-7, nan_ok=True), tag


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"train__precision": "bf16"}, 5e-3),
        ({"deepspeed": "ds_configs/zero3_offload.json", "optim__name": "cpu_adamw"}, 2e-6),
        ({"train__activation_checkpointing": "true", "model__finetune": "lora", "train__interference_every": 2}, 1e-5),  # B starts at 0
    ],
    ids=["bf16", "weights and optimizer on the host", "LoRA, checkpointing, two passes"],
)
def test_variants_train_as_with_a_gathered_head(options, tolerance, train, rows, odd_backbones, tmp_path):
    run = {"data__train": rows, "model__backbone": odd_backbones[True], **SMOOTH, **options}
    for lm_head in ("gathered", "sharded"):
        train(tmp_path / lm_head, **run, objectives__lm_head=lm_head)
    assert _worst(_trained(tmp_path / "sharded"), _trained(tmp_path / "gathered")) < tolerance


def test_a_head_that_cannot_stay_sharded_is_refused(train, rows, tmp_path):
    done = train(tmp_path / "run", check=False, data__train=rows, objectives__lm_head="sharded", objectives__impl="reference")
    assert done.returncode == 2 and "set impl to auto" in done.stderr
