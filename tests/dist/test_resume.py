"""A run that is killed and resumed ends bit-equal to one that was not."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from clsgen_dist import checkpoint

pytestmark = [pytest.mark.dist, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
RUN = {
    # 256 rows: the first stage ends after step 5, and all rows of the second have been visited after step 18.
    "data__dev": "few",
    "model__finetune": "lora",
    "model__top_layers": 3,
    "model__head_dropout": 0.2,
    "model__lora_dropout": 0.1,
    "train__batch_size": 16,
    "train__micro_batch_tokens": 256,
    "curriculum__stages": "[{name: easy, steps: 5, difficulty: [0, 0.5], max_prompt_length: 72}, "
    "{name: grow, steps: 19, pacing: root, start: 0.5, lr_factor: 0.8}]",
    "objectives__schedule": "cosine",
    "train__log_rows": "true",
    "train__eval_every": 8,
    "checkpoint__every": 2,
    "checkpoint__keep_last": 2,
}


def _kill_one_rank_when(committed_step: int, output: Path, flags: list[str], port: str) -> None:
    """Start the ranks, wait for a committed checkpoint, kill -9 one rank; the job must end by itself, with an error."""
    log = (output.parent / f"killed-at-{committed_step}.log").open("w")
    launcher = subprocess.Popen(
        [Path(sys.executable).parent / "deepspeed", "--num_gpus", "2", "--master_port", port, "train.py", *flags],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        marker = output / "checkpoints" / checkpoint.folder_name(committed_step) / checkpoint.MARKER
        deadline = time.monotonic() + 120
        while not marker.exists():
            assert launcher.poll() is None, f"ended before step {committed_step}: {log.name}"
            assert time.monotonic() < deadline, f"no checkpoint at step {committed_step} in time: {log.name}"
            time.sleep(0.02)
        processes = [
            p
            for p in psutil.Process(launcher.pid).children(recursive=True)
            if any(a.startswith("--local_rank=") for a in p.cmdline())
        ]
        assert len(processes) == 2
        processes[-1].send_signal(signal.SIGKILL)
        assert launcher.wait(timeout=90) != 0, "the death of a rank must not look like success"
    finally:
        if launcher.poll() is None:
            for child in psutil.Process(launcher.pid).children(recursive=True):
                child.kill()
            launcher.kill()
        log.close()


@pytest.fixture(scope="module")
def uninterrupted(launch, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    done = launch(output, **RUN)
    (output.parent / "stdout").write_text(done.stdout)
    (output.parent / "stderr").write_text(done.stderr)
    return output


def test_library_warnings_are_not_printed(uninterrupted):
    """Only the launcher's own lines come before ours; `deepspeed --log_level error` silences them."""
    launcher = re.compile(r"\[(runner|launch|real_accelerator)\.py:\d+:\w+\]")
    output = (uninterrupted.parent / "stdout").read_text().splitlines()
    assert [line for line in output if line.strip() and not launcher.search(line)] == []
    ours = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (?!.*(Warning|\[INFO\]))|train \d+/\d+ ")
    errors = (uninterrupted.parent / "stderr").read_text().replace("\r", "\n").splitlines()
    assert [line for line in errors if line.strip() and not ours.match(line) and not launcher.search(line)] == []
    assert any("2 classes: " in line for line in errors)


@pytest.fixture(scope="module")
def twice_killed(recipe, train, ranks, tmp_path_factory):
    output = tmp_path_factory.mktemp("killed") / "run"
    killed = ranks(recipe(output, **RUN), faults=[{"what": "kill", "step": 7, "rank": 1}])
    assert killed.status[1] == -signal.SIGKILL and checkpoint.committed(output / "checkpoints")
    # Past the end of the first epoch.
    killed = ranks(recipe(output, **RUN, resume="auto"), faults=[{"what": "kill", "step": 19, "rank": 1}])
    assert killed.status[1] == -signal.SIGKILL and checkpoint.committed(output / "checkpoints")[-1].name >= "step-00000016"
    done = train(output, **RUN, resume="auto")
    return output, done


def _states(output: Path) -> dict[str, object]:
    folder = checkpoint.committed(output / "checkpoints")[-1]
    assert folder.name == checkpoint.folder_name(24)
    return {p.name: torch.load(p, weights_only=False) for p in sorted(folder.glob("*optim_states.pt"))}


def _assert_bit_equal(a, b, path=""):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), f"{path} differs by {(a - b).abs().max()}"
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_bit_equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            _assert_bit_equal(x, y, f"{path}[{i}]")


@pytest.mark.long
def test_the_launcher_ends_with_an_error_when_a_rank_is_killed(recipe, free_port, tmp_path):
    _kill_one_rank_when(6, tmp_path / "run", recipe(tmp_path / "run", **RUN), free_port())
    assert checkpoint.newest_valid(tmp_path / "run/checkpoints")


def test_a_run_killed_twice_and_resumed_ends_bit_equal(uninterrupted, twice_killed):
    output, done = twice_killed
    assert "resumed from" in done.stdout
    ours, theirs = _states(output), _states(uninterrupted)
    assert len(ours) == 2
    tensors = sum(1 for _ in _walk(ours))
    assert tensors > 4
    _assert_bit_equal(ours, theirs)


def _walk(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from _walk(v)
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _walk(v)


def test_resumed_curves_equal_uninterrupted_ones(uninterrupted, twice_killed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = []
    for output in (uninterrupted, twice_killed[0]):
        log = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0})
        log.Reload()
        tags = ("loss/generation", "loss/classification", "optim/lr", "dev/auroc", "curriculum/stage")
        tags += ("loss_weight/classification", "curriculum/difficulty", "data/wait_seconds")
        curves.append({tag: {e.step: e.value for e in log.Scalars(tag)} for tag in tags})
    waits = [curve.pop("data/wait_seconds") for curve in curves]
    assert all(len(wait) == 24 for wait in waits)
    assert curves[0] == curves[1]
    assert [curves[0]["curriculum/stage"][step] for step in (5, 6)] == [0, 1]
    # A fifth of 0.5, raised to 5 % of the sum of both weights.
    assert curves[0]["loss_weight/classification"][1] == pytest.approx(0.05 * 2.1)
    assert curves[0]["loss_weight/classification"][24] == pytest.approx(0.5)
    assert sorted(curves[0]["loss/generation"]) == list(range(1, 25))


def test_only_the_last_checkpoints_and_the_best_are_kept(uninterrupted):
    kept = checkpoint.committed(uninterrupted / "checkpoints")
    best = checkpoint.read_marker(kept[-1])["state"]["best_step"]
    expected = sorted({checkpoint.folder_name(s) for s in (22, 24, best)})
    assert [p.name for p in kept] == expected


def test_a_damaged_checkpoint_is_logged_and_skipped(uninterrupted, train, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(uninterrupted, output)
    newest = checkpoint.committed(output / "checkpoints")[-1]
    victim = next(newest.glob("*optim_states.pt"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    checkpoint.begin_folder(output / "checkpoints" / checkpoint.folder_name(99))  # a save that is killed
    done = train(output, **RUN, resume="auto")
    assert f"{newest.name} is damaged and passed over" in done.stdout
    assert victim.name in done.stdout
    assert "resumed from" in done.stdout and checkpoint.folder_name(22) in done.stdout
    _assert_bit_equal(_states(output), _states(uninterrupted))


def _visited(output: Path) -> list[str]:
    return (output / "rows.jsonl").read_text().splitlines()


@pytest.mark.long
def test_resume_on_other_rank_counts_keeps_rows_and_curves(uninterrupted, recipe, ranks, train, tmp_path):
    """2 ranks, killed; 1 rank, killed; 4 ranks, killed; 3 to the end: the same samples as 2 uninterrupted ranks."""
    output = tmp_path / "run"
    quiet = {**RUN, "model__head_dropout": 0.0, "model__lora_dropout": 0.0, "data__dev": "null", "train__eval_every": "null"}
    truth = tmp_path / "truth"
    train(truth, **quiet)
    # Within a stage; past the end of one; within the second epoch.
    for world, step in ((2, 4), (1, 9), (4, 20)):
        last = {"what": "kill", "step": step, "rank": world - 1}
        killed = ranks(recipe(output, **quiet, resume="auto"), ranks=world, faults=[last])
        assert killed.status[-1] == -signal.SIGKILL, killed.text
    done = train(output, ranks=3, **quiet, resume="auto")
    assert "resumed from" in done.stdout
    assert not list((output / "checkpoints").glob("*universal*"))
    assert _visited(output) == _visited(truth) == _visited(uninterrupted)
    assert len(_visited(output)) == 24
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = []
    for folder in (truth, output):
        log = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
        log.Reload()
        tags = ("loss/generation", "loss/classification", "optim/lr", "optim/lr_head", "loss_weight/classification")
        curves.append([[e.value for e in log.Scalars(tag)] for tag in tags])
    for ours, theirs in zip(*curves, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)


def test_resume_with_another_seed_order_or_positive_label_is_refused(uninterrupted, train, tmp_path):
    for overrides, expected in (
        ({"seed": 5}, "seed was 0 and is now 5"),
        ({"curriculum__order": "hard_first"}, "order.difficulty_sha256 was"),
        ({"data__positive_label": "benign"}, "data.positive_label malignant -> benign"),
    ):
        done = train(uninterrupted, check=False, **{**RUN, "resume": "auto", **overrides})
        assert done.returncode != 0
        assert expected in done.stderr


def test_resume_logs_and_applies_changed_rates_and_loss_weights(uninterrupted, train, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(uninterrupted, output)
    shutil.rmtree(checkpoint.committed(output / "checkpoints")[-1])
    changed = {"optim__lr": 2e-3, "optim__weight_decay": 0.5, "optim__betas": "[0.8, 0.9]", "objectives__generation__weight": 4.0}
    done = train(output, **RUN, resume="auto", **changed)
    logged = next(line for line in done.stdout.splitlines() if "settings changed since step-00000022" in line)
    assert "optim.lr 0.001 -> 0.002; " in logged and "objectives.generation.weight 2.0 -> 4.0; " in logged
    rates = [_curve(folder, "optim/lr") for folder in (uninterrupted, output)]
    for step in (23, 24):
        assert rates[1][step] == pytest.approx(2 * rates[0][step])
    assert _curve(output, "loss_weight/generation")[23] == pytest.approx(4.0)
    groups = next(iter(_states(output).values()))["optimizer_state_dict"]["optimizer_state_dict"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.5} and {tuple(g["betas"]) for g in groups} == {(0.8, 0.9)}


def _curve(output: Path, tag: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0})
    log.Reload()
    return {event.step: event.value for event in log.Scalars(tag)}


def test_an_output_folder_with_checkpoints_is_not_overwritten(uninterrupted, train):
    done = train(uninterrupted, check=False, ranks=1, **RUN)
    assert done.returncode != 0
    assert "already holds checkpoints" in done.stderr
    assert checkpoint.committed(uninterrupted / "checkpoints")
