"""Settings: what is accepted, what is refused, and the error messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clsgen_dist.config import SHIPPED, load_settings, parse_settings, settings_from_yaml, to_yaml
from clsgen_dist.engine.config import deepspeed_config
from clsgen_dist.errors import SettingsError

NEEDED = ["--data.train", "rows.jsonl", "--model.backbone", "some/model"]


def test_flags_override_the_file_and_the_rest_keeps_its_default(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {train: a.jsonl}\nmodel: {backbone: b}\noptim: {lr: 0.5, betas: [0.8, 0.9]}\n")
    settings = parse_settings(["--config", str(recipe), "--optim.lr", "0.25", "--local_rank=0"])
    assert (settings.optim.lr, settings.optim.betas, settings.data.train) == (0.25, (0.8, 0.9), "a.jsonl")
    assert settings.train.batch_size == 16


@pytest.mark.parametrize("written", ["0", "0.0"])
def test_a_spike_factor_of_0_turns_spike_detection_off(written):
    assert parse_settings([*NEEDED, "--faults.spike_factor", written]).faults.spike_factor == 0


def test_the_default_recipe_is_used_without_config():
    settings = parse_settings(["--train.epochs", "0.5"], default_config="configs/demo.yaml")
    assert settings.data.train == "demo:breast-cancer/train"
    assert settings.train.epochs == 0.5


def test_settings_round_trip_through_yaml():
    settings = parse_settings([*NEEDED, "--data.labels", '["no", "yes"]', "--train.max_steps", "7"])
    assert settings_from_yaml(to_yaml(settings)) == settings


@pytest.mark.parametrize(
    ("written", "labels"),
    [
        ("[no, yes]", ["no", "yes"]),
        ("[on, off]", ["on", "off"]),
        ("[0, 1]", ["0", "1"]),
        ("[1.0, 2.0]", ["1", "2"]),
        ("[-1, 0, 0.5]", ["-1", "0", "0.5"]),
        ("[True, false]", ["true", "false"]),
        ("[007, 1_000, 12:30, 2024-01-01]", ["007", "1_000", "12:30", "2024-01-01"]),
        ('["null", None, nan]', ["null", "None", "nan"]),
        ('["odd ", "fi\u00adne"]', ["odd", "fine"]),
    ],
)
def test_labels_are_read_as_text_not_as_yaml_types(written, labels, tmp_path):
    """In the file and on the command line, including the positive one; YAML's types do not apply."""
    recipe = tmp_path / "recipe.yaml"
    positive = written.strip("[]").split(", ")[-1]
    recipe.write_text(
        f"data: {{train: a, labels: {written}, positive_label: {positive}}}\nmodel: {{backbone: b}}\n", "utf-8"
    )
    in_file = parse_settings(["--config", str(recipe)]).data
    flags = ["--data.labels", written, "--data.positive_label", positive.strip('"')]
    for data in (in_file, parse_settings([*NEEDED, *flags]).data):
        assert (data.labels, data.positive_label) == (labels, labels[-1])


def test_numbers_and_booleans_in_the_file_keep_their_type(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: &rows {train: a, stream_window: null}\nmodel: {backbone: b}\noptim: {lr: 1e-3, betas: [0.8, 0.9]}\n"
        "curriculum: {stages: [{name: a, epochs: 0.5}]}\n"
        "train: {batch_size: 8, epochs: 2, activation_checkpointing: yes}\nprompt: {system: '5', question: 'a: b'}\n"
    )
    settings = parse_settings(["--config", str(recipe), "--prompt.question", "Is it so:"])
    assert (settings.optim.lr, settings.optim.betas, settings.train.batch_size) == (0.001, (0.8, 0.9), 8)
    assert (settings.train.epochs, settings.train.activation_checkpointing) == (2.0, True)
    with pytest.raises(SystemExit):
        parse_settings(["--config", str(recipe), "--print_config"])
    assert "'8'" not in (text := capsys.readouterr().out) and "batch_size: 8\n" in text and "epochs: 0.5\n" in text
    assert (settings.data.stream_window, settings.prompt.system, settings.prompt.question) == (None, "5", "Is it so:")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--trian.epochs", "3"], "did you mean --train.epochs?"),
        (["--train.epoch=3"], "did you mean --train.epochs?"),
        (["--train.epochs", "three"], "train.epochs is 'three', expected a number"),
        (["--train.max_steps", "1.5"], "train.max_steps is 1.5, expected a whole number"),
        (["--seed", "x"], "--seed is 'x', expected a whole number"),
        (["--overwrite", "maybe"], "--overwrite is 'maybe', expected true or false"),
        (["--optim.lr", "-1", "--optim.betas", "[a, b]"], "optim.betas.0 is 'a', expected a number"),
        (
            ["--prompt.question", "-x"],
            "--prompt.question has no value; write a value that begins with a dash as --NAME",
        ),
        (["--model", "{fintune: lora}"], "unknown setting model.fintune; did you mean model.finetune?"),
        (["--data.columns", "{txt: a}"], "unknown setting data.columns.txt; did you mean data.columns.text?"),
        (["--curriculum.difficulty.length", "x"], "curriculum.difficulty.length is 'x', expected a number"),
        (["--train.epochs", "--seed", "3"], "--train.epochs has no value"),
        (["--curriculum.stages", "[{name: a, steps: x}]"], "curriculum.stages.0.steps is 'x', expected a whole number"),
        (["--model.finetune", "loar"], "model.finetune is 'loar', expected one of 'full', 'lora', 'head'"),
        (["--optim.lr", "-1"], "optim.lr is -1.0, expected more than 0"),
        (["--train.micro_batch_size", "9"], "here it is train.micro_batch_tokens, a budget in tokens"),
        (["--model.head_dropout", "1.0"], "model.head_dropout is 1.0, expected a share from 0 to below 1"),
        (["--model.lora_dropout", "1"], "model.lora_dropout is 1.0, expected a share from 0 to below 1"),
        (["--model.lora_alpha", "0"], "model.lora_alpha is 0, expected more than 0"),
        (["--optim.betas", "[0.9, 1.0]"], "optim.betas.1 is 1.0, expected a share from 0 to below 1"),
        (["--optim.eps", "0"], "optim.eps is 0.0, expected more than 0"),
        (["--faults.spike_factor", "0.5"], "faults.spike_factor is 0.5, expected 0 or more than 1"),
        (["--objectives.min_share", "0.7"], "objectives.min_share is 0.7, expected a share from 0 to 0.5"),
        (
            ["--objectives.classification.focal_gamma", "2", "--objectives.classification.label_smoothing", "0.1"],
            "focal loss needs one certain class a row",
        ),
        (["--objectives.classification.class_weights", "{no: 0}"], "is {'no': 0.0}, expected numbers above 0"),
        (["--objectives.balance.bounds", "[2, 3]"], "expected [low, high] with 0 < low <= 1 <= high"),
        (["--objectives.classification.range", "[0, 0]"], "two factors of 0 or more, not both 0"),
        (
            ["--curriculum.stages", '[{"name": "a", "epochs": 1, "classification_range": [0.1, 1]}]'],
            "'a': loss ranges with the schedule constant",
        ),
        (
            ["--curriculum.stages", "[{name: a, steps: 1, max_prompt_length: 999}]"],
            "more than data.max_prompt_length 768",
        ),
        (["--curriculum.stages", "[{name: a, steps: 0}]"], "curriculum.stages['a'].steps is 0, expected more than 0"),
        (["--curriculum.stages", "[{name: a, steps: 1, jumps: 101}]"], "jumps is 101, expected 1 to 100"),
        (["--curriculum.stages", "[{name: a, steps: 1, start: 0}]"], "start is 0.0, expected a share above 0, up to 1"),
        (["--curriculum.stages", "[{name: a, steps: 1, replay: 1}]"], "expected a share from 0 to below 1"),
        (["--curriculum.stages", "[{name: a}]"], "curriculum stage 'a': give either epochs or steps"),
        (["--curriculum.stages", "[{name: a, step: 1}]"], "did you mean steps?"),
        (["--curriculum.stages", "[{name: a, steps: 1, pacin: root}]"], "did you mean pacing?"),
        (["--data.stream_window", "2"], "needs data.labels"),
        (["--curriculum.difficulty", "{}"], "expected scorers with weights above 0"),
        (["--data.labels", "[a]"], "two or more different names"),
        (["--data.labels", "[null, x]"], 'quote the class, like ["null", "yes"]'),
        (["--data.labels", '["", x]'], "expected no empty name"),
        (["--data.labels", "[1, 1.0]"], "['1', '1'], expected two or more different names"),
        (["--data.labels", '["odd", "odd\u200b"]'], "two or more different names"),
        (["--data.labels", "no,yes"], "write the classes as a list of names, like [no, yes]"),
        (["--data.labels", "[a, b]", "--data.positive_label", "c"], "one of data.labels"),
        (["--train.eval_every", "5"], "data.dev is not set"),
        (["--train.early_stop_patience", "2"], "nothing is compared"),
        (
            ["--objectives.generation.weight", "0", "--objectives.classification.weight", "0"],
            "nothing would be trained",
        ),
        (["--model.load_in_4bit", "true", "--model.finetune", "full"], "use finetune=lora"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_wrong_settings_are_refused_with_the_value_and_a_fix(flags, expected, capsys):
    with pytest.raises(SettingsError) as refused:
        parse_settings([*NEEDED, *flags])
    assert expected in str(refused.value) and "\n" not in str(refused.value)
    assert capsys.readouterr() == ("", "")  # whoever asked prints it


def test_unknown_key_in_the_file_suggests_the_nearest(tmp_path):
    for text, expected in (("fintune: lora", "model.finetune"), ("trian: {epochs: 3}", "train")):
        recipe = tmp_path / "recipe.yaml"
        nested = f"model:\n  backbone: b\n  {text}\n" if "fintune" in text else f"model: {{backbone: b}}\n{text}\n"
        recipe.write_text(f"data: {{train: a}}\n{nested}")
        with pytest.raises(SettingsError, match=f"did you mean {expected}"):
            parse_settings(["--config", str(recipe)])


def test_settings_of_another_version_are_refused():
    with pytest.raises(SettingsError, match="bogus"):
        settings_from_yaml("data: {train: a}\nmodel: {backbone: b}\nbogus: 1\n")


def test_missing_settings_are_named():
    with pytest.raises(SettingsError, match=r"data\.train, model\.backbone"):
        parse_settings([])


def test_load_settings_raises_what_is_wrong(tmp_path):
    assert load_settings("configs/demo.yaml", {"train.max_steps": 7, "data.labels": None}).train.max_steps == 7
    for recipe, changes, expected in (
        ("nowhere.yaml", {}, "'nowhere.yaml' is not a file"),
        ("configs/demo.yaml", {"train.epoch": 2}, r"unknown option --train\.epoch; did you mean --train\.epochs\?"),
        ("configs/demo.yaml", {"train.epochs": "two"}, r"train\.epochs is 'two', expected a number"),
    ):
        with pytest.raises(SettingsError, match=expected):
            load_settings(recipe, changes)


def test_every_setting_is_documented(capsys):
    with pytest.raises(SystemExit):
        parse_settings(["--help"])
    text = capsys.readouterr().out
    for part in text.split("\n  --")[1:]:
        name, _, described = part.partition(" ")
        assert len(described.replace("\n", " ").split("(type")[0].strip()) > 15, f"--{name} has no description"


# --- the DeepSpeed file ---------------------------------------------------------------------------------------------

FILL = {
    "batch_size": 23,
    "world_size": 3,
    "max_grad_norm": 1.0,
    "bf16": False,
    "optimizer": "adamw",
}
ROOT = Path(__file__).resolve().parent.parent


def test_auto_fields_are_filled_in_from_the_settings():
    config = deepspeed_config(ROOT / "ds_configs/zero3.json", **FILL)
    assert config["train_batch_size"] == 24
    assert config["gradient_accumulation_steps"] == 1
    assert config["gradient_clipping"] == 1.0
    assert config["bf16"] == {"enabled": False}
    assert config["zero_optimization"]["stage"] == 3


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda p: p.name)
def test_shipped_deepspeed_files_are_accepted(path):
    # Eight ranks, as the hpZ files assume eight GPUs a node.
    assert deepspeed_config(path, **{**FILL, "optimizer": "adamw", "world_size": 8})["zero_optimization"]["stage"] == 3


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        ({"train_micro_batch_size_per_gpu": 7}, {}, "train_micro_batch_size_per_gpu is 7, but the settings make it 8"),
        ({"gradient_clipping": 0.5}, {}, "gradient_clipping is 0.5"),
        ({"bf16": {"enabled": True}}, {}, "bf16.enabled is True"),
        ({"fp16": {"enabled": True}}, {}, "fp16.enabled is True"),
        ({"zero_optimization": {"stage": 2}}, {}, "stage is 2, expected 3"),
        ({"optimizer": {"type": "AdamW"}}, {}, "a section 'optimizer'"),
        ({"scheduler": {"type": "WarmupLR"}}, {}, "a section 'scheduler'"),
        ({}, {"optimizer": "cpu_adamw"}, "offload_optimizer is not set"),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}},
            {"optimizer": "adamw_8bit"},
            "cannot be offloaded",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}},
            {},
            "zero_force_ds_cpu_optimizer",
        ),
    ],
)
def test_deepspeed_fields_that_contradict_the_settings_are_refused(change, options, expected, tmp_path):
    config = {**json.loads((ROOT / "ds_configs/zero3.json").read_text()), **change}
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(config))
    with pytest.raises(SettingsError, match=expected):
        deepspeed_config(path, **{**FILL, **options})


def test_a_deepspeed_file_with_broken_json_is_refused(tmp_path):
    path = tmp_path / "zero.json"
    path.write_text("{")
    with pytest.raises(SettingsError, match=r"zero\.json is not valid JSON"):
        deepspeed_config(path, **FILL)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_missing_permissions_are_a_one_line_error(tmp_path):
    (tmp_path / "locked/run").mkdir(parents=True)
    (tmp_path / "locked").chmod(0o700)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to("/tmp/") and folder != Path("/tmp"):
            folder.chmod(0o755)
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-m", "clsgen_dist"]
    if subprocess.run([*other, "--help"], cwd=SHIPPED, capture_output=True).returncode:
        pytest.skip("another user may not run this Python")
    env = {**os.environ, "PYTHONPATH": f"{SHIPPED}:{SHIPPED}/kernels", "HOME": "/nowhere"}
    for words, expected in (
        (["export", "--checkpoint", "locked/run", "--output", "x"], "locked/run/committed.json may not be read or"),
        (
            ["train", "--config", "locked/recipe.yaml"],
            "locked/recipe.yaml may not be read or written by this user (Permission",
        ),
    ):
        done = subprocess.run([*other, *words], env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert f"error: {expected}" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "data: {train: a}\nmodel: {backbone: b}\noptim: {lr: 0.1}\noptim: {eps: 0.1}\n",
            "'optim' occurs twice, in lines 3",
        ),
        (
            "data: {train: a}\nmodel: {backbone: b}\noptim: {lr: 0.1, lr: 0.2}\n",
            "'lr' occurs twice, in lines 3 and 3",
        ),
        (
            "data: {train: a}\nmodel: {backbone: b}\ncurriculum: {stages: [{name: x, name: y}]}\n",
            "'name' occurs twice",
        ),
    ],
)
def test_a_duplicate_setting_in_a_recipe_is_refused(text, message, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SettingsError) as refused:
        parse_settings(["--config", str(tmp_path / "recipe.yaml")])
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_duplicate_field_in_the_deepspeed_file_is_refused(tmp_path):
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 3,\n\t"stage": 2}}')
    with pytest.raises(SettingsError, match="'stage' is in one object twice; keep one of them"):
        deepspeed_config(
            tmp_path / "zero.json", batch_size=8, world_size=1, max_grad_norm=1.0, bf16=False, optimizer="adamw"
        )
