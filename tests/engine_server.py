"""A server of plain transformers that answers as vLLM 0.32 does (a real one: tests/engines)."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from clsgen_dist.hf_export.artifact import ModelCard
from clsgen_dist.hf_export.fold import fold
from tests.inference.conftest import hand_made_export


class Engine(BaseHTTPRequestHandler):
    """Answers as vLLM 0.32 does.

    ``faults`` come first: statuses to answer, bodies to answer with, or seconds (floats) to say nothing.
    """

    def do_GET(self):
        self._answer(200, {"data": [{"id": "served"}]} if self.path == "/v1/models" else {})

    @torch.inference_mode()
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.asked.append(body)
        server.keys.append(self.headers.get("Authorization"))
        if server.faults:
            fault = server.faults.pop(0)
            if isinstance(fault, float):
                time.sleep(fault)
                fault = 503
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
        written = tokens[0, ids_1T.shape[1] :].tolist()
        finish = "stop" if written[-1] == end else "length"
        choice = {"text": text, "logprobs": {"top_logprobs": [top, {"token_id:5": -1}]}, "finish_reason": finish}
        usage = {"completion_tokens": len(written)}
        if body.get("stream"):
            return self._stream(choice, usage)
        return self._answer(200, {"choices": [choice], "usage": usage})

    def _stream(self, choice, usage):
        """Five characters a piece; the log-probabilities of the first token with the first."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        pieces = [choice["text"][start : start + 5] for start in range(0, len(choice["text"]), 5)] or [""]
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            part = {"text": piece, "logprobs": None if number else choice["logprobs"]}
            self._send_chunk({"choices": [{**part, "finish_reason": choice["finish_reason"] if last else None}]})
            self.server.pieces += 1
            time.sleep(self.server.seconds_a_piece)
        self._send_chunk({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _send_chunk(self, chunk):
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.flush()

    def _answer(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@contextmanager
def serving_engine(folder, labels):
    """An export with a calibration, the same folded, and a server of it."""
    folder = hand_made_export(folder / "export", labels)
    card = ModelCard.read(folder)
    replace(card, calibration={"method": "affine", "scale": 0.5, "bias": [0.25, -0.25]}, thresholds=[0.4]).write(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    server.export, server.folded, server.faults = folder, fold(folder, folder.with_name("folded")), []
    server.lm = AutoModelForCausalLM.from_pretrained(server.folded).eval()
    server.tokenizer = AutoTokenizer.from_pretrained(server.folded)
    server.asked, server.keys, server.pieces, server.seconds_a_piece = [], [], 0, 0.0
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
