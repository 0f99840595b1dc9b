"""slurm/serve_70b.sh: what it would run and refuses; and on a real Slurm, with a stand-in in the place of vLLM."""

from __future__ import annotations

import sys
import time

import pytest

from clsgen_dist.hf_export.artifact import Folded, ModelCard
from tests.slurm.test_commands import ROOT, _bash

SCRIPT = "slurm/serve_70b.sh"
FAKE = f"""#!{sys.executable}
# Answers on the first node while the file `sick` beside it is absent; ends in order at TERM, as vLLM does.
import http.server, os, pathlib, signal, sys

here, node = pathlib.Path(__file__).parent, os.environ["SLURM_NODEID"]
(here / f"arguments-{{node}}").write_text("\\n".join(sys.argv[1:]))

def stop(*_):
    (here / f"stopped-{{node}}").touch()
    os._exit(0)

signal.signal(signal.SIGTERM, stop)
if (here / "broken").exists():
    sys.exit(2)
if "--headless" in sys.argv:
    while True:
        signal.pause()

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if (here / "sick").exists() else 200)
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Health).serve_forever()
"""


@pytest.fixture
def folder(tmp_path):
    """The card of a folded export, which is all that the script reads."""
    path = tmp_path / "folded"
    path.mkdir()
    ModelCard(
        labels=["no", "yes"], positive_label="yes", system=None, question="Why?", max_prompt_length=8,
        max_explanation_length=8, head_sha256="", trained={},
        folded=Folded(rows=[7, 8], reference=9, largest_difference=0.0),
    ).write(path)  # fmt: skip
    return path


JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "2", "DRY_RUN": "1"}


def test_dry_run_shows_one_vllm_a_node(folder, tmp_path):
    output = tmp_path / "serve"
    words = (SCRIPT, folder, "--max-model-len", "4096")
    done = _bash(*words, OUTPUT=str(output), VLLM="/opt/vllm", PORT="9000", SLURM_GPUS_ON_NODE="4", **JOB)
    assert done.returncode == 0 and not done.stderr, done.stderr
    made, step, _, health = done.stdout.splitlines()
    assert made == f"mkdir -p {output}/logs/7.0 " and health.endswith("http://n1:9000/health ")
    assert step.startswith("srun --export=ALL --kill-on-bad-exit=1") and "--nodes=2" in step
    assert f"/opt/vllm serve {folder} --max-model-len 4096 --host 0.0.0.0 --port 9000 " in step
    assert "--tensor-parallel-size 4 --pipeline-parallel-size 2 --nnodes 2 --master-addr n1 --master-port 20007" in step
    assert "--headless" in step and "--node-rank" in step and not output.exists()


def test_a_container_sees_the_folder(folder, tmp_path):
    settings = {**JOB, "CONTAINER": "apptainer", "CONTAINER_IMAGE": "/images/vllm.sif", "OUTPUT": str(tmp_path / "run")}
    done = _bash(SCRIPT, folder, **settings)
    bound = f"{ROOT}:{ROOT},{tmp_path}/run:{tmp_path}/run,{folder}:{folder}"
    assert f"--bind {bound} /images/vllm.sif bash -c" in done.stdout.replace("\\,", ","), done.stdout + done.stderr


def test_what_cannot_be_served_is_refused(folder, tmp_path):
    def refused(words, *arguments, **more):
        done = _bash(SCRIPT, *arguments, **{**JOB, "OUTPUT": str(tmp_path / "serve"), **more})
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr

    refused("usage: sbatch slurm/serve_70b.sh FOLDER")
    refused(f"{tmp_path} is not an exported model: clsgen export", tmp_path)
    refused("SLURM_JOB_ID is not set; this runs under Slurm: sbatch slurm/serve_70b.sh", folder, SLURM_JOB_ID="")
    refused("--nnodes: the job sets it, from its nodes", folder, "--nnodes", "3")
    refused("-tp=2: the job sets it, from its nodes", folder, "-tp=2")
    refused("--port: the job sets it; set PORT instead", folder, "--port", "1")
    refused("PORT is 'high', expected a whole number", folder, PORT="high")
    refused("16 tasks on 2 nodes, expected one a node: submit with --ntasks-per-node=1", folder, SLURM_NTASKS="16")
    refused("a server is not an array", folder, SLURM_ARRAY_JOB_ID="7")
    card = ModelCard.read(folder)
    ModelCard(**{**vars(card), "folded": None}).write(folder)
    refused(f"{folder} is not folded, so vLLM would give no class logits: clsgen export --checkpoint", folder)


@pytest.fixture
def serve(job, slurm, folder, free_port):
    """``serve(**settings)`` submits the job with a stand-in for vLLM; its files are beside ``serve.vllm``."""
    vllm = folder.parent / "vllm"
    vllm.write_text(FAKE)
    vllm.chmod(0o755)

    def submit(*arguments, **settings):
        settings = {"VLLM": vllm, "PORT": free_port(), "HEALTH_EVERY": 1, **settings}
        submit.url = f"http://127.0.0.1:{settings['PORT']}"
        return job(folder, *arguments, script=SCRIPT, **settings)

    submit.files = folder.parent
    return submit


def _wait_for(*files, seconds=60):
    deadline = time.monotonic() + seconds
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, files
        time.sleep(0.2)


@pytest.mark.dist
@pytest.mark.slow
def test_a_server_says_when_it_is_ready_and_stops_in_order(serve, slurm, job, folder):
    number = serve("--max-model-len", "99")
    job.reach("url")
    assert (job.output / "url").read_text().strip() == serve.url
    first, second = ((serve.files / f"arguments-{node}").read_text().split("\n") for node in (0, 1))
    assert first[:4] == ["serve", str(folder), "--max-model-len", "99"] and first[-2:] == ["--node-rank", "0"]
    assert second == [*first[:-2], "--headless", "--node-rank", "1"]
    slurm.run("scancel", number)
    assert slurm.wait(number)["JobState"] == "CANCELLED"
    _wait_for(*(serve.files / f"stopped-{node}" for node in (0, 1)))
    assert not (job.output / "url").exists() and "requeueing" not in job.log.read_text()


@pytest.mark.dist
@pytest.mark.slow
def test_a_server_that_answers_no_more_is_started_again(serve, slurm, job):
    number = serve(MAX_RESTARTS=1)
    job.reach("url")
    (serve.files / "sick").touch()
    deadline = time.monotonic() + 60
    while "requeueing (restart 1)" not in job.log.read_text():
        assert time.monotonic() < deadline, job.log.read_text()
        time.sleep(0.3)
    assert "/health has failed three times: stopping" in job.log.read_text()
    (serve.files / "sick").unlink()
    slurm.start(number, restart=1)
    job.reach("url")
    slurm.run("scancel", number)
    slurm.wait(number)


@pytest.mark.dist
@pytest.mark.slow
def test_a_server_that_cannot_start_is_not_requeued(serve, slurm, job):
    (serve.files / "broken").touch()
    ended = slurm.wait(serve())
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0"), job.log.read_text()
    (serve.files / "broken").unlink()
    (serve.files / "sick").touch()
    ended = slurm.wait(serve(READY_TIMEOUT=3, MAX_RESTARTS=1))
    assert "not ready within READY_TIMEOUT (3 s): stopping" in job.log.read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "1"), job.log.read_text()
