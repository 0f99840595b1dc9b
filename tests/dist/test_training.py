"""Two ranks under ZeRO-3 against one process of plain torch, however training is distributed."""

from __future__ import annotations

import math

import pytest
import torch

from clsgen_dist.config import parse_settings
from clsgen_dist.data.encode import Encoder
from clsgen_dist.data.pack import collate
from clsgen_dist.training.datasets import open_datasets
from clsgen_dist import checkpoint
from clsgen_dist.engine.optim import lr_factor, parameter_groups
from clsgen_dist.training.sampling_plan import plan_stream
from clsgen_dist.hf_export.artifact import HEAD_FILE
from clsgen_dist.hf_export.export import export
from clsgen_dist.hf_export.merge import trained_tensors
from clsgen_dist.model.classification_head import HeadSpec
from clsgen_dist.model.dual_head import LossSpec
from clsgen_dist.model.backbone import build_model, label_start_tokens, load_backbone, load_tokenizer, open_backbone

pytestmark = [pytest.mark.dist, pytest.mark.slow]


SMOOTH = {"optim__eps": 1e-2, "optim__max_grad_norm": 1e6, "optim__lr": 0.05}
"""A large epsilon makes Adam's update follow the gradient's size, so that a gradient scaled wrongly shows, and rounding
of gradients near zero does not; no clipping, which would hide a scale too."""


def _plain_torch(settings) -> dict[str, torch.Tensor]:
    """The same training in the plainest way: one process, no engine, all logits, global means written out."""
    tokenizer = load_tokenizer(settings.model.backbone)
    encoder = Encoder(
        tokenizer,
        system=settings.prompt.system,
        question=settings.prompt.question,
        max_prompt_length=settings.data.max_prompt_length,
    )
    rows = open_datasets(settings.data, encoder, None)
    model = build_model(load_backbone(open_backbone(settings.model.backbone), dtype=torch.float32, attention="sdpa"), head=HeadSpec(2, label_tokens=label_start_tokens(encoder, rows.labels)), losses=LossSpec("reference"), finetune=settings.model.finetune, top_layers=settings.model.top_layers, lora_rank=settings.model.lora_rank, lora_alpha=settings.model.lora_alpha, seed=settings.seed)
    groups = parameter_groups(model, lr=settings.optim.lr, head_lr=settings.optim.head_lr, weight_decay=settings.optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, eps=settings.optim.eps)
    stream = plan_stream(settings, rows, rank=0, world_size=1)
    total = min(stream.steps, settings.train.max_steps or stream.steps)
    model.train()
    for step in range(total):
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr_factor(step, total, warmup_fraction=0.1, final_fraction=0.1)
        # Each row alone: nothing is packed.
        batches = [collate([rows.train.sample(int(row), int(visit))]) for row, visit in zip(*stream.chosen(step))]
        outputs = [model(**batch.inputs()) for batch in batches]
        generation = torch.cat([o.generation_loss for o in outputs]).mean()
        classification = torch.cat([o.class_loss for o in outputs]).sum() / max(1, sum(b.labelled for b in batches))
        (
            settings.objectives.generation.weight * generation
            + settings.objectives.classification.weight * classification
        ).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.optim.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _trained(output):
    folder = checkpoint.committed(output / "checkpoints")[-1]
    tensors = {name: tensor.contiguous().detach().clone() for name, tensor in trained_tensors(folder).items()}
    tied = tensors.pop("lm.lm_head.weight", None)
    assert tied is None or torch.equal(tied, tensors["lm.model.embed_tokens.weight"])
    return tensors


def _worst_difference(got, truth):
    assert got.keys() == truth.keys()
    return max((got[name] - truth[name]).abs().max().item() for name in truth)


@pytest.fixture(scope="module")
def mixed_rows(tmp_path_factory):
    """Rows of every kind: with and without label, with and without explanation."""
    import json

    from clsgen_dist.data.demos.breast_cancer import load_splits

    rows = []
    for i, row in enumerate(load_splits(0)["train"].rows[:43]):
        kept = dict(row)
        if i % 4 == 1:
            del kept["label"]
        if i % 4 == 2:
            del kept["explanations"]
        rows.append(kept)
    path = tmp_path_factory.mktemp("rows") / "mixed.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture(scope="module")
def plain(recipe, mixed_rows, tmp_path_factory):
    """Settings and weights of the plain-torch run."""
    flags = recipe(tmp_path_factory.mktemp("plain"), data__train=mixed_rows, **SMOOTH)
    settings = parse_settings(flags, default_config="configs/demo.yaml")
    return _plain_torch(settings)


@pytest.mark.parametrize(
    ("world", "overrides"),
    [
        (2, {}),
        (1, {"train__micro_batch_tokens": 1024}),
        (2, {"train__micro_batch_tokens": 128, "train__activation_checkpointing": "true"}),
    ],
    ids=["2 ranks", "1 rank", "2 ranks, many micro-steps, activation checkpointing"],
)
def test_weights_equal_plain_torch_however_the_batch_is_distributed(world, overrides, train, plain, mixed_rows, tmp_path):
    """Ten rows a step are packed unevenly, and some ranks get no labelled row: only global means give equal weights."""
    train(tmp_path / "run", ranks=world, data__train=mixed_rows, **SMOOTH, **overrides)
    assert _worst_difference(_trained(tmp_path / "run"), plain) < 2e-5


def test_lora_on_the_top_layers_equals_plain_torch(train, recipe, mixed_rows, tmp_path):
    overrides = {"data__train": mixed_rows, "model__finetune": "lora", "model__top_layers": 2, "optim__eps": 1e-2}
    overrides["optim__max_grad_norm"] = 0.5
    train(tmp_path / "run", **overrides)
    settings = parse_settings(recipe(tmp_path / "other", **overrides), default_config="configs/demo.yaml")
    trained = _trained(tmp_path / "run")
    assert _worst_difference(trained, _plain_torch(settings)) < 2e-5
    layers = {name.split(".layers.")[1].split(".")[0] for name in trained if ".layers." in name}
    assert layers == {"2", "3"}
    assert all("lora_" in name or name.startswith("classification_head.") for name in trained)


def test_eight_bit_adamw_trains_under_zero3(train, mixed_rows, tmp_path):
    done = train(tmp_path / "run", ranks=1, data__train=mixed_rows, optim__name="adamw_8bit", train__max_steps=2)
    assert "last checkpoint" in done.stdout
    states = torch.load(
        next((checkpoint.committed(tmp_path / "run" / "checkpoints")[-1]).glob("*optim_states.pt")), weights_only=False
    )
    assert any(t.dtype == torch.uint8 for t in _tensors(states)), "the optimizer's state is not in 8 bits"


def test_training_stops_when_the_dev_metric_no_longer_improves(train, mixed_rows, tmp_path):
    overrides = {"data__dev": "demo:breast-cancer/dev", "train__eval_every": 1, "train__early_stop_patience": 2}
    done = train(tmp_path / "run", ranks=1, data__train=mixed_rows, optim__lr=1e-12, optim__head_lr=1e-12, **overrides)
    newest = checkpoint.committed(tmp_path / "run" / "checkpoints")[-1]
    assert checkpoint.read_marker(newest)["state"]["step"] == 3  # the first is the best, then two without gain
    assert f"best checkpoint: {tmp_path / 'run' / 'checkpoints' / checkpoint.folder_name(1)}" in done.stdout


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"data__train": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
        ({"data__labels": "[cat, dog]", "data__positive_label": "dog"}, "unknown label: 'malignant' is not in the label space"),
        ({"model__backbone": "./nowhere"}, "is not a folder"),
        ({"deepspeed": "nowhere.json"}, "'nowhere.json' is not a file"),
    ],
)
def test_user_errors_are_one_line_without_a_traceback(overrides, expected, train, mixed_rows, tmp_path):
    done = train(tmp_path / "run", ranks=1, check=False, **{"data__train": mixed_rows, **overrides})
    assert done.returncode != 0
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_cpu_adam_with_offload_trains_like_torch_adamw(train, mixed_rows, recipe, tmp_path):
    """DeepSpeedCPUAdam compiles at first use (about 2 minutes); its weights are AdamW's within rounding."""
    overrides = {"data__train": mixed_rows, "train__max_steps": 3, **SMOOTH}
    train(tmp_path / "torch", ranks=1, **overrides)
    offload = {"deepspeed": "ds_configs/zero3_offload.json", "optim__name": "cpu_adamw"}
    train(tmp_path / "offload", ranks=1, **overrides, **offload)
    assert _worst_difference(_trained(tmp_path / "offload"), _trained(tmp_path / "torch")) < 2e-5


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def test_the_first_loss_is_that_of_an_untrained_model(train, mixed_rows, tmp_path):
    """Under zero.Init a wrongly initialised model shows here: ln V for tokens, ln 2 for classes."""
    train(tmp_path / "run", ranks=1, data__train=mixed_rows, train__max_steps=1, model__head_init="zeros")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    log.Reload()
    assert log.Scalars("loss/generation")[0].value == pytest.approx(math.log(49152), rel=0.03)
    assert log.Scalars("loss/classification")[0].value == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("finetune", ["full", "lora"])
def test_bf16_trains_head_and_adapters_with_fp32_master_weights(ranks, recipe, tmp_path, finetune):
    options = {"train__precision": "bf16", "train__max_steps": 4, "model__finetune": finetune}
    done = ranks(recipe(tmp_path / "run", data__train="demo:breast-cancer/train", **options))
    assert done.status == [0, 0], done.text
    (file,) = (tmp_path / "run/checkpoints").glob("step-*/*rank_0_mp_rank_00_optim_states.pt")
    state = torch.load(file, weights_only=False)["optimizer_state_dict"]
    assert {flat.dtype for flat in state["fp32_flat_groups"]} == {torch.float32}
    assert all(p["exp_avg"].abs().sum() > 0 for p in state["optimizer_state_dict"]["state"].values())
    export(tmp_path / "run", tmp_path / "exported", max_shard_bytes=10**9, verify_logits=True)
    assert (tmp_path / "exported" / HEAD_FILE).exists()
