"""A run under Slurm whose ranks are killed at random ends with the weights of an uninterrupted one.

    pytest tests/slurm/soak.py -s                   ten minutes, a kill -9 about every minute
    SOAK_MINUTES=60 SOAK_EVERY=90 pytest tests/slurm/soak.py -s

Not part of the test suite: pytest does not collect this file by itself.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

import psutil
import torch

from clsgen_dist import checkpoint

MINUTES, EVERY = float(os.environ.get("SOAK_MINUTES", "10")), float(os.environ.get("SOAK_EVERY", "60"))
STEPS_PER_MINUTE = 120
FLAGS = ("--nodes=2", "--ntasks-per-node=1", "--gres=gpu:1", "--cpus-per-task=1", "--mem=500", "--time=600")


def _ranks(output):
    """Processes that train into this folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(output) in " ".join(words) and any(w.endswith("train.py") for w in words[:3]):
            found.append(process)
    return found


def _weights(output):
    last = checkpoint.committed(output / "checkpoints")[-1]
    files = [torch.load(file, weights_only=False) for file in sorted(last.glob("*optim_states.pt"))]
    return last.name, [flat for file in files for flat in file["optimizer_state_dict"]["fp32_flat_groups"]]


def test_random_kills_do_not_change_the_weights(slurm, recipe, train, tmp_path):
    steps = round(MINUTES * STEPS_PER_MINUTE)
    options = {
        "data__train": "demo:breast-cancer/train", "train__epochs": 1 + steps // 20, "train__max_steps": steps,
        "checkpoint__every": 20, "checkpoint__keep_last": 2, "train__log_rows": "true", "model__head_dropout": 0.1,
    }  # fmt: skip
    start = time.monotonic()
    train(tmp_path / "uninterrupted", **options)
    print(f"\nuninterrupted: {steps} steps in {time.monotonic() - start:.0f} s")
    site = tmp_path / "cluster.env"
    site.write_text(
        f"PYTHON={sys.executable}\nexport GLOO_SOCKET_IFNAME=lo\nCLSGEN_MASTER_ADDR=127.0.0.1\nMAX_RESTARTS=999\n"
        "PREFLIGHT=0\n"
    )
    output, log = tmp_path / "killed", tmp_path / "job.log"
    arguments = ["--config", "configs/demo.yaml", *recipe(output, **options)]
    settings = {"OUTPUT": output, "CLSGEN_CLUSTER_ENV": site, "OMP_NUM_THREADS": "1"}
    job = slurm.sbatch(*FLAGS, f"--output={log}", "slurm/train_8b.sh", *arguments, **settings)
    dice, kills, start = random.Random(0), 0, time.monotonic()
    due = start + dice.uniform(0.5, 1.5) * EVERY
    while (now := slurm.state(job))["JobState"] in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"):
        if now["JobState"] == "PENDING" and now.get("Reason") == "BeginTime":
            slurm.start_now(job)
        if time.monotonic() > due and (ranks := _ranks(output)):
            dice.choice(ranks).send_signal(signal.SIGKILL)
            kills += 1
            due = time.monotonic() + dice.uniform(0.5, 1.5) * EVERY
        assert time.monotonic() - start < 60 * (5 * MINUTES + 10), log.read_text()[-3000:]
        time.sleep(0.3)
    minutes = (time.monotonic() - start) / 60
    print(f"killed {kills} times in {minutes:.1f} min: {now['JobState']}, {now['Restarts']} restarts")
    assert now["JobState"] == "COMPLETED", log.read_text()[-3000:]
    assert kills >= MINUTES * 60 / EVERY / 3 and int(now["Restarts"]) >= kills / 2
    (ours, mine), (theirs, truth) = _weights(output), _weights(tmp_path / "uninterrupted")
    assert ours == theirs and len(mine) == len(truth) > 0
    assert all(torch.equal(a, b) for a, b in zip(mine, truth, strict=True))
    rows = [(tmp_path / name / "rows.jsonl").read_text() for name in ("killed", "uninterrupted")]
    assert rows[0] == rows[1]
