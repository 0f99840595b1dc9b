"""What the scripts do while the controller does not answer: fake Slurm commands, no Slurm is needed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def library(tmp_path):
    """``library(script, NAME=body, ...)``: run bash with slurm/lib.sh and these commands on the PATH."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()

    def run(script, env=(), **commands):
        for name, body in commands.items():
            file = bin_folder / name
            file.write_text(f'#!/usr/bin/env bash\necho {name} "$@" >>{tmp_path}/calls\n{body}\n')
            file.chmod(0o755)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        environment |= {"PATH": f"{bin_folder}:{environment['PATH']}", "SLURM_JOB_ID": "7", **dict(env)}
        text = f"source {ROOT}/slurm/lib.sh; sleep() {{ command sleep 0.2; }}; ROOT={ROOT} OUTPUT={tmp_path}\n{script}"
        done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, timeout=60)
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        return done, calls

    return run


DOWN_AT_FIRST = """
if [ "$1" = ping ]; then
    [ -e "$0.up" ] && echo "Slurmctld(primary) at head is UP" || echo "Slurmctld(primary) at head is DOWN"; exit 0
fi
n=$(($(cat "$0.n" 2>/dev/null || echo 0) + 1)); echo $n >"$0.n"
[ $n -ge 3 ] && touch "$0.up"
[ $n -gt 3 ] && { echo requeued; exit 0; }
echo "Unable to contact slurm controller (connect failure)"; exit 1
"""
UP = 'if [ "$1" = ping ]; then echo "Slurmctld(primary) at head is UP"; exit 0; fi\n'


def test_commands_are_retried_while_the_controller_restarts(library):
    done, calls = library("slurm_retry 30 scontrol requeue 7", scontrol=DOWN_AT_FIRST)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "requeued", done.stdout + done.stderr
    assert sum(call.startswith("scontrol requeue") for call in calls) == 4


def test_an_error_from_a_running_controller_is_final(library):
    refusal = UP + 'echo "Requeue of this job is disabled"; exit 1'
    done, calls = library("slurm_retry 30 scontrol requeue 7 2>&1", scontrol=refusal)
    assert done.returncode == 1 and "disabled" in done.stdout
    assert sum(call.startswith("scontrol requeue") for call in calls) == 2  # it may have come up in between


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("exit 1", ""),
        ("echo", ""),
        ("echo JobId=7 JobState=RUNNING Reason=None x", ""),
        ("echo JobId=7 JobState=CANCELLED Reason=None Restarts=0 x", "cancelled, so not requeued"),
        ("echo JobId=7 JobState=PENDING Reason=None Restarts=1 x", "Slurm has already requeued it"),
    ],
    ids=["no answer", "empty answer", "running", "cancelled", "requeued"],
)
def test_a_job_is_cancelled_only_if_the_controller_answers_so(library, answer, reason):
    done, _ = library('no_requeue_reason=unset; check_why_term; echo "reason=$no_requeue_reason"', scontrol=UP + answer)
    assert f"reason={reason}\n" in done.stdout, done.stdout + done.stderr


def test_a_node_whose_name_does_not_resolve_is_reached_by_address(library):
    show = (
        UP + 'case $2 in hostnames) echo rack7-node3.invalid;; node) echo "NodeName=rack7 NodeAddr=127.0.0.1 x";; esac'
    )
    env = {"SLURM_JOB_NODELIST": "rack7-node3.invalid"}
    done, _ = library('rendezvous; echo "$MASTER_ADDR"', env, scontrol=show)
    assert done.stdout.splitlines()[-1] == "127.0.0.1", done.stderr
    done, _ = library('rendezvous; echo "$MASTER_ADDR"', env, scontrol=show.replace("127.0.0.1", "nowhere.invalid"))
    assert done.returncode == 2 and "set CLSGEN_MASTER_ADDR" in done.stderr


def test_a_bad_node_in_the_jobs_nodelist_ends_the_job(library, tmp_path):
    (tmp_path / "bad_nodes").write_text("n2 2026-01-01 no chip\n")
    show = (
        UP
        + """case "$2 $3" in
        "job -o") echo "JobId=7 ReqNodeList=n[1-2] ExcNodeList=(null) x";;
        "hostnames n[1-2]") printf 'n1\\nn2\\n';; esac"""
    )
    done, _ = library("exclude_bad_nodes", {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_PARTITION": "p"}, scontrol=show)
    assert done.returncode == 2 and "--nodelist asks for n2, which was found bad" in done.stdout, done.stdout


def test_a_second_array_task_is_requeued_without_cancelling_the_others(library):
    env = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "2"}
    done, calls = library("one_at_a_time; echo went on", env, scontrol=UP, squeue="printf '2\\n1\\n'", scancel="exit 1")
    assert done.returncode == 0 and "task 1 of this array is running" in done.stdout and "went on" not in done.stdout
    assert "scontrol update JobId=70 ArrayTaskThrottle=1" in calls
    assert not any(call.startswith("scancel") for call in calls)
    done, _ = library("one_at_a_time; echo went on", {**env, "SLURM_ARRAY_TASK_ID": "1"}, scontrol=UP, squeue="echo 1")
    assert "went on" in done.stdout


def test_site_files_may_use_unset_variables(library, tmp_path):
    (tmp_path / "cluster.env").write_text('export PATH="$PATH:$NEVER_SET"\nSRUN_FLAGS="--cpu-bind=cores"\n')
    env = {"CLSGEN_CLUSTER_ENV": str(tmp_path / "cluster.env")}
    done, _ = library('load_site; echo "$SRUN_FLAGS"; echo ${UNSET_AGAIN:-} ; set -o | grep nounset', env)
    assert "--cpu-bind=cores" in done.stdout and "nounset        \ton" in done.stdout, done.stderr


def test_a_chain_evaluates_output_as_set_in_the_job_script(tmp_path):
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\nBASE=/lustre/me\nOUTPUT=$BASE/x\n")
    done = subprocess.run(
        ["bash", "slurm/chain.sh", str(script), "easy=1"], cwd=ROOT, env={**os.environ, "DRY_RUN": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "--train.stop_at_stage easy" in done.stdout, done.stderr


@pytest.mark.long
def test_a_job_preempted_during_a_controller_outage_is_requeued_afterwards(slurm, job):
    stop = "touch $OUTPUT/up-$SLURM_PROCID; sleep 6; exit 75"
    number = job(command=f"[ ${{SLURM_RESTART_COUNT:-0}} = 1 ] || {{ {stop}; }}")
    job.reach("up-*", 2)
    slurm.outage(20)
    ended = slurm.wait(number, timeout=240)
    text = job.log.read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), text
    assert text.count("asked to stop: requeueing (restart 1)") == 1
