"""Who owns a run's folder: a living process or job keeps it, a restart of the same job takes it over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from clsgen_dist.errors import RunLockError, SettingsError
from clsgen_dist.resilience.run_lock import RunLock
from clsgen_dist.resilience.watchdog import Watchdog


@pytest.fixture
def job(monkeypatch):
    """``job(number, restart)``: this process belongs to that job from here on."""
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)

    def be(number, restart=0):
        monkeypatch.setenv("SLURM_JOB_ID", number)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))

    return be


def test_a_running_process_keeps_the_lock_and_a_dead_one_loses_it(job, tmp_path):
    with RunLock(tmp_path, is_main=True):
        claim = json.loads((tmp_path / "owner").read_text())
        with pytest.raises(RunLockError, match=rf"belongs to process {os.getpid()} on .*choose another --output_dir"):
            RunLock(tmp_path, is_main=True).__enter__()
        with RunLock(tmp_path, is_main=False):
            pass
        assert json.loads((tmp_path / "owner").read_text()) == claim
    assert not (tmp_path / "owner").exists()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "owner").write_text(json.dumps(claim | {"pid": dead.pid}))
    with RunLock(tmp_path, is_main=True):
        pass
    (tmp_path / "owner").write_text(json.dumps(claim | {"born": "1"}))  # another process of that number
    with RunLock(tmp_path, is_main=True):
        pass


def test_a_restarted_job_takes_the_lock_and_leftover_processes_notice(job, tmp_path):
    job("7")
    left = RunLock(tmp_path, is_main=True).__enter__()
    job("7", 1)
    with RunLock(tmp_path, is_main=True):
        assert "belongs to job 7" in left._lost()
        left.__exit__(None, None, None)
        assert (tmp_path / "owner").exists()  # the other process holds it now
    assert "belongs to nobody" in left._lost()


@pytest.mark.parametrize(("state", "kept"), [("RUNNING", True), ("COMPLETING", False), ("", False)])
def test_another_job_keeps_the_lock_while_slurm_reports_it_running(job, tmp_path, monkeypatch, state, kept):
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n[ $4 = 7 ] && echo {state}\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    claim = {"token": "t", "job": "7", "restart": 0, "host": "elsewhere", "pid": 1, "born": "1", "time": "then"}
    (tmp_path / "owner").write_text(json.dumps(claim))
    job("8")
    if kept:
        with pytest.raises(RunLockError, match="belongs to job 7, which runs, since then"):
            RunLock(tmp_path, is_main=True).__enter__()
    else:
        RunLock(tmp_path, is_main=True).__enter__()


@pytest.mark.parametrize(
    ("ping", "number", "kept"),
    [("DOWN", "8", True), ("UP", "8", False), ("DOWN", None, False)],
    ids=["no answer", "no such job", "outside a job"],
)
def test_the_lock_is_kept_while_the_slurm_controller_does_not_answer(job, tmp_path, monkeypatch, ping, number, kept):
    for name, body in (("squeue", "exit 1"), ("scontrol", f"echo Slurmctld is {ping}")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    claim = {"token": "t", "job": "7", "restart": 0, "host": "elsewhere", "pid": 1, "born": "1", "time": "then"}
    (tmp_path / "owner").write_text(json.dumps(claim))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if number:
        job(number)
    if kept:
        with pytest.raises(RunLockError, match="belongs to job 7"):
            RunLock(tmp_path, is_main=True).__enter__()
    else:
        RunLock(tmp_path, is_main=True).__enter__()


def test_a_folder_that_cannot_be_written_is_named(job, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"output_dir .*file/run' cannot be written"):
        RunLock(tmp_path / "file/run", is_main=True).__enter__()


def test_stack_traces_of_earlier_starts_are_kept(tmp_path):
    for _ in range(2):
        with Watchdog(tmp_path / "rank-0.txt", 60):
            pass
        with (tmp_path / "rank-0.txt").open("a") as file:
            file.write("Thread 0x1\n")
    assert (tmp_path / "rank-0.txt").read_text().count("Thread 0x1") == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"job": "7"}', b"\xff\xfe"])
def test_a_damaged_owner_file_blocks_the_lock(job, tmp_path, damage):
    run_lock = RunLock(tmp_path, is_main=True).__enter__()
    (tmp_path / "owner").write_bytes(damage)
    assert "is damaged" in run_lock._lost()
    run_lock.__exit__(None, None, None)
    with pytest.raises(RunLockError, match=r"owner is damaged, .* make sure that none does, then delete that file"):
        RunLock(tmp_path, is_main=True).__enter__()
    assert (tmp_path / "owner").read_bytes() == damage


def test_a_folder_that_other_nodes_do_not_share_is_a_settings_error(job, tmp_path, monkeypatch):
    monkeypatch.setattr("clsgen_dist.resilience.run_lock._SEEN_WITHIN_S", 1)
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    first = RunLock(tmp_path / "run", is_main=True).__enter__()
    world = SimpleNamespace(broadcast=lambda value: first._claim, gather=lambda value: [None, value])
    first.require_seen(world)
    RunLock(tmp_path / "run", is_main=False).require_seen(world)
    for own in (tmp_path / "none", tmp_path / "old"):
        if own.name == "old":  # of a run before
            own.mkdir()
            (own / "owner").write_text(json.dumps({**first._claim, "token": "another"}))
        with pytest.raises(SettingsError, match=r"output_dir .* is another folder on n7 than on .*all nodes share"):
            RunLock(own, is_main=False).require_seen(world)


def test_a_suspended_process_is_not_a_hang(tmp_path):
    """``scontrol suspend`` stops all of a job, for longer than ``faults.hang_timeout_s``."""
    code = """
import sys, time
from pathlib import Path
from clsgen_dist.resilience.watchdog import Watchdog
with Watchdog(Path(sys.argv[1]), 2):
    print("up", flush=True)
    for _ in range(int(sys.argv[2])):
        time.sleep(0.1)
print("went on")
"""
    started = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "stacks"), "10"], stdout=subprocess.PIPE, text=True
    )
    assert started.stdout.readline() == "up\n"
    started.send_signal(signal.SIGSTOP)
    time.sleep(4)
    started.send_signal(signal.SIGCONT)
    assert (started.communicate(timeout=20)[0], started.returncode) == ("went on\n", 0)
    assert "no progress for" not in (tmp_path / "stacks").read_text()
    stuck = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "stacks"), "100"], capture_output=True, text=True
    )
    assert (stuck.stdout, stuck.returncode) == ("up\n", 1)
    assert "no progress for 2 s\n" in (tmp_path / "stacks").read_text()
