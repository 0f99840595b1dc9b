"""What a hostile client sends: nobody else's answer suffers, and the server says what is wrong with it."""

from __future__ import annotations

import json
import threading
import time

import pytest
import requests

from clsgen_dist.decoding.constraint import grammar
from clsgen_dist.decoding.loop import DecodeLoop
from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.decoding.trial import is_bounded
from tests.inference.conftest import hand_made_export
from tests.serving.live_server import live_server

USER = [{"role": "user", "content": "a"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hand_made_export(tmp_path_factory.mktemp("hostile") / "m", ["benign", "malignant"])


@pytest.fixture(scope="module")
def server(folder, free_port):
    with live_server(folder, free_port()) as running:
        yield running


def post(server, path, body):
    data = json.dumps(body) if isinstance(body, dict) else body
    return requests.post(f"{server.url}/v1/{path}", data=data, headers={"Content-Type": "application/json"}, timeout=60)


def rules(kind, count):
    """A grammar whose rules or terminals lead to each other."""
    lines = [f"{kind}{n}: {kind}{n + 1}" for n in range(count)]
    return "\n".join([f"start: {kind}0", *lines, f'{kind}{count}: "b"'])


def excluded(count):
    """A terminal that excludes so many numbers, one by one."""
    return "start: T\nT: /.*/" + "".join(f" & ~/.*{n}.*/" for n in range(count))


HOSTILE = [
    ({"temperature": 1e-300}, 400, "temperature is 1e-300, expected 0, or 0.01 to 100"),
    ({"temperature": 1e308}, 400, "expected 0, or 0.01 to 100"),
    ({"forbidden": ["\ud800"]}, 422, "unable to parse raw data as a unicode string"),
    ({"regex": "a\ud800"}, 422, "unable to parse raw data as a unicode string"),
    ({"json_schema": {"const": "\ud800"}}, 400, "decoding.json_schema is not valid JSON"),
    ({"regex": "(a{1000}){1000}"}, 400, "the constraint on the explanation failed"),
    ({"grammar": "start: <|im_start|>", "temperature": 1}, 200, ""),
    ({"grammar": "start: T\nT: /a/ & /b/", "temperature": 1}, 400, "the constraint on the explanation failed"),
    ({"json_schema": "[" * 5000 + "]" * 5000}, 400, "json_schema is not valid JSON"),
    ({"json_schema": {"$ref": "file:///etc/passwd"}}, 400, "decoding.json_schema cannot be used"),
    ({"grammar": excluded(20)}, 400, "decoding.grammar cannot be compiled within 2 s and 2 GB; simplify it"),
    ({"grammar": rules("r", 1500)}, 400, "cannot be compiled"),
    ({"grammar": "x" * 20_001}, 422, "at most 20000 characters"),
    ({"json_schema": {"description": "x" * 20_001}}, 413, "decoding.json_schema has 20020 characters"),
    ({"forbidden": ["a"] * 501}, 422, "at most 500 items"),
    ({"forbidden": ["x" * 201]}, 422, "at most 200 characters"),
]


def test_no_request_makes_others_fail(server):
    """All at once, beside an explanation that is being written; the alternatives were a batch, or the process."""
    ask = {"text": "a text", "max_tokens": 170, "stream": False, "decoding": {"redraws": 0}}
    expected = post(server, "explain", ask).json()["explanation"]
    found = []
    asks = threading.Thread(target=lambda: found.extend(post(server, "explain", ask) for _ in range(12)))
    asks.start()
    for decoding, status, words in HOSTILE:
        answer = post(server, "explain", {"text": "a", "max_tokens": 5, "stream": False, "decoding": decoding})
        assert answer.status_code == status and words in answer.text, (decoding, answer.text[:300])
    asks.join()
    assert {(answer.status_code, answer.json()["explanation"]) for answer in found} == {(200, expected)}
    assert (server.backend.waiting, server.backend.running) == (0, 0) and server.backend.is_alive


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("chat/completions", {"response_format": {"type": "json_schema", "json_schema": 5}}, "expected the schema"),
        ("chat/completions", {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}}, "no object"),
        ("chat/completions", {"response_format": {"type": []}}, "response_format has type"),
        ("decisions", {"questions": [{"type": "choice", "choices": [{"value": []}]}]}, "choices.0.value"),
        ("decisions", {"questions": [{"type": "choice", "choices": [{"value": True}]}]}, "choices are"),
        ("decisions", {"questions": [{"type": "predicate", "name": "\ud800"}]}, "name: "),
        ("decisions", {"questions": [{"type": "predicate", "name": "x" * 201}]}, "at most 200 characters"),
        ("classify", b'{"text":' + b"[" * 90_000 + b"}", "parsing the body"),
        ("classify", b'{"text":' + b"1" * 5000 + b"}", "parsing the body"),
        ("explain", b'{"text":"a","max_tokens":' + b"1" * 4000 + b"}", "--max_new_tokens is 1111"),
    ],
)
def test_odd_requests_are_the_clients_fault(server, path, body, words):
    if isinstance(body, dict):
        body |= {"model": "served", **({"messages": USER} if "chat" in path else {"input": "a"})}
    answer = post(server, path, body)
    assert answer.status_code in (400, 422) and words in answer.text, answer.text[:300]
    assert len(answer.text) < 2500, "a message repeats little of what was sent"


def test_forbidden_phrases_compile_in_no_time(server):
    """One pattern for all: the intersection of a hundred complements took over 20 s."""
    for phrases in (
        [chr(97 + n) for n in range(20)],
        [str(n) for n in range(100)],
        [f"word {n} x" for n in range(500)],
    ):
        settings, begun = DecodingSettings(forbidden=phrases), time.process_time()
        constraint = server.predictor.constraints.constraint(settings, "text", [], 24)
        assert constraint is not None and time.process_time() - begun < 2
        allowed = constraint.allowed()
        assert allowed.any() and bool(allowed[server.predictor.tokenizer.convert_tokens_to_ids("a")]) == (
            "a" not in phrases
        )


def test_what_passes_the_trial_and_what_does_not():
    for settings, expected in (
        (DecodingSettings(regex="(yes|no)[.]"), True),
        (DecodingSettings(regex="(["), True),  # an error that is told
        (DecodingSettings(json_schema='{"type": "object"}'), True),
        (DecodingSettings(grammar=rules("T", 30_000)), False),
    ):
        found = grammar(settings, "", [], 1)
        assert found is not None and is_bounded(found) is expected


def test_forms_of_the_models_folder_are_not_tried(server, monkeypatch):
    monkeypatch.setattr("clsgen_dist.serving.service.is_bounded", lambda grammar: False)
    ask = {"text": "a", "stream": False, "decoding": {"regex": "a{3}"}}
    assert post(server, "explain", ask).status_code == 400
    own = DecodingSettings(regex="a{3}")
    monkeypatch.setattr(type(server.service.card), "decoding_settings", property(lambda card: own))
    assert post(server, "explain", ask).json()["explanation"] == "aaa"


def test_too_many_forms_at_once_are_told_to_come_again(server, monkeypatch):
    monkeypatch.setattr("clsgen_dist.serving.service._MOST_WAITING", -2)
    answer = post(server, "explain", {"text": "a", "stream": False, "decoding": {"regex": "b{3}"}})
    assert answer.status_code == 429 and "Retry-After" in answer.headers


def test_candidates_count_as_explanations(folder, free_port, monkeypatch):
    """Otherwise the KV cache would be as many times larger than whoever set --max_batch expects."""
    at_a_time, admit = [], DecodeLoop.admit

    def counting(loop, *args):
        admit(loop, *args)
        at_a_time.append(len(loop.drafts))

    monkeypatch.setattr(DecodeLoop, "admit", counting)
    with live_server(folder, free_port(), max_batch=4) as server:
        ask = {"text": "a", "max_tokens": 30, "stream": False, "decoding": {"temperature": 1, "redraws": 0}}
        texts = [{**ask, "decoding": {**ask["decoding"], "candidates": n}} for n in (3, 3, 1, 2, 8, 1)]
        threads = [threading.Thread(target=post, args=(server, "explain", text)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(count > 4 for count in at_a_time) == 1 and max(at_a_time) == 8, "a text of more is written alone"


def test_metrics_and_logs_hold_no_words_of_a_clients(folder, free_port, caplog):
    with live_server(folder, free_port(), log_texts=True) as server:
        for path in ("/v1/secret-path", "/secret", "/metrics/secret", "/v1/classify?secret=1"):
            requests.get(server.url + path, timeout=9)
        requests.request("SECRET", f"{server.url}/v1/classify", timeout=9)
        metrics = requests.get(f"{server.url}/metrics", timeout=9).text
        assert "secret" not in metrics.lower() and 'path="other"' in metrics
        with caplog.at_level("INFO", "clsgen_dist"):
            post(server, "classify", {"text": "one\nERROR a line of its own\r\u2028and another"})
    [line] = [record.getMessage() for record in caplog.records if "a line of its own" in record.getMessage()]
    assert len(line.splitlines()) == 1
