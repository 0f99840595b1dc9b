"""A run that is killed and resumed ends bit-equal to one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from clsgen_dist.engine import checkpoint

pytestmark = [pytest.mark.dist, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
RUN = {
    # 256 rows: an epoch ends after step 16.
    "data__dev": "demo:breast-cancer/dev",
    "model__finetune": "lora",
    "model__top_layers": 3,
    "model__head_dropout": 0.2,
    "model__lora_dropout": 0.1,
    "train__batch_size": 16,
    "train__micro_batch_tokens": 256,
    "train__epochs": 1.5,
    "train__eval_every": 8,
    "checkpoint__every": 2,
    "checkpoint__keep_last": 2,
}


def _kill_one_rank_when(committed_step: int, output: Path, flags: list[str], port: str) -> None:
    """Start two ranks, wait for a committed checkpoint, kill -9 one rank; the job must end by itself, with an error."""
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
        ranks = [
            p
            for p in psutil.Process(launcher.pid).children(recursive=True)
            if any(a.startswith("--local_rank=") for a in p.cmdline())
        ]
        assert len(ranks) == 2
        ranks[1].send_signal(signal.SIGKILL)
        assert launcher.wait(timeout=90) != 0, "the death of a rank must not look like success"
    finally:
        if launcher.poll() is None:
            for child in psutil.Process(launcher.pid).children(recursive=True):
                child.kill()
            launcher.kill()
        log.close()


@pytest.fixture(scope="module")
def undisturbed(train, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    train(output, **RUN)
    return output


@pytest.fixture(scope="module")
def twice_killed(recipe, train, free_port, tmp_path_factory):
    output = tmp_path_factory.mktemp("killed") / "run"
    _kill_one_rank_when(6, output, recipe(output, **RUN), free_port())
    _kill_one_rank_when(18, output, recipe(output, **RUN, resume="auto"), free_port())  # past the end of the first epoch
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


def test_killed_twice_and_resumed_ends_bit_equal(undisturbed, twice_killed):
    output, done = twice_killed
    assert "resumed from" in done.stdout
    ours, theirs = _states(output), _states(undisturbed)
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


def test_the_curves_go_on_where_they_stopped(undisturbed, twice_killed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = []
    for output in (undisturbed, twice_killed[0]):
        log = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0})
        log.Reload()
        tags = ("loss/generation", "loss/classification", "optim/lr", "dev/auroc")
        curves.append({tag: {e.step: e.value for e in log.Scalars(tag)} for tag in tags})
    assert curves[0] == curves[1]
    assert sorted(curves[0]["loss/generation"]) == list(range(1, 25))


def test_only_the_last_checkpoints_and_the_best_are_kept(undisturbed):
    kept = checkpoint.committed(undisturbed / "checkpoints")
    best = checkpoint.read_marker(kept[-1])["state"]["best_step"]
    expected = sorted({checkpoint.folder_name(s) for s in (22, 24, best)})
    assert [p.name for p in kept] == expected


def test_a_damaged_checkpoint_is_named_and_passed_over(undisturbed, train, tmp_path):
    import shutil

    output = tmp_path / "run"
    shutil.copytree(undisturbed, output)
    newest = checkpoint.committed(output / "checkpoints")[-1]
    victim = next(newest.glob("*optim_states.pt"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    (output / "checkpoints" / checkpoint.folder_name(99)).mkdir()  # a save that was killed
    done = train(output, **RUN, resume="auto")
    assert f"{newest.name} is damaged and passed over" in done.stdout
    assert victim.name in done.stdout
    assert "resumed from" in done.stdout and checkpoint.folder_name(22) in done.stdout
    _assert_bit_equal(_states(output), _states(undisturbed))


def test_what_would_not_go_on_as_before_is_refused(undisturbed, train, tmp_path):
    for overrides, expected in (
        ({"seed": 5}, "seed was 0 and is now 5"),
        ({"ranks": 1}, "written by 2 ranks and this run has 1"),
    ):
        done = train(undisturbed, check=False, **{**RUN, "resume": "auto", **overrides})
        assert done.returncode != 0
        assert expected in done.stderr


def test_an_output_folder_in_use_is_not_overwritten_by_accident(undisturbed, train):
    done = train(undisturbed, check=False, ranks=1, **RUN)
    assert done.returncode != 0
    assert "already holds checkpoints" in done.stderr
    assert checkpoint.committed(undisturbed / "checkpoints")
