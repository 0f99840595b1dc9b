"""The shipped scripts on a real Slurm: what a job does for each way its tasks end, and a real training."""

from __future__ import annotations

import json
import time

import pytest

from clsgen_dist import checkpoint

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.mark.parametrize(
    ("command", "state", "exit_code", "restarts"),
    [
        ("exit 0", "COMPLETED", "0:0", 0),
        ("exit 2", "FAILED", "2:0", 0),
        ("[ $SLURM_PROCID = 1 ] && { sleep 1; exit 2; }; sleep 60", "FAILED", "2:0", 0),
        ("exit 1", "FAILED", "1:0", 2),
        ("[ ${SLURM_RESTART_COUNT:-0} = 3 ] || exit 75", "COMPLETED", "0:0", 3),
        ("exit 127", "FAILED", "2:0", 0),
    ],
    ids=["done", "user error", "user error on one rank", "crashes", "preempted", "no Python"],
)
def test_exit_codes_of_the_tasks_decide_the_state_of_the_job(slurm, job, command, state, exit_code, restarts):
    ended = slurm.wait(job(command=command))
    text = job.log.read_text()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == (state, exit_code, str(restarts)), text
    assert text.count("requeueing (restart") == restarts
    assert len(list((job.output / "logs").iterdir())) == restarts + 1
    if restarts == 2:
        assert "crash number 3 of this job (MAX_RESTARTS is 2): giving up" in text


def test_a_killed_wrapper_is_a_crash_not_a_preemption(slurm, job):
    """srun then asks the other task to stop, which it does in good order; SRUN_FLAGS keep their quotes."""
    command = (
        "trap 'exit 75' TERM; [ $SLURM_PROCID = 1 ] && { sleep 1; kill -9 $PPID; exit; }; while :; do sleep 0.1; done"
    )
    ended = slurm.wait(job(command=command, SRUN_FLAGS="--job-name='two words' --wait=5"))
    text = job.log.read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "2"), text
    assert "crash number 3 of this job (MAX_RESTARTS is 2): giving up" in text and "asked to stop" not in text


def test_a_job_without_proof_of_completion_fails(slurm, job, small_disk):
    """An srun that ends with 0 although it lost its node, and a disk too full to record the preemption."""
    output = small_disk / "run"
    full = "[ $SLURM_PROCID = 0 ] && { cat /dev/zero >$OUTPUT/full; exit 75; }; sleep 60"
    ended = slurm.wait(job(command=full, OUTPUT=output))
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0"), job.log.read_text()
    assert f"{output}/logs/" in job.log.read_text() and "cannot be written: make room" in job.log.read_text()
    assert "== done" not in job.log.read_text()
    job.tool("srun", "exit 0")
    ended = slurm.wait(job(command="exit 0"))
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "1:0", "2"), job.log.read_text()
    assert "task 0 did not record success" in job.log.read_text() and "== done" not in job.log.read_text()


def test_tasks_get_the_environment_of_the_job(slurm, job, tmp_path):
    """Even under sbatch --export=NAMES; RANK of the submitting shell is dropped."""
    command = "[ -z $RANK ] && [ -n $CLSGEN_LOGS ] && [ -n $GLOO_SOCKET_IFNAME ]"
    flags = ("--export=OUTPUT,CLSGEN_CLUSTER_ENV,CLSGEN_COMMAND,RANK", "--nodes=1")
    assert slurm.wait(job(command=command, flags=flags, RANK=5))["JobState"] == "COMPLETED", job.log.read_text()


def test_a_job_with_no_requeue_fails_with_a_hint(slurm, job):
    ended = slurm.wait(job(command="exit 1", flags=("--no-requeue", "--nodes=1")))
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0")
    text = job.log.read_text()
    assert "not requeued (" in text and "sbatch --array=1-9%1" in text, text


LONG = (
    "touch $OUTPUT/up-${SLURM_RESTART_COUNT:-0}-$SLURM_PROCID; [ ${SLURM_RESTART_COUNT:-0} = %d ] && exit 0; "
    "trap 'exit 75' TERM USR2; while :; do sleep 0.1; done"
)


def test_signals_to_tasks_batch_shell_or_job_reach_the_tasks(slurm, job):
    """TERM to the tasks (preemption), USR2 to the batch shell (--signal=B:USR2@600), USR2 to all."""
    number = job(command=LONG % 3)
    ways = (("--signal=TERM",), ("--batch", "--signal=USR2"), ("--full", "--signal=USR2"))
    for restart, way in enumerate(ways):
        slurm.start(number, restart)
        job.reach(f"up-{restart}-*", 2)
        slurm.run("scancel", *way, number)
    ended = slurm.wait(number)
    text = job.log.read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "3"), text
    assert text.count("asked to stop: requeueing") == 3 and not list(job.output.glob("logs/*/crash"))


def test_a_job_at_its_time_limit_is_requeued(slurm, job):
    number = job(command=LONG.replace("TERM USR2", "TERM; trap '' USR2") % 1)  # ignores the warning before it
    job.reach("up-0-*", 2)
    slurm.run("scontrol", "update", f"JobId={number}", "EndTime=now")
    ended = slurm.wait(number)
    text = job.log.read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), text
    assert "asked to stop: requeueing" in text and "DUE TO TIME LIMIT" in text


def test_a_requeue_by_slurm_is_not_a_crash(slurm, job):
    """scontrol requeue, then a node that is lost."""
    number = job(command=LONG % 2, flags=("--nodelist=n0,n1",))
    job.reach("up-0-*", 2)
    slurm.run("scontrol", "requeue", number)
    slurm.start(number, 1)
    job.reach("up-1-*", 2)
    slurm.run("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=test")
    time.sleep(1)
    slurm.run("scontrol", "update", "NodeName=n1", "State=RESUME")
    ended = slurm.wait(number)
    text = job.log.read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "2"), text
    assert text.count("Slurm has already requeued it") == 2 and "not requeued" not in text, text
    assert not list(job.output.glob("logs/*/crash"))


def test_a_cancelled_job_stays_cancelled(slurm, job):
    number = job(command=LONG % 1)
    job.reach("up-0-*", 2)
    slurm.run("scancel", number)
    ended = slurm.wait(number)
    time.sleep(3)
    assert slurm.state(number)["JobState"] == ended["JobState"] == "CANCELLED", job.log.read_text()
    assert "cancelled, so not requeued" in job.log.read_text()


def test_a_run_on_two_nodes_is_preempted_requeued_and_finishes(slurm, job, recipe, tmp_path):
    options = {"train__max_steps": 60, "checkpoint__every": 20, "train__epochs": 20, "train__log_rows": "true"}
    flags = recipe(job.output, data__train="demo:breast-cancer/train", **options)
    number = job("--config", "configs/demo.yaml", *flags)
    rows = job.output / "rows.jsonl"
    job.reach("rows.jsonl")
    while len(rows.read_text().splitlines()) < 3:  # something to save
        time.sleep(0.1)
    slurm.run("scancel", "--signal=USR2", number)  # as --signal=USR2@600 does before the time limit
    ended = slurm.wait(number)
    text = job.log.read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), (ended, text[-3000:])
    assert "received SIGUSR2: checkpoint of step" in text and "asked to stop: requeueing" in text
    assert "resumed from" in text
    assert [json.loads(line)["step"] for line in rows.read_text().splitlines()] == list(range(1, 61))
    assert checkpoint.committed(job.output / "checkpoints")[-1].name == "step-00000060"
    logs = {path.name for path in (job.output / f"logs/{number}.1").iterdir()}
    assert {"rank-0.log", "rank-1.log"} <= logs
    assert "job" in (job.output / "environment.txt").read_text()
