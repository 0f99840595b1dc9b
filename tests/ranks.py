"""Ranks and commands in seconds: a process that has imported everything, and forks real ones on request.

    {"ranks": 2, "argv": [...], "faults": [...], "log": "/tmp/run.log", "timeout": 60}   ──▶   {"status": [75, 75], ...}
    {"command": ["predict", ...], "cwd": ".", "env": {...}, "log": "/tmp/x.log", "timeout": 60}   ──▶   {"status": 0}

Each rank is a separate process that runs ``train.py``'s main, with the environment a launcher would give it and a log
beside those of the others. As under srun with --kill-on-bad-exit, the first rank that fails ends the others, five
seconds later. ``faults`` are passed to tests/faults/inject.py in the ranks they name.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from typing import Any

GRACE = 5.0
IMPORTED = [
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.module_inject.auto_ep",
    "torch._inductor.compile_fx",
    "torch.utils.tensorboard",
    "transformers.integrations",
    "transformers.conversion_mapping",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.tokenization_auto",
    "matplotlib.pyplot",
    "pandas",
    "peft",
    "sklearn.metrics",
    "clsgen_dist.cli",
    "clsgen_dist.training.trainer",
    "clsgen_dist.inference.demo",
    "clsgen_dist.inference.calibrate",
    "clsgen_dist.inference.evaluate",
    "clsgen_dist.parser",
    "clsgen_dist.hf_export.export",
]
"""What a run and a command import on their way, in seconds that would be spent again and again."""


def rank_main(request: dict[str, Any], rank: int, port: int) -> int:
    """What a rank does; returns its exit status."""
    log = os.open(f"{request['log']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    ranks = str(request["ranks"])
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=ranks, LOCAL_SIZE=ranks, MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(request.get("port", port)), OMP_NUM_THREADS="1", **request.get("env", {}),
    )  # fmt: skip
    os.chdir(request.get("cwd", "."))
    import torch

    torch.set_num_threads(1)
    from clsgen_dist.cli import main
    from tests.faults.inject import inject

    inject([fault for fault in request.get("faults", []) if fault.get("rank", rank) == rank])
    try:
        main(["train", *request["argv"]])
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def command_main(request: dict[str, Any]) -> int:
    """What ``clsgen`` does with these words; stdout and stderr to separate files."""
    for number, end in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{request['log']}.{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["clsgen", *request["command"]]
    from clsgen_dist.cli import main as clsgen

    try:
        clsgen()
    except SystemExit as end_:
        if isinstance(end_.code, str):
            print(end_.code, file=sys.stderr)
            return 1
        return int(end_.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve_command(request: dict[str, Any]) -> dict[str, Any]:
    """Run one command to its end or its timeout."""
    if (pid := os.fork()) == 0:
        status = 1
        try:
            os.setsid()
            status = command_main(request)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    deadline = time.monotonic() + request["timeout"]
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.01)
    return {"status": os.waitstatus_to_exitcode(ended[1])}


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Start the ranks, and wait for the last of them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = time.monotonic()
    pids: dict[int, int] = {}
    for rank in request.get("only", range(request["ranks"])):
        if (pid := os.fork()) == 0:
            status = 1
            try:
                status = rank_main(request, rank, port)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        pids[pid] = rank
    status: dict[int, int] = {}
    ended: dict[int, float] = {}
    deadline = start + request.get("timeout", 120)
    while len(status) < len(pids):
        pid, code = os.waitpid(-1, os.WNOHANG)
        now = time.monotonic()
        if pid in pids:
            status[pids[pid]] = os.waitstatus_to_exitcode(code)
            ended[pids[pid]] = now - start
            if status[pids[pid]] not in (0, 75):
                deadline = min(deadline, now + GRACE)
        elif now > deadline:
            for left in pids:
                if pids[left] not in status:
                    os.kill(left, signal.SIGKILL)
            deadline = now + GRACE
        else:
            time.sleep(0.01)
    return {"status": [status[r] for r in sorted(status)], "ended": [ended[r] for r in sorted(ended)]}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what imports print must not reach stdout, which carries the answers
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps((serve_command if "command" in request else serve)(request)) + "\n")


if __name__ == "__main__":
    main()
