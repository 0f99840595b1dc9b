"""Bad nodes are excluded, and only after a verdict of the preflight: on a real Slurm of three nodes."""

from __future__ import annotations

import json
import sys
import time

import pytest

pytestmark = [pytest.mark.dist, pytest.mark.slow]


def test_a_bad_node_is_excluded_and_the_job_continues_elsewhere(slurm, job):
    job.tool(
        "nvidia-smi",
        "errors=0; [ $SLURMD_NODENAME = n0 ] && errors=7\n"
        "case $1 in --query-gpu=index*) echo 0, $errors, No;; --query-gpu=name*) echo H100, 570, 80 GB;; esac",
    )
    number = job(command="echo on $SLURMD_NODENAME", flags=("--nodes=1", "--exclude=n2"), PREFLIGHT=1)
    ended = slurm.wait(number)
    text = job.log.read_text()
    assert (ended["JobState"], ended["Restarts"], ended["BatchHost"]) == ("COMPLETED", "1", "n1"), (ended, text)
    assert ended["ExcNodeList"] in ("n[0,2]", "n0,n2")  # what the user excluded stays excluded
    assert "error: n0: GPU 0 has 7 uncorrected ECC errors" in text and "bad nodes excluded: n0,n2: requeueing" in text
    assert "1 ranks in" in text and "on n1" in text and "on n0" not in text
    (bad,) = (job.output / "bad_nodes").read_text().splitlines()
    assert bad.startswith("n0 ")
    looks = [json.loads(line) for line in (job.output / "preflight.jsonl").read_text().splitlines()]
    assert [look["node"] for look in looks] == ["n0", "n1"]
    assert looks[0]["chips"] == ["H100, 570, 80 GB"] and looks[0]["software"]["torch"]

    # A node known to be bad is not measured again; drained nodes do not count as free.
    slurm.run("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=test")
    try:
        again = job(command="echo never", flags=("--nodes=2",), PREFLIGHT=1)
        ended = slurm.wait(again)
    finally:
        slurm.run("scontrol", "update", "NodeName=n2", "State=RESUME")
    text = job.log.read_text()
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0"), text
    assert "1 nodes are left that are not bad, excluded or drained; 2 are needed" in text and "never" not in text
    assert not list((job.output / f"logs/{again}.0").glob("preflight*"))

    # It would wait forever for a node that it both requests and excludes.
    ended = slurm.wait(job(command="echo never", flags=("--nodes=1", "--nodelist=n0"), PREFLIGHT=1))
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
    assert "--nodelist asks for n0, which was found bad" in job.log.read_text()


def test_array_tasks_avoid_a_bad_node(slurm, job):
    job.output.mkdir()
    (job.output / "bad_nodes").write_text("n0 2026-03-01 slow\n")
    array = job(command="echo on $SLURMD_NODENAME", flags=("--nodes=1", "--array=1-2%1"), PREFLIGHT=1, PYTHON="true")
    deadline = time.monotonic() + 60
    while slurm.run("squeue", "-h", "-j", array):
        assert time.monotonic() < deadline, job.log.read_text()
        time.sleep(0.3)
    text = job.log.read_text()
    assert "bad nodes excluded: n0: the next task of the array continues" in text and "on n1" in text, text
    assert text.rstrip().endswith("done")


@pytest.mark.long
def test_a_node_that_fails_or_hangs_in_preflight_is_excluded_within_the_timeout(slurm, job):
    """n1 has no Python, then n2 hangs: each is excluded, until too few are left."""
    python = job.tool(
        "python",
        "case $*:$SLURMD_NODENAME in *preflight*:n1) exit 127;; *preflight*:n2) exec sleep 300;; esac\n"
        f'[[ $* = *preflight* ]] && set -- "$@" --timeout_s 8; exec {sys.executable} "$@"',
    )
    start = time.monotonic()
    ended = slurm.wait(job(command="echo never", PREFLIGHT=1, PYTHON=python), timeout=200)
    text = job.log.read_text()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "1"), text
    assert "error: n1: rank 1 timed out" in text and "bad nodes excluded: n1: requeueing" in text
    assert "error: n2: rank 1 timed out" in text and "1 nodes are left" in text and "never" not in text
    assert time.monotonic() - start < 90


@pytest.mark.long
def test_a_preflight_without_a_verdict_excludes_no_node(slurm, job):
    """Stopped in the preflight, a preflight that cannot work, a step that cannot start, then all is well.

    The answer to the first requeue is lost.
    """
    python = job.tool(
        "python",
        "case $*:${SLURM_RESTART_COUNT:-0} in *preflight*:0) touch $OUTPUT/up-$SLURM_PROCID; exec sleep 300;;\n"
        "*preflight*:1) echo 'error: rank 0 cannot listen'; exit 1;; *preflight*) echo fine;; esac",
    )
    job.tool("scontrol", '/usr/bin/scontrol "$@" || exit; [[ $1 != requeue || -n ${SLURM_RESTART_COUNT:-} ]]')
    job.tool("srun", '[[ ${SLURM_RESTART_COUNT:-0} = 2 ]] && exit 1; exec /usr/bin/srun "$@"')
    number = job(command="echo trained", PREFLIGHT=1, PYTHON=python, MAX_RESTARTS=3)
    job.reach("up-*", 2)
    slurm.run("scancel", "--signal=USR2", number)
    ended = slurm.wait(number)
    text = job.log.read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "3"), text
    assert "status 140 preflight 0 on n0: requeueing (restart 1)" in text and "not requeued" not in text, text
    assert "error: rank 0 cannot listen\n" in text and "status 1 preflight 0 on n0: requeueing" in text, text
    assert "status 1 srun (exit status 1, but task 0 did not record success): requeueing (restart 3)" in text, text
    assert not (job.output / "bad_nodes").exists() and text.count("trained") == 1
    # All count: a job that is stopped before it trains, again and again, must end.
    assert len(list((job.output / "logs").glob(f"{number}.*/crash"))) == 3
