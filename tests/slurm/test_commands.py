"""What the scripts would run, and what they refuse: no Slurm is needed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _bash(*words, cwd=ROOT, **more):
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")} | more
    return subprocess.run(["bash", *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True)


def _dry(script="8b", *words, **more):
    settings = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "DRY_RUN": "1", **more}
    return _bash(f"slurm/train_{script}.sh", *words, **settings)


def test_dry_run_shows_the_commands_and_runs_none(tmp_path):
    output = tmp_path / "run"
    for script, recipe in (("8b", "8b_lora"), ("70b", "70b_zero3")):
        words = ("--config", "mine.yaml", "--train.max_steps", "3")
        done = _dry(script, *words, OUTPUT=str(output), PATH="/usr/sbin:/usr/bin:/bin", PYTHON="/opt/python")
        assert done.returncode == 0 and not done.stderr, done.stderr
        look, train = (line for line in done.stdout.splitlines() if line.startswith("srun --export=ALL"))
        assert "--distribution=block" in look and "--timeout_s 300" in look and "-m clsgen_dist train" in train
        assert f"/opt/python -m clsgen_dist preflight --output_dir {output}" in look
        # Whatever recipe the user names, the run stays in the folder that the job expects.
        assert f"--config configs/{recipe}.yaml --config mine.yaml --train.max_steps 3" in train
        assert train.rstrip().endswith(f"--output_dir {output} --resume auto")
        for command in (
            f"mkdir -p {output}/logs/7.0", "timeout -k 5 20 git", "timeout -k 5 20 nvidia-smi", "timeout -k 5 60 /opt",
            "scontrol requeue 7", "scontrol update JobId=7 ExcNodeList=",
        ):  # fmt: skip
            assert command in done.stdout, done.stdout
        assert not output.exists()


@pytest.mark.parametrize("mounts", [{}, {"CONTAINER_MOUNTS": "/data:/rows,/lustre:/lustre"}], ids=["none", "two"])
@pytest.mark.parametrize("container", ["pyxis", "apptainer", "enroot"])
def test_a_container_mounts_checkout_and_run_folder_and_starts_in_the_checkout(container, mounts, tmp_path):
    output = tmp_path / "run"
    done = _dry(CONTAINER=container, CONTAINER_IMAGE="/images/c.sqsh", OUTPUT=str(output), NCCL_DEBUG="INFO", **mounts)
    pairs = [f"{ROOT}:{ROOT}", f"{output}:{output}", *mounts.get("CONTAINER_MOUNTS", "").split(",")]
    pairs = [pair for pair in pairs if pair]
    expected = {
        "pyxis": ["--container-image=/images/c.sqsh", f"--container-workdir={ROOT}",
                  f"--container-mounts={','.join(pairs)}"],
        "apptainer": [f"apptainer exec --nv --pwd {ROOT} --bind {','.join(pairs)} /images/c.sqsh"],
        "enroot": [f"enroot start {' '.join(f'--mount {pair}' for pair in pairs)} --env CLSGEN_LOGS",
                   "--env NCCL_DEBUG", "--env SLURM_PROCID", f"/images/c.sqsh bash -c cd\\ {ROOT}"],
    }[container]  # fmt: skip
    steps = [line.replace("\\,", ",") for line in done.stdout.splitlines() if line.startswith("srun ")]
    assert done.returncode == 0 and len(steps) == 2, done.stderr
    for step in steps:
        for words in expected:
            assert words.replace(f"cd\\ {ROOT}", "") in step, step


def test_missing_or_wrong_settings_are_named_with_a_fix(tmp_path):
    def refused(words, *command, **more):
        done = _bash(*command, **more)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr

    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost", "DRY_RUN": "1"}
    there_run = str(tmp_path / "run")
    site = tmp_path / "cluster.env"
    site.write_text("[[ -f nothing ]] && PYTHON=/opt/python\n")
    script = "slurm/train_8b.sh"
    refused("SLURM_JOB_ID is not set; this runs under Slurm: sbatch", script)
    refused("CLSGEN_CLUSTER_ENV names", script, CLSGEN_CLUSTER_ENV=str(tmp_path / "none"))
    refused(f"{site} ends with status 1: its last command failed", script, CLSGEN_CLUSTER_ENV=str(site))
    refused(
        "CONTAINER is 'docker', expected none, pyxis, enroot", script, CONTAINER="docker", CONTAINER_IMAGE="i", **job
    )
    for container in ("pyxis", "enroot", "apptainer"):
        refused("CONTAINER_IMAGE is not set; name the image", script, CONTAINER=container, **job)
    there = str(tmp_path)
    refused("submit from the checkout, or set CLSGEN_ROOT to it", ROOT / script, cwd=tmp_path, SLURM_SUBMIT_DIR=there)
    for word in ("--output_dir=x", "--resume", "--overwrite"):
        refused(f"{word}: ", script, word, **job)
    refused("MAX_RESTARTS is 'many', expected a whole number", script, MAX_RESTARTS="many", **job)
    refused("--export=NONE (or SBATCH_EXPORT)", script, SLURM_EXPORT_ENV="NONE", **job)
    times = {"SLURM_JOB_START_TIME": "1000", "SLURM_JOB_END_TIME": "1540", "DRY_RUN": "0", "OUTPUT": there_run}
    refused("--time is 540 s", script, **{**job, **times})
    chain = "slurm/chain.sh"
    refused("usage: slurm/chain.sh", chain)
    refused("'easy' is not STAGE=NODES, like easy=2", chain, script, "easy")
    refused("no stages: name at least one STAGE=NODES", chain, script, "--", "--seed", "1")
    refused("'slurm/none.sh' is not a readable job script", chain, "slurm/none.sh", "easy=1")


def test_dry_run_of_a_chain_prints_what_it_would_submit(tmp_path):
    (tmp_path / "bad_nodes").write_text("n7 2026-03-01 slow\nn3 2026-03-01 slow\nn7 2026-03-02 slow\n")
    words = ("slurm/train_8b.sh", "easy=1", "hard=2", "--", "--seed", "1")
    done = _bash("slurm/chain.sh", *words, DRY_RUN="1", OUTPUT=str(tmp_path), SBATCH_FLAGS="--partition=gpu")
    first, second = done.stdout.replace("\\,", ",").splitlines()
    assert "--nodes=1" in first and "--train.stop_at_stage easy --seed 1" in first and "dependency" not in first
    assert "--nodes=2" in second and "--dependency=afterok:" in second and "--kill-on-invalid-dep=yes" in second
    assert "--train.stop_at_stage hard" in second
    assert all("--exclude=n3,n7 --partition=gpu" in line for line in (first, second))
