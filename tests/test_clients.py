"""An engine in the predictor's place, played by a server of plain transformers (a real one: tests/engines)."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from clsgen_dist import clients
from clsgen_dist.clients import EnginePredictor
from clsgen_dist.errors import ModelError, ServerError
from clsgen_dist.hf_export.artifact import ModelCard
from clsgen_dist.hf_export.fold import fold
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.predict_file import predict_file
from tests.inference.conftest import hand_made_export

TEXTS = ["one", "two words", "x" * 400, "three more words"]


class Engine(BaseHTTPRequestHandler):
    """Answers as vLLM 0.32 does; ``faults`` are statuses to answer first, or a body to answer with."""

    def do_GET(self):
        self._answer(200, {"data": [{"id": "served"}]} if self.path == "/v1/models" else {})

    @torch.inference_mode()
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.asked.append(body)
        if server.faults:
            fault = server.faults.pop(0)
            return self._answer(*((fault, {"error": "busy"}) if isinstance(fault, int) else (200, fault)))
        assert self.path == "/v1/completions" and body["model"] == "served"
        ids_1T = torch.tensor([body["prompt"]])
        log_p_V = server.lm(ids_1T).logits[0, -1].log_softmax(dim=0)
        [end] = body["stop_token_ids"]
        never = [[int(row)] for row, bias in body["logit_bias"].items() if bias == -100]
        options = {"do_sample": False, "bad_words_ids": never, "eos_token_id": end, "pad_token_id": end}
        tokens = server.lm.generate(ids_1T, max_new_tokens=body["max_tokens"], **options)
        text = server.tokenizer.decode(tokens[0, ids_1T.shape[1] :], skip_special_tokens=True)
        top = {f"token_id:{row}": float(log_p_V[row]) for row in [int(log_p_V.argmax()), *body["logprob_token_ids"]]}
        return self._answer(200, {"choices": [{"text": text, "logprobs": {"top_logprobs": [top, {"token_id:5": -1}]}}]})

    def _answer(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def engine(tmp_path):
    """An export, the same folded, and a server of it."""
    folder = hand_made_export(tmp_path / "export", ["no", "yes"])
    card = ModelCard.read(folder)
    replace(card, calibration={"method": "affine", "scale": 0.5, "bias": [0.25, -0.25]}, thresholds=[0.4]).write(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    server.export, server.folded, server.faults, server.asked = folder, fold(folder, tmp_path / "folded"), [], []
    server.lm = AutoModelForCausalLM.from_pretrained(server.folded).eval()
    server.tokenizer = AutoTokenizer.from_pretrained(server.folded)
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_an_engines_answers_are_the_predictors(engine):
    expected = Predictor(engine.export).predict(TEXTS, max_new_tokens=6)
    for url in ("", "/", "/v1", "/v1/completions"):
        found = EnginePredictor(engine.folded, engine.url + url).predict(TEXTS, max_new_tokens=6, batch_size=3)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a.logits, b.logits, atol=1e-4)
            assert a.probabilities == pytest.approx(b.probabilities, abs=1e-5)
            assert (a.label, a.explanation, a.truncated) == (b.label, b.explanation, b.truncated)
    engine.asked.clear()
    [bare] = EnginePredictor(engine.folded, engine.url).predict(["one"], explain=False)
    assert bare.explanation is None and engine.asked[0]["max_tokens"] == 1


def test_a_file_is_predicted_by_an_engine_and_goes_on_after_a_failure(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(clients, "_TRIES", 1)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": n, "text": f"text {n}" if n % 5 else None}) + "\n" for n in range(12)))
    predict_file(engine.export, str(rows), tmp_path / "ours.jsonl", explain=False)
    predictor = EnginePredictor(engine.folded, engine.url)
    engine.faults[:] = [{"choices": [{"text": "", "logprobs": None}]}]
    options = {"batch_size": 4, "explain": False, "predictor": predictor}
    with pytest.raises(ServerError, match=r"no log-probability of 3 of 3 folded rows"):
        predict_file(engine.folded, str(rows), tmp_path / "theirs.jsonl", **options)
    assert not (tmp_path / "theirs.jsonl").exists()
    predict_file(engine.folded, str(rows), tmp_path / "theirs.jsonl", **options)
    ours, theirs = ([json.loads(line) for line in (tmp_path / f"{n}.jsonl").open()] for n in ("ours", "theirs"))
    for a, b in zip(ours, theirs, strict=True):
        assert b.get("probabilities") == pytest.approx(a.get("probabilities"), abs=1e-4)
        assert {**a, "probabilities": 0} == {**b, "probabilities": 0}


def test_a_busy_engine_is_asked_again_and_a_refusal_is_named(engine, monkeypatch):
    predictor = EnginePredictor(engine.folded, engine.url)
    engine.faults[:] = [429, 503]
    assert predictor.predict(["one"], explain=False)[0].label in ("no", "yes") and len(engine.asked) == 3
    engine.faults[:] = [400]
    with pytest.raises(ServerError, match=r"answered 400: .*busy"):
        predictor.predict(["one"])
    for logprobs in ({"top_logprobs": [{"token_id:3": -1.0}]}, {"top_logprobs": [{"a: b": -1.0}]}):
        engine.faults[:] = [{"choices": [{"text": "", "logprobs": logprobs}]}]
        with pytest.raises(ServerError, match=f"first of token {predictor.folded.rows[0]}"):
            predictor.predict(["one"])
    monkeypatch.setattr(clients, "_TRIES", 1)
    with pytest.raises(ServerError, match=r"127.0.0.1:9/v1/models does not answer"):
        EnginePredictor(engine.folded, "http://127.0.0.1:9")
    with pytest.raises(ModelError, match=r"head is not in its LM head.*--fold true"):
        EnginePredictor(engine.export, engine.url)
