"""The shipped scripts on a real Slurm of two nodes: what a job does for each way its tasks end, and a real training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clsgen_dist.engine import checkpoint

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.dist, pytest.mark.slow]
SMALL = ("--nodes=2", "--ntasks-per-node=1", "--gres=gpu:1", "--cpus-per-task=1", "--mem=500", "--time=60")


@pytest.fixture
def job(slurm, tmp_path):
    """``job(*arguments, command=…)`` submits train_8b.sh on two small nodes; returns its number."""
    site = tmp_path / "cluster.env"
    site.write_text(
        f"PYTHON={sys.executable}\nexport GLOO_SOCKET_IFNAME=lo\nCLSGEN_MASTER_ADDR=127.0.0.1\nMAX_RESTARTS=2\n"
        "PREFLIGHT=${PREFLIGHT:-0}\n"
    )

    def submit(*arguments, flags=(), command=None, **more):
        settings = {"OUTPUT": tmp_path / "run", "CLSGEN_CLUSTER_ENV": site, **more}
        if command is not None:
            settings["CLSGEN_COMMAND"] = command
        log = f"--output={tmp_path}/job.log"
        return slurm.sbatch(*SMALL, log, *flags, "slurm/train_8b.sh", *arguments, **settings)

    submit.log = tmp_path / "job.log"
    submit.output = tmp_path / "run"
    return submit


def test_dry_run_shows_the_commands_and_runs_none(tmp_path):
    fake = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "DRY_RUN": "1", "OUTPUT": str(tmp_path / "run")}
    path = tmp_path / "bin"
    path.mkdir()
    (path / "scontrol").write_text("#!/bin/sh\nprintf 'n1\\nn2\\n'\n")
    (path / "scontrol").chmod(0o755)
    env = {**os.environ, **fake, "PATH": f"{path}:{os.environ['PATH']}"}
    for script, recipe in (("8b", "8b_lora"), ("70b", "70b_zero3")):
        done = subprocess.run(
            ["bash", f"slurm/train_{script}.sh", "--train.max_steps", "3"],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"--config configs/{recipe}.yaml" in done.stdout and "--resume auto --train.max_steps 3" in done.stdout
        assert "srun --kill-on-bad-exit=1" in done.stdout
        assert "-m clsgen_dist preflight --output_dir" in done.stdout
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("container", "words"),
    [
        ("pyxis", "--container-image=/images/c.sqsh --container-mounts=/data:/data"),
        ("apptainer", "apptainer exec --nv --bind /data:/data /images/c.sqsh"),
        ("enroot", "enroot start --mount /data:/data /images/c.sqsh"),
        ("docker", None),
    ],
)
def test_containers_stand_before_what_the_tasks_run(container, words, tmp_path):
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho n1\n")
    (tmp_path / "scontrol").chmod(0o755)
    env = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "DRY_RUN": "1", "CONTAINER": container}
    env |= {"CONTAINER_IMAGE": "/images/c.sqsh", "CONTAINER_MOUNTS": "/data:/data"}
    env["PATH"] = f"{tmp_path}:{env['PATH']}"
    done = subprocess.run(["bash", "slurm/train_8b.sh"], cwd=ROOT, env=env, capture_output=True, text=True)
    if words is None:
        assert done.returncode == 2 and "CONTAINER is 'docker', expected none, pyxis, enroot" in done.stderr, done
        return
    steps = [line for line in done.stdout.splitlines() if words in line]
    assert done.returncode == 0 and len(steps) == 2, done.stdout  # the preflight and the training


def _up(job):
    deadline = time.monotonic() + 60
    while len(list(job.output.glob("up-*"))) < 2:
        assert time.monotonic() < deadline, job.log.read_text()
        time.sleep(0.1)


LONG = (
    "[ ${SLURM_RESTART_COUNT:-0} = 1 ] && exit 0; trap 'exit 75' TERM; touch $OUTPUT/up-$SLURM_PROCID; "
    "while :; do sleep 0.1; done"
)


def test_term_reaches_the_tasks_as_preemption_sends_it_and_the_job_goes_on(slurm, job):
    number = job(command=LONG)
    _up(job)
    slurm.say("scancel", "--signal=TERM", number)
    ended = slurm.wait(number)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), job.log.read_text()
    assert "asked to stop, checkpoint written: requeued" in job.log.read_text()


def test_a_cancelled_job_stays_cancelled(slurm, job):
    number = job(command=LONG)
    _up(job)
    slurm.say("scancel", number)
    ended = slurm.wait(number)
    time.sleep(3)
    assert slurm.state(number)["JobState"] == ended["JobState"] == "CANCELLED", job.log.read_text()
    assert "cancelled, so not started again" in job.log.read_text()


def test_what_is_missing_is_named_with_its_remedy(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    done = subprocess.run(["bash", "slurm/train_8b.sh"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "SLURM_JOB_ID is not set; this runs under Slurm: sbatch" in done.stderr
    env |= {"CLSGEN_CLUSTER_ENV": str(tmp_path / "none")}
    done = subprocess.run(["bash", "slurm/train_8b.sh"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "CLSGEN_CLUSTER_ENV names" in done.stderr


@pytest.mark.parametrize(
    ("command", "state", "exit_code", "restarts"),
    [
        ("exit 0", "COMPLETED", "0:0", 0),
        ("exit 2", "FAILED", "2:0", 0),
        ("[ $SLURM_PROCID = 1 ] && exit 2; sleep 60", "FAILED", "2:0", 0),
        ("exit 1", "FAILED", "1:0", 2),
        ("[ ${SLURM_RESTART_COUNT:-0} = 3 ] || exit 75", "COMPLETED", "0:0", 3),
    ],
    ids=["done", "a person must mend it", "as one rank says", "crashes", "stopped and went on"],
)
def test_how_tasks_end_decides_what_becomes_of_the_job(slurm, job, command, state, exit_code, restarts):
    ended = slurm.wait(job(command=command))
    text = job.log.read_text()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == (state, exit_code, str(restarts)), text
    assert text.count("requeued (restart") == restarts
    assert len(list((job.output / "logs").iterdir())) == restarts + 1
    if restarts == 2:
        assert "crash number 3 of this job (MAX_RESTARTS is 2): giving up" in text


def test_a_bad_node_is_left_out_and_the_job_goes_on_elsewhere(slurm, job, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(
        "#!/bin/sh\nerrors=0\n[ $SLURMD_NODENAME = n0 ] && errors=7\n"
        "case $1 in --query-gpu=index*) echo 0, $errors, No;; esac\n"
    )
    (tools / "nvidia-smi").chmod(0o755)
    site = tmp_path / "cluster.env"
    site.write_text(f"{site.read_text()}export PATH={tools}:$PATH\n")
    number = job(command="echo on $SLURMD_NODENAME", flags=("--nodes=1",), PREFLIGHT=1)
    ended = slurm.wait(number)
    text = job.log.read_text()
    assert (ended["JobState"], ended["Restarts"], ended["BatchHost"]) == ("COMPLETED", "1", "n1"), (ended, text)
    assert "error: n0: GPU 0 has 7 uncorrected ECC errors" in text and "bad nodes left out: n0: requeued" in text
    assert "1 ranks in" in text and "on n1" in text and "on n0" not in text
    (bad,) = (job.output / "bad_nodes").read_text().splitlines()
    assert bad.startswith("n0 ")
    nodes = [json.loads(line)["node"] for line in (job.output / "preflight.jsonl").read_text().splitlines()]
    assert nodes == ["n0", "n1"]

    ended = slurm.wait(job(command="echo never", flags=("--nodes=2",), PREFLIGHT=1))
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
    assert "1 nodes are left besides the bad ones, 2 are needed" in job.log.read_text()
    assert "never" not in job.log.read_text()


def test_a_training_over_two_nodes_is_asked_to_stop_goes_on_and_ends(slurm, job, recipe, tmp_path):
    options = {"train__max_steps": 60, "checkpoint__every": 20, "train__epochs": 20, "train__log_rows": "true"}
    flags = recipe(job.output, data__train="demo:breast-cancer/train", **options)
    number = job("--config", "configs/demo.yaml", *flags, PREFLIGHT=1)
    shown = job.output / "rows.jsonl"
    deadline = time.monotonic() + 90
    while not shown.exists() or len(shown.read_text().splitlines()) < 3:
        assert time.monotonic() < deadline, job.log.read_text()[-3000:]
        time.sleep(0.1)
    slurm.say("scancel", "--signal=USR2", number)  # as --signal=USR2@600 does before the time limit
    ended = slurm.wait(number)
    text = job.log.read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), (ended, text[-3000:])
    assert text.count("2 ranks in") == 2, text  # looked at before each start
    assert "USR2 came: the checkpoint of step" in text and "asked to stop, checkpoint written: requeued" in text
    assert "resumed from" in text
    assert [json.loads(line)["step"] for line in shown.read_text().splitlines()] == list(range(1, 61))
    assert checkpoint.committed(job.output / "checkpoints")[-1].name == "step-00000060"
    logs = {path.name for path in (job.output / f"logs/{number}.1").iterdir()}
    assert {"rank-0.log", "rank-1.log"} <= logs
    assert "job" in (job.output / "environment.txt").read_text()


def test_a_chain_walks_the_stages_each_on_its_own_nodes(slurm, job, recipe, tmp_path):
    """On one node, then on two: the second stage resumes on twice the ranks, and rows go on as in one run."""
    stages = "[{name: easy, steps: 4, difficulty: [0, 0.5]}, {name: hard, steps: 4}]"
    options = {"data__train": "demo:breast-cancer/train", "curriculum__stages": stages, "train__log_rows": "true"}
    settings = {"OUTPUT": job.output, "CLSGEN_CLUSTER_ENV": tmp_path / "cluster.env"}
    settings["SBATCH_FLAGS"] = " ".join(f for f in SMALL if "nodes=" not in f) + f" --output={tmp_path}/chain-%j.log"
    arguments = ["--", "--config", "configs/demo.yaml", *recipe(job.output, **options)]
    done = subprocess.run(
        ["bash", "slurm/chain.sh", "slurm/train_8b.sh", "easy=1", "hard=2", *arguments],
        cwd=ROOT, env={**slurm.env, **{k: str(v) for k, v in settings.items()}}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (line.split("job ")[1].split()[0] for line in done.stdout.splitlines())
    assert slurm.state(second)["Dependency"].startswith(f"afterok:{first}")
    for number, nodes in ((first, "1"), (second, "2")):
        ended = slurm.wait(number)
        text = (tmp_path / f"chain-{number}.log").read_text()
        assert (ended["JobState"], ended["NumNodes"]) == ("COMPLETED", nodes), text[-3000:]
    assert "resumed from" in text and "at step 4 of 8" in text
    shown = [json.loads(line) for line in (job.output / "rows.jsonl").read_text().splitlines()]
    assert [step["step"] for step in shown] == list(range(1, 9))
    starts = [json.loads(line) for line in (job.output / "attempts.jsonl").read_text().splitlines()]
    assert [(start["ranks"], start["step"]) for start in starts if "start" in start] == [(1, 0), (2, 4)]


def test_what_a_chain_would_submit_and_what_it_refuses(slurm):
    def chain(*words, **more):
        command = ["bash", "slurm/chain.sh", "slurm/train_8b.sh", *words]
        return subprocess.run(command, cwd=ROOT, env={**slurm.env, **more}, capture_output=True, text=True)

    first, second = chain("easy=1", "hard=2", "--", "--seed", "1", DRY_RUN="1").stdout.splitlines()
    assert "--nodes=1" in first and "--train.stop_at_stage easy --seed 1" in first and "dependency" not in first
    assert "--nodes=2" in second and "--dependency=afterok:" in second and "--train.stop_at_stage hard" in second
    wrong = chain("easy")
    assert wrong.returncode == 2 and "'easy' is no STAGE=NODES, like easy=2" in wrong.stderr


def test_an_array_goes_on_task_by_task_and_ends_with_the_one_that_finishes(slurm, job, tmp_path):
    command = "[ $SLURM_ARRAY_TASK_ID = 3 ] && exit 0; [ $SLURM_ARRAY_TASK_ID = 2 ] && exit 1; exit 75"
    array = job(command=command, flags=("--array=1-9%1", "--open-mode=append"))
    deadline = time.monotonic() + 60
    while slurm.say("squeue", "-h", "-j", array):
        assert time.monotonic() < deadline, job.log.read_text()
        time.sleep(0.3)
    text = job.log.read_text()
    assert text.count("asked to stop, checkpoint written: the next task of the array goes on") == 1
    assert text.count("status 1 rank") == 1 and text.count("== ") == 3 and text.rstrip().endswith("done"), text
    assert "requeued" not in text
