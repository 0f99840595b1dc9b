"""A real vLLM on the CPU serves a folded SmolLM2: probabilities and explanations equal ours (``make test-engines``)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from clsgen_dist.clients import EnginePredictor
from clsgen_dist.data.demos.breast_cancer import demo_file
from clsgen_dist.data.prompt import render_prompt
from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.explanations.text_units import sentence_ends
from clsgen_dist.hf_export.artifact import HEAD_FILE, ModelCard, head_fingerprint
from clsgen_dist.hf_export.fold import fold
from clsgen_dist.inference.predict import Predictor
from tests.serving.live_server import live_server

PYTHON = Path(__file__).resolve().parents[2] / ".venv-engines/bin/python"
pytestmark = pytest.mark.skipif(not PYTHON.is_file(), reason="needs vLLM in .venv-engines (make test-engines)")


@pytest.fixture(scope="module")
def folders(smollm2, tmp_path_factory):
    """SmolLM2 with a random head, as an export and folded."""
    folder = tmp_path_factory.mktemp("engines") / "export"
    shutil.copytree(smollm2, folder)
    torch.manual_seed(0)
    head = {"weight": torch.randn(2, 576) / 10, "bias": torch.tensor([0.3, -0.2])}
    (folder / HEAD_FILE).parent.mkdir()
    save_file(head, folder / HEAD_FILE)
    prompt = render_prompt(AutoTokenizer.from_pretrained(folder), system="Cytology.", question="Benign or malignant?")
    ModelCard(
        labels=["benign", "malignant"], positive_label="malignant", system="Cytology.", question="Benign or malignant?",
        prompt=prompt.to_json(), max_prompt_length=128, max_explanation_length=24, trained={},
        head_sha256=head_fingerprint(head["weight"], head["bias"]),
    ).write(folder)  # fmt: skip
    return folder, fold(folder, folder.with_name("folded"))


@pytest.fixture(scope="module")
def url(folders, free_port, tmp_path_factory):
    """A vLLM server of the folded folder."""
    port, log = free_port(), tmp_path_factory.mktemp("vllm") / "log"
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folders[1])]
    command += ["--served-model-name", "folded", "--dtype", "float32", "--max-model-len", "512", "--port", port]
    with log.open("w") as out:
        env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
        server = subprocess.Popen(command, stdout=out, stderr=out, env=env, cwd="/", start_new_session=True)
    try:
        for _ in range(300):
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                if requests.get(f"http://127.0.0.1:{port}/health", timeout=1).ok:
                    break
            except requests.RequestException:
                pass
            time.sleep(1)
        else:
            pytest.fail(f"not ready after 300 s: {log.read_text()[-3000:]}")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def test_one_call_gives_our_probabilities_and_explanations(folders, url):
    rows = [json.loads(line)["text"] for line in demo_file("test").read_text().splitlines()[:20]]
    plain = DecodingSettings(redraws=0)
    expected = Predictor(folders[0]).predict(rows, max_new_tokens=16, decoding=plain)
    found = EnginePredictor(folders[1], url).predict(rows, max_new_tokens=16, decoding=plain)
    np.testing.assert_allclose([p.logits for p in found], [p.logits for p in expected], atol=1e-3)
    assert [p.label for p in found] == [p.label for p in expected]
    assert np.ptp([p.logits for p in found], axis=0).min() > 0.05
    assert [p.explanation for p in found] == [p.explanation for p in expected]


def test_schemas_budgets_and_draws_are_kept_to(folders, url):
    predictor, text = EnginePredictor(folders[1], url), "An irregular mass of 12 mm with spiculated edges."

    def written(tokens=40, **settings):
        [found] = predictor.predict([text], max_new_tokens=tokens, decoding=DecodingSettings(redraws=0, **settings))
        return found.explanation

    schema = {"type": "object", "properties": {"class": {"enum": ["benign", "malignant"]}}, "required": ["class"],
              "additionalProperties": False}  # fmt: skip
    assert json.loads(written(json_schema=json.dumps(schema)))["class"] in ("benign", "malignant")
    assert re.fullmatch("(yes|no), [a-z]{3}", written(regex="(yes|no), [a-z]{3}"))
    assert len(sentence_ends(written(80, length="short"))) == 1
    drawn = [written(temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    wrong = {"benign": "malignant", "malignant": "benign"}
    [first] = predictor.predict([text], explain=False)
    redrawn = DecodingSettings(regex=wrong[first.label], redraws=2)
    [found] = predictor.predict([text], decoding=redrawn)
    assert (found.redraws, found.contradicts) == (2, True)


def test_the_server_streams_from_the_engine_and_a_client_that_leaves_is_told_to_it(folders, url, free_port):
    with live_server(folders[1], free_port(), engine=url) as server:
        body = {"text": "An irregular mass.", "max_tokens": 24, "decoding": {"redraws": 0}}
        answer = requests.post(f"{server.url}/v1/explain", json=body, timeout=120)
        names = [line[7:] for line in answer.text.splitlines() if line.startswith("event: ")]
        assert names[0] == "decision" and names[-1] == "done" and names.count("text") > 3
        [expected] = server.predictor.predict(
            ["An irregular mass."], max_new_tokens=24, decoding=DecodingSettings(redraws=0)
        )
        done = json.loads(answer.text.rsplit("data: ", 1)[1])
        assert done["explanation"] == expected.explanation
        with requests.post(
            f"{server.url}/v1/explain", json=body | {"max_tokens": 400}, stream=True, timeout=120
        ) as left:
            next(left.iter_lines())
        deadline = time.monotonic() + 10
        while server.backend.running and time.monotonic() < deadline:
            time.sleep(0.1)
        assert server.backend.running == 0
        deadline = time.monotonic() + 10  # the engine counts when it works next
        while (running := running_requests(url, predictor=server.predictor)) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert running == 0


def running_requests(url, predictor):
    """Requests that the engine is at, after one more that has ended."""
    predictor.predict(["one"], explain=False)
    lines = requests.get(f"{url}/metrics", timeout=9).text.splitlines()
    return float(next(line for line in lines if "num_requests_running{" in line).split()[-1])
