"""`clsgen dryrun` at full size, and its errors; test_measured.py compares it with real runs."""

from __future__ import annotations

import json
import resource

import pytest

from clsgen_dist.cli import main

MODELS = "configs/models"


@pytest.mark.long
@pytest.mark.slow
def test_70b_on_512_ranks_takes_under_two_minutes_and_little_memory(run_command, tmp_path):
    file = tmp_path / "dry.json"
    printed = run_command(
        "clsgen", "dryrun", "--config", "configs/70b_zero3.yaml", "--model.backbone", f"{MODELS}/llama-3-70b",
        "--ranks", "512", "--micro_steps", "1", "--json", str(file),
    )  # fmt: skip
    found = json.loads(file.read_text())
    assert found["seconds"] < 120
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4e6  # kB; the weights alone are 141 GB
    head = 2 * 8192 + 2
    assert found["parameters"] == found["trainable"] == 70_553_706_496 + head
    assert found["units"] == {"LlamaDecoderLayer": 79}
    shares = found["partitions"]
    assert len(shares) == 723 + 2
    assert shares["lm.lm_head.weight"] == 128256 * 8192 // 512
    assert shares["classification_head.bias"] == 1  # padded
    assert found["held"]["weights"] == 2 * sum(shares.values())
    assert found["held"]["master weights"] == 4 * sum(shares.values())
    # Gradients of all weights are reduced once in a micro-step; every collective spans all ranks.
    reduced = sum(c["elements"] for c in found["step"] if c["op"] == "_reduce_scatter_base_")
    assert reduced == 512 * sum(shares.values())
    assert {c["ranks"] for c in found["step"]} == {512}
    states = found["files"]["bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"]
    assert states == pytest.approx(12 * sum(shares.values()), rel=1e-6)
    assert "all ranks: 1,024 files" in printed.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["multilabel", "ordinal"])
def test_every_label_space_and_reading_is_simulated(kind, tiny_backbone, run_command, tmp_path):
    file = tmp_path / "dry.json"
    run_command(
        "clsgen", "dryrun", "--config", "configs/demo.yaml", "--model.backbone", str(tiny_backbone), "--ranks", "4",
        "--model.top_layers", "2", "--data.label_space", kind, "--model.decide", "both", "--json", str(file),
        "--objectives.classification.class_weights", "{benign: 2, malignant: 1}",
    )  # fmt: skip
    shares = json.loads(file.read_text())["partitions"]
    logits = {"multilabel": 2, "ordinal": 1}[kind]
    assert shares["classification_head.weight"] == logits * 64 // 4


def test_bad_input_is_a_one_line_error(run_command):
    for flags, message in (
        (("--ranks", "0"), "--ranks is 0, expected more than 0"),
        (("--model.backbone", "./nowhere"), "is not a folder with a config.json"),
        (("--model.load_in_4bit", "true"), "a dry run reads none"),
    ):
        done = run_command("clsgen", "dryrun", "--config", "configs/8b_lora.yaml", *flags, check=False)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ranks", "x"], "--ranks is 'x', expected a whole number"),
        (["--rank", "8"], "unknown option --rank; did you mean --ranks?"),
        (["--json", "."], ". cannot be written"),
    ],
)
def test_wrong_flags_are_refused_before_the_run(flags, message, capsys):
    with pytest.raises(SystemExit) as refused:
        main(["dryrun", "--config", "configs/8b_lora.yaml", *flags])
    assert refused.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
