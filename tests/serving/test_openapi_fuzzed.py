"""The OpenAPI page holds what the server does: schemathesis makes requests from it, fitting and unfitting ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.inference.conftest import hand_made_export
from tests.serving.live_server import live_server

HOOKS = Path(__file__).with_name("openapi_hooks.py")
OUT_OF_PLACE = ("positive_data_acceptance", "allow_header_conformance", "unsupported_method")
"""No schema says which model there is, or that a regular expression is one; the page at / answers other methods."""


@pytest.fixture(scope="module")
def server(tmp_path_factory, free_port):
    folder = hand_made_export(tmp_path_factory.mktemp("fuzzed") / "m", ["benign", "malignant"])
    with live_server(folder, free_port(), tokens=("key",), max_batch=8, max_body=4_000_000) as running:
        yield running


@pytest.mark.long
def test_no_request_of_schemathesis_meets_a_fault_or_an_answer_that_is_not_documented(server, tmp_path):
    command = [Path(sys.executable).with_name("schemathesis"), "run", f"{server.url}/openapi.json"]
    command += [
        "-H",
        "Authorization: Bearer key",
        "--phases",
        "coverage,fuzzing",
        "--max-examples",
        "100",
        "--seed",
        "1",
    ]
    command += ["--exclude-checks", ",".join(OUT_OF_PLACE)]
    command += ["--no-color", "--warnings", "off"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "Tested: 11" in done.stdout
    assert server.backend.is_alive and server.backend.running == 0


def test_every_route_says_what_it_may_answer(server):
    schema = requests.get(f"{server.url}/openapi.json", timeout=9).json()
    routes = {path: set(next(iter(way.values()))["responses"]) for path, way in schema["paths"].items()}
    answering = {"200", "400", "401", "408", "413", "421", "422", "429", "503", "504"}
    for path in ("classify", "explain", "batch"):
        assert routes[f"/v1/{path}"] == answering
    for path in ("chat/completions", "decisions"):
        assert routes[f"/v1/{path}"] == answering | {"404"}
    assert routes["/ready"] == {"200", "421", "503"} and routes["/v1/info"] == {"200", "401", "421"}
    for way in schema["paths"].values():
        for status, answer in next(iter(way.values()))["responses"].items():
            [content] = (
                answer["content"].values() if len(answer["content"]) == 1 else [answer["content"]["application/json"]]
            )
            assert status == "200" or content["schema"], "a schema for each error"


TEXT = st.text(max_size=20) | st.sampled_from(["", " ", "\x00", "\u202e", "a" * 3000, "<|im_end|>"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
DECODING = st.fixed_dictionaries({}, optional={
    "length": st.sampled_from(["short", "detailed"]), "max_words": st.integers(1, 9),
    "tell": st.sampled_from(["nothing", "decision", "probability"]), "state_decision": st.booleans(),
    "quote_evidence": st.booleans(), "forbidden": st.lists(TEXT, max_size=3), "regex": st.sampled_from(["a*", "(["]),
    "temperature": st.floats(0, 2), "top_p": st.floats(0, 1), "min_p": st.floats(0, 1), "seed": st.integers(0),
    "candidates": st.integers(1, 8), "redraws": st.integers(0, 5),
})  # fmt: skip
QUESTION = st.fixed_dictionaries({"type": st.sampled_from(["predicate", "choice", "score"])}, optional={
    "name": TEXT, "instructions": st.sampled_from(["", "Why?", "Why not?"]),
    "choices": st.permutations([{"value": "benign"}, {"value": "malignant"}]) | st.just([{"value": True}]),
})  # fmt: skip
BODIES = {
    "classify": st.fixed_dictionaries({"text": TEXT}),
    "explain": st.fixed_dictionaries(
        {"text": TEXT, "max_tokens": st.integers(1, 6), "decoding": DECODING}, optional={"stream": st.booleans()}
    ),
    "batch": st.fixed_dictionaries({"texts": st.lists(TEXT, max_size=3)}, optional={"explain": st.booleans()}),
    "chat/completions": st.fixed_dictionaries(
        {"model": st.just("served"), "messages": st.just([{"role": "user", "content": "a"}]), "max_tokens": st.just(3)},
        optional={"response_format": JSON, "stream_options": JSON, "n": JSON, "stop": JSON, "stream": st.booleans()},
    ),
    "decisions": st.fixed_dictionaries(
        {"model": st.just("served"), "input": TEXT, "questions": st.lists(QUESTION, min_size=1, max_size=2)},
        optional={"explain": st.booleans()},
    ),
}
"""What fits the schema, if not the model."""


@st.composite
def damaged(draw, bodies):
    """A body, one of whose fields is something else, or one of the fields in one of its fields."""
    body = draw(bodies)
    inside = body[key] if isinstance(body[key := draw(st.sampled_from(sorted(body)))], dict) and body[key] else body
    inside[draw(st.sampled_from(sorted(inside)))] = draw(JSON)
    return body


@pytest.mark.parametrize("path", BODIES)
def test_no_body_meets_a_fault_of_the_server(server, path):
    headers = {"Authorization": "Bearer key"}

    @settings(max_examples=80, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(body=BODIES[path] | damaged(BODIES[path]) | JSON)
    def ask(body):
        answer = requests.post(f"{server.url}/v1/{path}", json=body, headers=headers, timeout=60)
        assert answer.status_code in (200, 400, 404, 413, 422), (body, answer.text)
        if answer.status_code != 200:
            assert set(answer.json()["error"]) == {"message", "type", "code", "param"}

    ask()
    assert server.backend.is_alive
