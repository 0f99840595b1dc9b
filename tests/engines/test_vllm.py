"""A real vLLM on the CPU serves a folded SmolLM2: probabilities and explanations equal ours (``make test-engines``)."""

from __future__ import annotations

import json
import os
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
from clsgen_dist.hf_export.artifact import HEAD_FILE, ModelCard, head_fingerprint
from clsgen_dist.hf_export.fold import fold
from clsgen_dist.inference.predict import Predictor

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
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def test_one_call_gives_our_probabilities_and_explanations(folders, url):
    rows = [json.loads(line)["text"] for line in demo_file("test").read_text().splitlines()[:20]]
    expected = Predictor(folders[0]).predict(rows, max_new_tokens=16)
    found = EnginePredictor(folders[1], url).predict(rows, max_new_tokens=16)
    np.testing.assert_allclose([p.logits for p in found], [p.logits for p in expected], atol=1e-3)
    assert [p.label for p in found] == [p.label for p in expected]
    assert np.ptp([p.logits for p in found], axis=0).min() > 0.05
    assert [p.explanation for p in found] == [p.explanation for p in expected]
