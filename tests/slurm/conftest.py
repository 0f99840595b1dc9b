"""A real Slurm on this machine: three nodes of two fake GPUs, started for the tests and stopped by its pid files."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
NODES = ("n0", "n1", "n2")
SMALL = ("--nodes=2", "--ntasks-per-node=1", "--gres=gpu:1", "--cpus-per-task=1", "--mem=500", "--time=60")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for probe in sockets:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """``slurm.sbatch(*words)``, ``slurm.wait(job)``, ``slurm.env`` …"""
    missing = [tool for tool in ("slurmctld", "slurmd", "munged", "sbatch", "srun") if shutil.which(tool) is None]
    if missing or os.getuid() != 0:
        pytest.skip(f"needs root and Slurm's and munge's packages; missing: {', '.join(missing) or 'root'}")
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/slurm-XXXX"], text=True).strip())
    folder.chmod(0o755)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    for name in ("state", "gpus", *(f"spool-{n}" for n in NODES)):
        (folder / name).mkdir()
    for gpu in range(2):
        (folder / f"gpus/gpu{gpu}").touch()
    host, (control, *ports) = socket.gethostname().split(".")[0], _free_ports(1 + len(NODES))
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpus/gpu[0-1]\n")
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=4000 Gres=gpu:2"
        for name, port in zip(NODES, ports, strict=True)
    )
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))  # jobs' ports follow their numbers
    (folder / "slurm.conf").write_text(f"""ClusterName=test
FirstJobId={1 + 2000 * worker}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
MpiDefault=none
KillWait=10
SwitchType=switch/none
{nodes}
PartitionName=main Nodes={",".join(NODES)} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
""")
    env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    pids = []
    try:
        subprocess.run(
            ["munged", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket",
             f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"],
            check=True,
        )  # fmt: skip
        pids.append(folder / "munged.pid")
        subprocess.run(["slurmctld", "-c"], env=env, check=True)
        pids.append(folder / "slurmctld.pid")
        for name in NODES:
            subprocess.run(["slurmd", "-N", name], env=env, check=True)
            pids.append(folder / f"slurmd.{name}.pid")
        deadline = time.monotonic() + 30
        while _run(env, "sinfo", "-h", "-t", "idle", "-o", "%D") != str(len(NODES)):
            assert time.monotonic() < deadline, (folder / "slurmctld.log").read_text()[-3000:]
            time.sleep(0.2)
        yield _tools(env, folder / "slurmctld.pid")
    finally:
        _run(env, "scancel", "--user=root")
        for file in reversed(pids):
            if file.exists():
                os.kill(int(file.read_text()), signal.SIGTERM)
        time.sleep(1)
        shutil.rmtree(folder, ignore_errors=True)


def _run(env: dict[str, str], *words: str) -> str:
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60).stdout.strip()


def _start_now(env: dict[str, str], job: str) -> None:
    """Start a requeued job, which would wait for two minutes.

    Not within the second in which it was requeued: the nodes, which revoked its credential then, would refuse it.
    """
    time.sleep(2)
    _run(env, "scontrol", "update", f"JobId={job}", "StartTime=now")


def _tools(env: dict[str, str], controller: Path) -> SimpleNamespace:
    def sbatch(*words: str, check: bool = True, **more: object) -> str:
        extra = {key: str(value) for key, value in more.items()}
        done = subprocess.run(
            ["sbatch", "--parsable", *words], env={**env, **extra}, cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout.strip()

    def state(job: str) -> dict[str, str]:
        fields = _run(env, "scontrol", "show", "job", "-o", job).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def wait(job: str, timeout: float = 120) -> dict[str, str]:
        """Wait until the job has ended; a requeued job is started at once."""
        deadline = time.monotonic() + timeout
        while (now := state(job))["JobState"] in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"):
            if now["JobState"] == "PENDING" and now.get("Reason") == "BeginTime":
                _start_now(env, job)
            assert time.monotonic() < deadline, now
            time.sleep(0.3)
        return now

    def start(job: str, restart: int, timeout: float = 60) -> None:
        """Wait until the job runs for this restart, which is started at once."""
        deadline = time.monotonic() + timeout
        while (now := state(job))["JobState"] != "RUNNING" or now["Restarts"] != str(restart):
            if now["JobState"] == "PENDING" and now.get("Reason") == "BeginTime":
                _start_now(env, job)
            assert time.monotonic() < deadline, now
            time.sleep(0.3)

    def outage(seconds: float) -> None:
        """Stop the controller for this time."""
        os.kill(int(controller.read_text()), signal.SIGTERM)
        time.sleep(seconds)
        subprocess.run(["slurmctld"], env=env, check=True)

    return SimpleNamespace(
        outage=outage,
        env=env, sbatch=sbatch, state=state, wait=wait, start=start, start_now=lambda job: _start_now(env, job),
        run=lambda *words: _run(env, *words), small=SMALL,
    )  # fmt: skip


@pytest.fixture
def job(slurm, tmp_path):
    """``job(*arguments, command=…)`` submits train_8b.sh, or another script, on two small nodes; returns its number."""
    site = tmp_path / "cluster.env"
    site.write_text(
        f"PYTHON=${{PYTHON:-{sys.executable}}}\nexport GLOO_SOCKET_IFNAME=lo\nCLSGEN_MASTER_ADDR=127.0.0.1\n"
        "MAX_RESTARTS=${MAX_RESTARTS:-2}\nPREFLIGHT=${PREFLIGHT:-0}\n"
    )

    def submit(*arguments, flags=(), command=None, script="slurm/train_8b.sh", **more):
        settings = {"OUTPUT": tmp_path / "run", "CLSGEN_CLUSTER_ENV": site, **more}
        if command is not None:
            settings["CLSGEN_COMMAND"] = command
        log = f"--output={tmp_path}/job.log"
        return slurm.sbatch(*SMALL, log, *flags, script, *arguments, **settings)

    def reach(what, count=1, timeout=90):
        """Wait until so many files of this pattern are in the run's folder."""
        deadline = time.monotonic() + timeout
        while len(list(submit.output.glob(what))) < count:
            assert time.monotonic() < deadline, submit.log.read_text()[-3000:]
            time.sleep(0.1)

    def tool(name, script):
        """Put a program of this name first on the job's PATH; returns its path."""
        folder = tmp_path / "tools"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
        if str(folder) not in site.read_text():
            site.write_text(f"{site.read_text()}export PATH={folder}:$PATH\n")
        return folder / name

    submit.log, submit.output, submit.reach, submit.tool = tmp_path / "job.log", tmp_path / "run", reach, tool
    return submit
