"""``clsgen serve`` as a process: start, drain, kill, a second start; what it refuses; metrics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import requests

from clsgen_dist.cli import main
from clsgen_dist.inference.prediction import Prediction
from clsgen_dist.serving.metrics import Metrics, stability_index
from tests.inference.conftest import hand_made_export


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hand_made_export(tmp_path_factory.mktemp("served") / "tumours", ["benign", "malignant"])


def start(folder, port, *options):
    command = [sys.executable, "-m", "clsgen_dist", "serve", "--model", str(folder), "--port", port, *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "CLSGEN_TOKENS": ""})


def wait_ready(url, process):
    for _ in range(600):
        assert process.poll() is None, process.stderr.read()
        try:
            if requests.get(f"{url}/ready", timeout=1).status_code == 200:
                return
        except requests.RequestException:
            time.sleep(0.05)
    raise AssertionError("not ready after 30 s")


@pytest.mark.slow
def test_term_finishes_what_is_at_work_and_a_kill_frees_the_port(folder, free_port):
    port = free_port()
    url, found = f"http://127.0.0.1:{port}", []
    process = start(folder, port)
    try:
        wait_ready(url, process)

        def ask():
            body = {"text": "one", "max_tokens": 150, "decoding": {"temperature": 1, "redraws": 0}}
            answer = requests.post(f"{url}/v1/explain", json=body, stream=True, timeout=60)
            found.extend(line.decode() for line in answer.iter_lines() if line.startswith(b"event"))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        while len(found) < 3:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert found.count("event: done") == 3, "streams end with their answers"
        assert process.wait(20) == 0
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{url}/health", timeout=2)
        process = start(folder, port)
        wait_ready(url, process)
        process.kill()
        process.wait()
        process = start(folder, port, "--name", "tumour-1")
        wait_ready(url, process)
        assert requests.get(f"{url}/v1/info", timeout=5).json()["model"] == "tumour-1"
        second = start(folder, port)
        assert second.wait(60) == 2
        assert f"port {port}" in second.stderr.read()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "others may reach, and there are no tokens"),
        (["--tokens_file", "nowhere"], "--tokens_file nowhere cannot be read"),
        (["--tokens_file", "{empty}"], "has no token, expected one a line"),
        (["--port", "0"], "--port is 0, expected 1 to 65535"),
        (["--port", "70000"], "--port is 70000, expected 1 to 65535"),
        (["--engine", "http://127.0.0.1:9"], "head is not in its LM head"),
    ],
)
def test_what_is_refused_at_the_start(options, words, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CLSGEN_TOKENS", raising=False)
    (tmp_path / "empty").write_text("\n# no token\n")
    with pytest.raises(SystemExit, match="2"):
        main(["serve", "--model", str(folder), *(option.format(empty=tmp_path / "empty") for option in options)])
    assert words in capsys.readouterr().err


def answer(p):
    return Prediction(
        label="no", probabilities={"no": 1 - p, "yes": p}, logits=(0.0, 0.0), explanation=None, truncated=False
    )


def test_drift_is_told_once_there_are_enough_answers():
    metrics, expected = Metrics(["yes"]), {"yes": [100] * 10}
    for n in range(199):
        metrics.observe(answer(n % 10 / 10 + 0.05))
    assert b"clsgen_drift_psi{" not in metrics.text(expected, 0, 0)
    metrics.observe(answer(0.5))

    def drift():
        lines = metrics.text(expected, 3, 2).decode().splitlines()
        return float(next(line for line in lines if line.startswith("clsgen_drift_psi{")).split()[-1])

    assert drift() < 0.02
    for _ in range(1000):
        metrics.observe(answer(1.0))
    assert drift() > 1
    text = metrics.text(expected, 3, 2).decode()
    assert "clsgen_texts_waiting 3.0" in text and 'clsgen_probability_count{label="yes"} 1200.0' in text
    assert metrics.text(None, 0, 0)


def test_the_stability_index_is_the_textbooks():
    assert stability_index([10, 20, 30], [10, 20, 30]) == 0
    p, q = (9.5 / 31.5, 22 / 31.5), (21.5 / 32.5, 11 / 32.5)
    import math

    by_hand = sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert stability_index([9, 21.5], [21, 10.5]) == pytest.approx(by_hand)


def test_the_calibration_rows_are_counted(tmp_path, folder):
    rows = tmp_path / "dev.jsonl"
    cells = [{"id": n, "text": f"text {n}", "label": ["benign", "malignant"][n % 2]} for n in range(40)]
    rows.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    main(["calibrate", "--model", str(folder), "--data", str(rows), "--method", "affine"])
    counts = json.loads((folder / "clsgen.json").read_text())["calibrated_on"]["score_counts"]
    assert {name: (len(bins), sum(bins)) for name, bins in counts.items()} == dict.fromkeys(
        ("benign", "malignant"), (10, 40)
    )
    assert counts["benign"] == counts["malignant"][::-1]
