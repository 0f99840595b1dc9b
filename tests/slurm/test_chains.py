"""A job per stage, and arrays of jobs one after the other, on a real Slurm."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.fixture
def chain(slurm, job, tmp_path):
    """``chain(*words)`` submits train_8b.sh in stages; returns the jobs' numbers. Each logs to chain-JOB.log."""

    def submit(*words, flags="", check=True, **more):
        settings = {"OUTPUT": job.output, "CLSGEN_CLUSTER_ENV": tmp_path / "cluster.env", **more}
        small = [f for f in slurm.small if "nodes=" not in f]
        settings["SBATCH_FLAGS"] = " ".join([*small, f"--output={tmp_path}/chain-%A.log", "--open-mode=append", flags])
        env = {**slurm.env, **{key: str(value) for key, value in settings.items()}}
        command = ["bash", "slurm/chain.sh", "slurm/train_8b.sh", *words]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        if not check:
            return done
        assert done.returncode == 0, done.stderr
        return [line.split("job ")[1].split()[0] for line in done.stdout.splitlines()]

    return submit


def _wait_until_gone(slurm, *numbers):
    deadline = time.monotonic() + 90
    while left := slurm.run("squeue", "-h", "-j", ",".join(numbers)):
        assert time.monotonic() < deadline, left
        time.sleep(0.3)


@pytest.mark.long
def test_a_chain_runs_each_stage_on_its_own_number_of_nodes(slurm, job, chain, recipe, tmp_path):
    """On one node, then on two: the second stage resumes on twice the ranks, and rows continue as in one run."""
    stages = "[{name: easy, steps: 4, difficulty: [0, 0.5]}, {name: hard, steps: 4}]"
    options = {"data__train": "demo:breast-cancer/train", "curriculum__stages": stages, "train__log_rows": "true"}
    arguments = ["--", "--config", "configs/demo.yaml", *recipe(job.output, **options)]
    first, second = chain("easy=1", "hard=2", *arguments)
    assert slurm.state(second)["Dependency"].startswith(f"afterok:{first}")
    for number, nodes in ((first, "1"), (second, "2")):
        ended = slurm.wait(number)
        text = (tmp_path / f"chain-{number}.log").read_text()
        assert (ended["JobState"], ended["NumNodes"]) == ("COMPLETED", nodes), text[-3000:]
    assert "resumed from" in text and "at step 4 of 8" in text
    visited = [json.loads(line) for line in (job.output / "rows.jsonl").read_text().splitlines()]
    assert [step["step"] for step in visited] == list(range(1, 9))
    starts = [json.loads(line) for line in (job.output / "attempts.jsonl").read_text().splitlines()]
    assert [(start["ranks"], start["step"]) for start in starts if "start" in start] == [(1, 0), (2, 4)]


def test_a_failed_stage_ends_the_chain(slurm, chain, tmp_path):
    first, second = chain("easy=1", "hard=1", CLSGEN_COMMAND="exit 2")
    _wait_until_gone(slurm, first, second)
    assert slurm.state(first)["JobState"] == "FAILED" and slurm.state(second)["JobState"] == "CANCELLED"
    assert not (tmp_path / f"chain-{second}.log").exists()


def test_a_stage_that_the_cluster_cannot_run_is_refused_before_any_is_submitted(slurm, chain):
    refused = chain("easy=1", "hard=9", check=False, flags="--comment='none of these'", CLSGEN_COMMAND="exit 0")
    assert refused.returncode == 2 and refused.stdout == ""
    assert "stage hard=9 cannot start on the cluster as it is: allocation failure: Requested node" in refused.stderr
    assert "none of these" not in slurm.run("squeue", "-h", "-o", "%k")
    first, second = chain("easy=1", "hard=9", CLSGEN_COMMAND="sleep 60", CHECK_STAGES=0)
    slurm.run("scancel", first, second)
    refused = chain("easy=1", check=False, flags="--comment='never closed")
    assert refused.returncode == 2 and "with an unclosed quote" in refused.stderr


def test_a_chain_of_arrays_continues_with_the_next_task_and_stage(slurm, chain, tmp_path):
    count = "n=$(($(cat $OUTPUT/n 2>/dev/null || echo 0) + 1)); echo $n >$OUTPUT/n"
    command = f"{count}; case $n in 1) exit 75;; 2) exit 1;; esac"
    first, second = chain("easy=1", "hard=1", flags="--array=1-4%1", CLSGEN_COMMAND=command)
    _wait_until_gone(slurm, first, second)
    text, then = ((tmp_path / f"chain-{number}.log").read_text() for number in (first, second))
    messages = [line.split(" ", 3)[3] for line in text.splitlines() if line.startswith("== ")]
    assert (
        messages[:3]
        == [
            "asked to stop: the next task of the array continues",
            messages[1],
            "done",
        ]
        and messages[1].startswith("status 1 rank 0 on ")
        and messages[1].endswith("the next task of the array continues")
    ), text
    assert messages[3].startswith("a task of this array has completed the run") and len(messages) == 4
    assert then.count("== ") == 4 and then.count(" done\n") == 1 and "requeue" not in text + then


def test_tasks_of_an_array_that_start_together_take_turns(slurm, job):
    count = "n=$(($(cat $OUTPUT/n 2>/dev/null || echo 0) + 1)); echo $n >$OUTPUT/n"
    command = f"{count}; [ $n = 2 ] || {{ sleep 4; exit 75; }}"
    array = job(command=command, flags=("--nodes=1", "--array=1-2", "--open-mode=append"))
    deadline = time.monotonic() + 60
    while left := slurm.run("squeue", "-h", "-j", array, "-o", "%A %r"):
        for number in (line.split()[0] for line in left.splitlines() if "BeginTime" in line):
            slurm.start_now(number)
        assert time.monotonic() < deadline, left
        time.sleep(0.3)
    text = job.log.read_text()
    assert "of this array is running: this one waits for its turn" in text, text
    assert "asked to stop: the next task of the array continues" in text and text.endswith(" done\n"), text
    assert (job.output / "n").read_text().strip() == "2"


def test_an_array_that_runs_out_of_tasks_or_fails_ends_with_an_error(slurm, job):
    array = job(command="exit 75", flags=("--array=1-2%1", "--open-mode=append"))
    _wait_until_gone(slurm, array)
    assert job.log.read_text().count("asked to stop: the next task of the array continues") == 1
    assert "asked to stop: no task of the array is left; submit it again" in job.log.read_text()
    assert slurm.state(f"{array}_2")["ExitCode"] == "75:0"
    array = job(command="exit 2", flags=("--array=1-9%1", "--open-mode=append"))
    _wait_until_gone(slurm, array)
    assert job.log.read_text().count("fix it, then sbatch again") == 1
