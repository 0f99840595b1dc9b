"""The server's own API: answers, streams, limits, errors, those who leave, recalibration."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.explanations.grounding import named_phrases
from clsgen_dist.explanations.stated_class import ClassNames
from clsgen_dist.hf_export.artifact import ModelCard
from clsgen_dist.serving.faults import queue_full
from clsgen_dist.serving.schemas import Decoding, changed
from tests.engine_server import serving_engine
from tests.inference.conftest import hand_made_export
from tests.serving.live_server import live_server

TEXTS = ["one", "two words", "three more words and still more", "4", "five is the last"]


@pytest.fixture(scope="module")
def server(tmp_path_factory, free_port):
    folder = hand_made_export(tmp_path_factory.mktemp("server") / "m", ["benign", "malignant"])
    with live_server(folder, free_port()) as running:
        yield running


def post(server, path, body, **options):
    return requests.post(f"{server.url}/v1/{path}", json=body, timeout=60, **options)


def events(answer):
    """The server-sent events of an answer: names and data."""
    found = []
    for block in answer.text.strip().split("\n\n"):
        name, _, data = block.partition("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_a_classification_and_a_batch_are_the_predictors(server):
    expected = server.predictor.predict(TEXTS, explain=False)
    for text, prediction in zip(TEXTS[:2], expected, strict=False):
        answer = post(server, "classify", {"text": text}).json()
        assert answer.pop("id").startswith("cls-") and answer.pop("model") == "served"
        assert answer.pop("probabilities") == pytest.approx(prediction.probabilities, abs=1e-5)
        assert answer == {"label": prediction.label}
    answers = post(server, "batch", {"texts": TEXTS, "max_tokens": 12}).json()["answers"]
    written = server.predictor.predict(TEXTS, max_new_tokens=12)
    assert [(a["label"], a["explanation"]) for a in answers] == [(p.label, p.explanation) for p in written]
    assert all(isinstance(a["evidence"], list) for a in answers)


def test_the_probability_comes_first_then_the_explanation_as_it_is_written(server):
    answer = post(server, "explain", {"text": TEXTS[2], "max_tokens": 20})
    assert (
        answer.headers["Content-Type"].startswith("text/event-stream") and "no-store" in answer.headers["Cache-Control"]
    )
    found = events(answer)
    names = [name for name, _ in found]
    assert names[0] == "decision" and names[-1] == "done" and set(names[1:-1]) == {"text"} and len(names) > 5
    first, last = found[0][1], found[-1][1]
    assert last | first == last, "what was said first stays"
    assert last["explanation"].startswith("".join(data["text"] for _, data in found[1:-1]))
    whole = post(server, "explain", {"text": TEXTS[2], "max_tokens": 20, "stream": False}).json()
    assert {**whole, "id": 0} == {**last, "id": 0}


def test_a_request_says_how_its_explanation_is_written(server):
    ask = {"text": "irregular mass with spiculated edges", "max_tokens": 90, "stream": False}
    quoted = post(server, "explain", ask | {"decoding": {"quote_evidence": True}}).json()
    assert quoted["evidence"], quoted
    start, end = quoted["evidence"][0]
    assert ask["text"][start:end].split()[0] in quoted["explanation"]
    schema = {"type": "object", "properties": {"size": {"type": "integer", "maximum": 9}}, "required": ["size"],
              "additionalProperties": False}  # fmt: skip
    found = post(server, "explain", ask | {"decoding": {"json_schema": schema}}).json()
    assert json.loads(found["explanation"])["size"] <= 9
    redrawn = post(server, "explain", {**ask, "stream": True, "decoding": {"regex": "benign|malignant", "redraws": 1}})
    assert [name for name, _ in events(redrawn)].count("decision") == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("classify", {"text": "  "}, 400, "the text is empty, expected a text to classify"),
        ("classify", {"text": "x" * 2001}, 413, "2001 characters, expected 2000 or fewer"),
        ("classify", {"text": "x\ud800"}, 400, "half a character"),
        ("classify", {}, 422, "text: Field required"),
        ("classify", {"text": 5}, 422, "text: "),
        ("classify", {"text": "a", "temprature": 1}, 422, "temprature: Extra inputs are not permitted"),
        ("explain", {"text": "a", "decoding": {"lenght": "short"}}, 422, "decoding.lenght: Extra inputs"),
        ("explain", {"text": "a", "decoding": {"length": "long"}}, 422, "decoding.length: "),
        ("explain", {"text": "a", "decoding": {"candidates": 99, "temperature": 1}}, 422, "candidates"),
        ("explain", {"text": "a", "decoding": {"candidates": 3}}, 400, "all would be equal"),
        ("explain", {"text": "a", "decoding": {"regex": "(["}}, 400, "decoding.regex cannot be used"),
        ("explain", {"text": "a", "max_tokens": 5000}, 400, "exceeds the model's context"),
        ("batch", {"texts": []}, 422, "texts: "),
        ("batch", {"texts": ["a", ""]}, 400, r"texts\[1\] is empty"),
        ("nothing", {}, 405, "see /docs"),
    ],
)  # fmt: skip
def test_what_is_refused_and_why(server, path, body, status, words):
    answer = post(server, path, body)
    error = answer.json()["error"]
    assert answer.status_code == status and set(error) == {"message", "type", "code", "param"}
    import re

    assert re.search(words, error["message"]), error


def test_bodies_over_the_limit_are_refused_with_and_without_their_length(server):
    big = json.dumps({"text": "x" * 200_000}).encode()
    answer = requests.post(f"{server.url}/v1/classify", data=big, timeout=20)
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large"
    chunks = (big[start : start + 1000] for start in range(0, len(big), 1000))  # chunked: no Content-Length
    answer = requests.post(
        f"{server.url}/v1/classify", data=chunks, headers={"Content-Type": "application/json"}, timeout=20
    )
    assert answer.status_code == 413
    broken = requests.post(
        f"{server.url}/v1/classify", data=b'{"text": "a', headers={"Content-Type": "application/json"}, timeout=20
    )
    assert broken.status_code == 422 and "JSON" in broken.json()["error"]["message"]
    metrics = requests.get(f"{server.url}/metrics", timeout=20).text
    for path in ("other", "/v1/classify"):
        assert re.search(rf'clsgen_requests_total\{{path="{path}",status="413"\}} [1-9]', metrics)


def test_many_at_once_are_all_answered_and_as_alone(server):
    texts = [f"text number {n}" + " and more" * (n % 7) for n in range(40)]
    with ThreadPoolExecutor(40) as pool:
        answers = list(
            pool.map(lambda text: post(server, "explain", {"text": text, "max_tokens": 8, "stream": False}), texts)
        )
    assert {answer.status_code for answer in answers} == {200}
    expected = server.predictor.predict(texts, max_new_tokens=8)
    for answer, prediction in zip(answers, expected, strict=True):
        assert answer.json()["explanation"] == prediction.explanation
    assert (server.backend.waiting, server.backend.running) == (0, 0)


@pytest.mark.parametrize("way", ["stream", "wait", "batch"])
def test_who_leaves_stops_the_decoding(server, monkeypatch, way):
    """A client that closes its connection, in mid-stream and while it waits."""
    forward, steps = server.predictor.lm.forward, []

    def slow(*args, **inputs):
        steps.append(1)
        time.sleep(0.02)
        return forward(*args, **inputs)

    monkeypatch.setattr(server.predictor.lm, "forward", slow)
    asked = {"text": "one", "stream": way == "stream"} if way != "batch" else {"texts": ["one", "two"] * 8}
    body = json.dumps({**asked, "max_tokens": 150, "decoding": {"regex": "[a-z]{400}"}}).encode()
    path = "batch" if way == "batch" else "explain"
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as connection:
        head = [
            f"POST /v1/{path} HTTP/1.1",
            "Host: x",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
        if way == "stream":
            received = b""
            while b"event: text" not in received:
                received += connection.recv(1000)
        else:
            while len(steps) < 5:
                time.sleep(0.01)
    deadline = time.monotonic() + 20
    while (server.backend.running or server.backend.waiting) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.backend.running == 0 and 0 < len(steps) < 140, "it would go on for 150 tokens"


@pytest.mark.parametrize(
    "poison",
    [
        {"temperature": 1e-39},
        {"forbidden": ["\ud800"]},
        {"grammar": "start: a\na: /x/ a"},
        {"regex": "a{1,3}", "temperature": 50.0, "candidates": 8},
        {"json_schema": '{"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}'},
    ],
    ids=lambda poison: next(iter(poison)),
)
def test_one_request_spoils_no_others(server, poison):
    with ThreadPoolExecutor(4) as pool:
        body = {"text": "one", "max_tokens": 100, "decoding": {"regex": "[a-z]{80}"}}
        good = [pool.submit(post, server, "explain", body) for _ in range(2)]
        time.sleep(0.1)
        bad = pool.submit(
            post, server, "explain", {"text": "two", "max_tokens": 60, "stream": False, "decoding": poison}
        )
        answers = [events(future.result()) for future in good]
        assert bad.result().status_code in (200, 400, 422)
    assert [answer[-1][0] for answer in answers] == ["done", "done"]
    assert {len(answer[-1][1]["explanation"]) for answer in answers} == {80}


def test_evidence_of_a_long_text_is_found_at_once():
    names = ClassNames(["benign", "malignant"])
    start = time.monotonic()
    named_phrases("the " * 50_000, "the " * 10, names)
    assert time.monotonic() - start < 2


def test_what_a_request_names_takes_the_place_of_what_the_folder_says():
    def decoding(folder, **request):
        return changed(DecodingSettings(**folder), Decoding(**request))

    assert decoding({"temperature": 0.7, "top_p": 0.9, "candidates": 3}, temperature=0) == DecodingSettings()
    found = decoding({"length": "short", "forbidden": ["x"], "tell": "decision"}, json_schema={"type": "object"})
    assert (found.length, found.forbidden, found.tell) == (None, [], "decision")
    assert found.json_schema == '{"type": "object"}' and not list(found.faults())
    assert decoding({"regex": "a"}, grammar="start: /b/").regex is None
    assert decoding({"length": "short"}, length=None).length is None
    assert decoding({"length": "short"}).length == "short"


def test_a_full_queue_says_when_to_come_again(tmp_path, free_port):
    folder = hand_made_export(tmp_path / "m", ["benign", "malignant"])
    with live_server(folder, free_port(), max_batch=1, max_queue=2, deadline=60) as server:
        with ThreadPoolExecutor(12) as pool:
            answers = list(
                pool.map(
                    lambda n: post(server, "explain", {"text": f"t{n}", "max_tokens": 60, "stream": False}), range(12)
                )
            )
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 429} and codes.count(200) >= 3
        for answer in answers:
            if answer.status_code == 429:
                assert 1 <= int(answer.headers["Retry-After"]) <= 600
                assert answer.json()["error"]["code"] == "queue_full"
        assert len(post(server, "batch", {"texts": TEXTS, "explain": False}).json()["answers"]) == 5, (
            "alone, it is let in"
        )
    assert queue_full(3, 1, 2, seconds=9999).headers == {"Retry-After": "600"}


def test_a_deadline_ends_a_text_that_writes_and_one_that_waits(tmp_path, free_port):
    folder = hand_made_export(tmp_path / "m", ["benign", "malignant"])
    with live_server(folder, free_port(), max_batch=1, deadline=0.15) as server:
        with ThreadPoolExecutor(3) as pool:
            answers = list(
                pool.map(lambda n: post(server, "explain", {"text": "t", "max_tokens": 190, "stream": False}), range(3))
            )
        assert {answer.status_code for answer in answers} == {504}
        assert "no answer within 0 s" in answers[0].json()["error"]["message"]
        assert post(server, "classify", {"text": "t"}).status_code == 200


def test_a_failed_batch_is_told_and_the_next_one_is_answered(server, monkeypatch, caplog):
    from clsgen_dist.inference.batch_decoder import BatchDecoder

    begin, fails = BatchDecoder.begin, [True]

    def failing(self, tasks):
        if fails.pop() if fails else False:
            raise RuntimeError("secret text in a message")
        return begin(self, tasks)

    monkeypatch.setattr(BatchDecoder, "begin", failing)
    answer = post(server, "classify", {"text": "one"})
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text and "RuntimeError" in answer.text
    assert post(server, "classify", {"text": "one"}).status_code == 200


def test_a_new_calibration_is_taken_up_and_another_model_is_not(tmp_path, free_port, caplog):
    folder = hand_made_export(tmp_path / "m", ["benign", "malignant"])
    with live_server(folder, free_port()) as server, caplog.at_level(logging.INFO, "clsgen_dist"):
        before = post(server, "classify", {"text": "one"}).json()
        card = ModelCard.read(folder)
        calibration = {"method": "affine", "scale": 0.01, "bias": [0.0, 0.3]}
        dataclasses.replace(card, calibration=calibration, thresholds=[0.4]).write(folder)
        time.sleep(1.1)
        after = post(server, "classify", {"text": "one"}).json()
        assert after["probabilities"] != before["probabilities"] and after["label"] == "malignant"
        assert requests.get(f"{server.url}/v1/info", timeout=9).json()["thresholds"] == {"malignant": 0.4}
        for broken, words in (
            (dataclasses.replace(card, labels=["a", "b"]), "another labels"),
            (None, "not valid JSON"),
        ):
            if broken:
                broken.write(folder)
            else:
                (folder / "clsgen.json").write_text("{")
            time.sleep(1.1)
            assert post(server, "classify", {"text": "one"}).json()["probabilities"] == after["probabilities"]
            assert words in caplog.text


def test_texts_are_in_no_log_unless_asked_for(tmp_path, free_port, caplog):
    folder = hand_made_export(tmp_path / "m", ["benign", "malignant"])
    for log_texts in (False, True):
        with live_server(folder, free_port(), log_texts=log_texts) as server, caplog.at_level(logging.DEBUG):
            post(server, "classify", {"text": "patient Miller"})
            post(server, "explain", {"text": "patient Miller", "decoding": {"regex": "(["}})
        assert ("Miller" in caplog.text) == log_texts


def test_tokens_are_asked_for_but_not_for_health_and_page(tmp_path, free_port):
    folder = hand_made_export(tmp_path / "m", ["benign", "malignant"])
    with live_server(folder, free_port(), tokens=("first", "sécond")) as server:
        for path in ("v1/info", "metrics", "v1/models"):
            assert requests.get(f"{server.url}/{path}", timeout=9).status_code == 401
        for path in ("health", "ready", "", "app.js", "openapi.json"):
            answer = requests.get(f"{server.url}/{path}", timeout=9)
            assert answer.status_code == 200 and answer.headers["X-Content-Type-Options"] == "nosniff"
        for given, status in (("first", 200), ("firs", 401), ("first2", 401), ("", 401)):
            headers = {"Authorization": f"Bearer {given}"}
            assert post(server, "classify", {"text": "one"}, headers=headers).status_code == status
        answer = post(server, "classify", {"text": "one"})
        assert answer.headers["WWW-Authenticate"] == "Bearer" and answer.json()["error"]["code"] == "invalid_token"


def test_the_same_api_in_front_of_an_engine(tmp_path, free_port):
    with serving_engine(tmp_path, ["benign", "malignant"]) as engine:
        with live_server(engine.folded, free_port(), engine=engine.url) as server:
            expected = server.predictor.predict(TEXTS[:1], max_new_tokens=12)[0]
            found = events(post(server, "explain", {"text": TEXTS[0], "max_tokens": 12}))
            names = [name for name, _ in found]
            assert names[0] == "decision" and names[-1] == "done" and names.count("text") > 1
            assert found[-1][1]["explanation"] == expected.explanation
            answers = post(server, "batch", {"texts": TEXTS, "max_tokens": 6}).json()["answers"]
            assert [answer["label"] for answer in answers] == [p.label for p in server.predictor.predict(TEXTS)]
            refused = post(server, "explain", {"text": "a", "decoding": {"tell": "decision"}})
            assert refused.status_code == 400 and "engine" in refused.text
            engine.faults[:] = [400]
            failed = post(server, "classify", {"text": "a"})
            assert failed.status_code == 503 and failed.json()["error"]["code"] == "engine_failed"
            engine.seconds_a_piece, engine.pieces = 0.1, 0
            answer = post(server, "explain", {"text": TEXTS[0], "max_tokens": 60}, stream=True)
            next(answer.iter_lines())
            answer.close()
            deadline = time.monotonic() + 5
            while server.backend.running and time.monotonic() < deadline:
                time.sleep(0.05)
            assert server.backend.running == 0 and engine.pieces < 20
        with live_server(engine.folded, free_port(), engine=engine.url, deadline=0.3) as server:
            engine.faults[:] = [2.0]
            assert post(server, "explain", {"text": TEXTS[0], "stream": False}).status_code == 504
            deadline = time.monotonic() + 1
            while server.backend.running and time.monotonic() < deadline:
                time.sleep(0.02)
            assert server.backend.running == 0, "nobody waits for an engine that hangs"
        assert threading.active_count() < 50


def test_defaults_of_the_model_hold_unless_a_request_says_otherwise(tmp_path, free_port):
    folder = hand_made_export(tmp_path / "m", ["benign", "malignant"])
    card = ModelCard.read(folder)
    decoding = dataclasses.asdict(DecodingSettings(regex="x{3}", redraws=0))
    dataclasses.replace(card, decoding=decoding).write(folder)
    with live_server(folder, free_port()) as server:
        assert post(server, "explain", {"text": "one", "stream": False}).json()["explanation"] == "xxx"
        other = {"text": "one", "stream": False, "decoding": {"regex": "y{2}"}}
        assert post(server, "explain", other).json()["explanation"] == "yy"


def test_evidence_is_looked_for_in_what_the_model_read(server):
    text = "first words " + "x y z " * 60 + "the hidden middle " + "x y z " * 60 + "last words"
    regex = "(first words, hidden middle, last words)"
    body = {"text": text, "stream": False, "max_tokens": 60, "decoding": {"regex": regex}}
    answer = post(server, "explain", body).json()
    assert answer["truncated"] and [text[start:end] for start, end in answer["evidence"]] == [
        "first words",
        "last words",
    ]
    quoted = server.predictor.predict(
        [text], max_new_tokens=60, decoding=DecodingSettings(quote_evidence=True, redraws=0)
    )
    assert "hidden" not in quoted[0].explanation
    read = server.predictor.encoder.read_spans(text)
    ids = server.predictor.encoder.prompt(text)[0].tolist()
    for start, end in read:
        piece = server.predictor.encoder.tokens_of([text[start:end]])[0]
        assert any(ids[at : at + len(piece)] == list(piece) for at in range(len(ids)))
