"""Starts are counted before anything is loaded; signals before the first step end the process, whatever it is doing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from clsgen_dist.errors import DataError, NoProgressError, RunLockError
from clsgen_dist.resilience.restarts import StartLog


def _start(folder, step=0, ends=None, main=True):
    with StartLog(folder, is_main=main, step=step, ranks=1, limit=2) as start_log:
        start_log.reached = step + 1
        if ends is not None:
            raise ends


def _notes(folder):
    return [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]


def test_starts_without_progress_are_refused_until_a_newer_checkpoint_or_a_user_error(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError):
            _start(tmp_path, ends=RuntimeError("lost"))
    assert [note.get("status") for note in _notes(tmp_path)] == [None, 1, None, 1]
    with pytest.raises(
        NoProgressError, match=r"no progress over 2 starts: all began at step 0, .* after step 1: lost; after step 1"
    ):
        _start(tmp_path)
    _start(tmp_path, main=False)  # rank 0 keeps the list
    _start(tmp_path, step=5)  # a checkpoint later
    for _ in range(3):  # a user error each time, which the user fixes before the next start
        with pytest.raises(DataError):
            _start(tmp_path, step=5, ends=DataError("rows"))
    _start(tmp_path, step=5)


def test_a_run_that_lost_its_lock_writes_nothing(tmp_path):
    with pytest.raises(RunLockError):
        _start(tmp_path, ends=RunLockError("another's"))
    assert "start" in _notes(tmp_path)[-1]


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGTERM"])
def test_a_signal_before_the_first_step_ends_the_process_even_where_errors_are_swallowed(name):
    code = f"""
import os, signal
from clsgen_dist.resilience.preemption import PreemptionHandler
with PreemptionHandler() as stop:
    try:
        os.kill(os.getpid(), signal.{name})
    except BaseException:
        pass
    print("went on")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 75 and "went on" not in done.stdout
    assert done.stderr == f"stopped: received {name} before the first step: nothing to save. Start again\n"


def test_a_start_ended_by_slurm_is_not_a_failed_start(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")

    def killed(restart, crash):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        StartLog(tmp_path, is_main=True, step=0, ranks=1, limit=2).__enter__()  # and never an end
        logs = tmp_path / f"logs/7.{restart}"
        logs.mkdir(parents=True)
        (logs / "started").touch()
        if crash:
            (logs / "crash").touch()

    for restart in range(4):
        killed(restart, crash=False)
    killed(4, crash=True)
    killed(5, crash=True)
    with pytest.raises(NoProgressError, match="no progress over 2 starts: all began at step 0"):
        killed(6, crash=False)
