"""The lock of a run's folder: one run at a time writes to it, named in the file ``owner``.

    {"token": "5f0c...", "job": "4711", "restart": 3, "host": "n0", "pid": 2202, "born": "88123", "time": "2026-..."}

Rank 0 claims the folder before anything in it is touched, and is refused while another owner lives: its process, on
this machine, or its Slurm job. A job that Slurm starts again takes its own folder over. Its former ranks may live on,
on a node that Slurm has lost: they find another token before their next save, and end without writing.

Cost: a small file is read twice a save. Two runs that start within the same moment may both claim; the first of them
ends at its first save.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from clsgen_dist.engine.world import World, node_name
from clsgen_dist.errors import RunLockError, SettingsError
from clsgen_dist.io.files import atomic_write

FILE = "owner"
_SEEN_WITHIN_S = 90
"""Network file systems show a new file on other nodes up to a minute later."""


class RunLock:
    """Owns ``output`` while it is entered, where ``is_main``; other ranks own nothing.

    Raises:
        RunLockError: another run lives there.
        SettingsError: the folder cannot be written.
    """

    def __init__(self, output: Path, *, is_main: bool) -> None:
        self._output, self._file, self._is_main = output, output / FILE, is_main
        self._claim: dict[str, Any] = {
            "token": uuid.uuid4().hex,
            "job": os.environ.get("SLURM_JOB_ID"),
            "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "born": _process_start_time(os.getpid()),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def __enter__(self) -> RunLock:
        if self._is_main:
            try:
                if (other := self._read()) and (owner := self._live_owner(other)):
                    raise RunLockError(
                        f"{self._output} belongs to {owner}, since {other['time']}: wait for it, stop it, or choose "
                        "another --output_dir"
                    )
                self._output.mkdir(parents=True, exist_ok=True)
                atomic_write(self._file, json.dumps(self._claim), durable=True)
            except OSError as error:
                raise SettingsError(
                    f"output_dir {str(self._output)!r} cannot be written ({error}); choose another --output_dir"
                ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_main and not self._lost():
            self._file.unlink()

    def require(self, world: World) -> None:
        """RunLockError, on all ranks, if the folder has another owner by now; collective."""
        if fault := world.broadcast(self._lost() if world.is_main else None):
            raise RunLockError(fault)

    def require_seen(self, world: World) -> None:
        """SettingsError, on all ranks, if some rank's folder is not that of rank 0: a node's own disk; collective."""
        claim = world.broadcast(self._claim)
        deadline = time.monotonic() + _SEEN_WITHIN_S
        while not (seen := self._holds(claim)) and time.monotonic() < deadline:
            time.sleep(0.5)
        blind = [node for node in world.gather(None if seen else node_name()) if node]
        if blind:
            raise SettingsError(
                f"output_dir {str(self._output)!r} is another folder on {', '.join(sorted(set(blind)))} than on "
                f"{claim['host']}, where rank 0 runs: choose one that all nodes share"
            )

    def _holds(self, claim: dict[str, Any]) -> bool:
        try:
            os.listdir(self._output)  # makes network file systems refresh
            return (self._read() or {}).get("token") == claim["token"]
        except (OSError, RunLockError):
            return False

    def _lost(self) -> str | None:
        try:
            now = self._read() or {}
        except RunLockError as error:
            return str(error)
        if now.get("token") == self._claim["token"]:
            return None
        whose = f"job {now['job']}, process {now['pid']} on {now['host']}" if now else "nobody"
        return (
            f"{self._output} now belongs to {whose} ({self._file}): this run ends without writing; its last "
            "checkpoint is kept"
        )

    def _read(self) -> dict[str, Any] | None:
        """What the file says, None without one; RunLockError if that is not what a run writes."""
        try:
            text = self._file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            claim = json.loads(text)
        except ValueError:
            claim = None
        if isinstance(claim, dict) and self._claim.keys() <= claim.keys():
            return claim
        raise RunLockError(
            f"{self._file} is damaged, so it is unknown whether another run writes to this folder: make sure that none "
            "does, then delete that file"
        )

    def _live_owner(self, claim: dict[str, Any]) -> str | None:
        """The live process or job that holds the lock, as text; None if it is stale."""
        job, mine = claim["job"], self._claim
        if job and (job, claim["restart"]) != (mine["job"], mine["restart"]) and job == mine["job"]:
            return None  # what is left of this job's last start, if anything
        if claim["host"] == mine["host"] and claim["born"] and _process_start_time(claim["pid"]) == claim["born"]:
            return f"process {claim['pid']} on {claim['host']}"
        if job and job != mine["job"] and _slurm_job_is_running(job):
            return f"job {job}, which runs"
        return None


def _process_start_time(pid: int) -> str | None:
    """When a process started, which distinguishes it from a later one of its number; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


def _slurm_job_is_running(job: str) -> bool:
    """Whether a job runs, as far as Slurm can be asked.

    Where its controller does not answer a job, the other may run, so it does. Outside a job Slurm's commands may lie
    about without any controller: what they cannot say means nothing there.
    """
    if shutil.which("squeue") is None:
        return False
    unknown = "SLURM_JOB_ID" in os.environ
    try:
        words = ["squeue", "--noheader", "--format=%T", "--jobs", job]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        if done.returncode:  # no such job any more, or nobody to ask
            ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=60)
            return unknown and " UP" not in ping.stdout
    except (subprocess.TimeoutExpired, FileNotFoundError):
        return unknown
    return done.stdout.strip() in ("RUNNING", "SUSPENDED")
