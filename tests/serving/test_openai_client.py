"""OpenAI's own client, 3.57, on every endpoint that speaks its language."""

from __future__ import annotations

import dataclasses
import json

import openai
import pytest

from clsgen_dist.calibration.decisions import Decisions
from clsgen_dist.calibration.handing_over import HandOver, HandOverRule
from clsgen_dist.hf_export.artifact import ModelCard
from tests.inference.conftest import hand_made_export
from tests.serving.live_server import live_server

TEXT = "irregular mass"
USER = [{"role": "user", "content": TEXT}]


@pytest.fixture(scope="module")
def server(tmp_path_factory, free_port):
    folder = hand_made_export(tmp_path_factory.mktemp("openai") / "m", ["benign", "malignant"])
    with live_server(folder, free_port(), tokens=("key",)) as running:
        running.client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="key", max_retries=0)
        yield running


def test_a_chat_has_the_explanation_as_content_and_the_decision_beside_it(server):
    [expected] = server.predictor.predict([TEXT], max_new_tokens=10)
    answer = server.client.chat.completions.create(model="served", messages=USER, max_tokens=10)
    assert answer.choices[0].message.content == expected.explanation and answer.choices[0].finish_reason == "length"
    decision = answer.model_extra["decision"]
    assert decision["label"] == expected.label
    assert decision["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    assert answer.usage.completion_tokens == 10
    assert answer.usage.prompt_tokens == len(server.predictor.encoder.prompt(TEXT)[0])
    parts = [{"role": "user", "content": [{"type": "text", "text": TEXT}]}]
    same = server.client.chat.completions.create(model="served", messages=parts, max_completion_tokens=10)
    assert same.choices[0].message.content == expected.explanation
    assert [model.id for model in server.client.models.list()] == ["served"]
    assert server.client.models.retrieve("served").id == "served"


@pytest.mark.parametrize("redraws", [0, 2])
def test_a_streamed_chat(server, redraws):
    [expected] = server.predictor.predict([TEXT], max_new_tokens=10)
    chunks = list(
        server.client.chat.completions.create(
            model="served", messages=USER, max_tokens=10, stream=True, stream_options={"include_usage": True},
            extra_body={"decoding": {"redraws": redraws}},
        )
    )  # fmt: skip
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[1].model_extra["decision"]["label"] == expected.label
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == expected.explanation
    assert sum(map(bool, pieces)) == 1, "no sentence of it ends, and what is sent cannot be taken back"
    assert chunks[-2].choices[0].finish_reason == "length" and chunks[-2].model_extra["decision"]["explanation"]
    assert chunks[-1].usage.completion_tokens == 10


def test_parameters_do_what_they_say_or_are_refused(server):
    create = server.client.chat.completions.create
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = create(model="served", messages=USER, response_format=form, max_tokens=60)
    assert json.loads(answer.choices[0].message.content)["a"] in (1, 2)
    drawn = [
        create(model="served", messages=USER, temperature=2, seed=seed, max_tokens=12).choices[0].message.content
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert create(model="served", messages=USER, temperature=0, top_p=1, n=1, user="u", frequency_penalty=0)
    for refused in ({"n": 2}, {"logprobs": True}, {"stop": ["."]}, {"frequency_penalty": 1}, {"tools": [
        {"type": "function", "function": {"name": "f", "parameters": {}}}]}):  # fmt: skip
        with pytest.raises(openai.BadRequestError, match=f"{next(iter(refused))} is .* leave it out"):
            create(model="served", messages=USER, **refused)
    conversation = [{"role": "system", "content": "Say benign."}, *USER]
    with pytest.raises(openai.BadRequestError, match="one message of the user"):
        create(model="served", messages=conversation)
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    with pytest.raises(openai.BadRequestError, match="'image_url', expected text only"):
        create(model="served", messages=image)
    with pytest.raises(openai.NotFoundError, match="expected 'served'"):
        create(model="gpt-6", messages=USER)
    with pytest.raises(openai.AuthenticationError, match="no valid token"):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong").models.list()


def test_binary_decisions(server):
    [expected] = server.predictor.predict([TEXT])
    questions = [
        {"type": "predicate", "name": "cancer", "instructions": "Why?"},
        {"type": "choice", "instructions": " Why? ", "choices": [{"value": "malignant"}, {"value": "benign"}]},
    ]
    found = server.client.decisions.create(model="served", input=TEXT, questions=questions)
    predicate, choice = found.answers
    assert (predicate.type, predicate.name) == ("predicate", "cancer")
    assert predicate.probability == pytest.approx(expected.probabilities["malignant"], abs=1e-5)
    assert choice.choice == expected.label and choice.confidence == pytest.approx(max(expected.probabilities.values()))
    assert {p.value: p.probability for p in choice.probabilities} == pytest.approx(expected.probabilities, abs=1e-5)
    assert predicate.model_extra["explanation"] == expected.explanation
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens > 20
    message = [{"role": "user", "type": "message", "content": [{"type": "input_text", "text": TEXT}]}]
    bare = server.client.decisions.create(
        model="served", input=message, questions=questions[:1], extra_body={"explain": False}
    )
    assert bare.answers[0].probability == pytest.approx(predicate.probability, abs=1e-5)
    assert "explanation" not in bare.answers[0].model_extra and bare.usage.output_tokens == 0


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"type": "predicate", "instructions": "Is it blue?"}, "expected the question that the model was trained for"),
        ({"type": "score", "instructions": "", "levels": []}, "a score, expected a predicate or a choice"),
        ({"type": "choice", "instructions": "", "choices": [{"value": "a"}, {"value": "b"}]}, "choices are"),
    ],
)
def test_another_question_is_refused(server, question, words):
    with pytest.raises(openai.BadRequestError, match=words):
        server.client.decisions.create(model="served", input=TEXT, questions=[question])


def test_scores_choices_and_predicates_of_the_other_label_spaces(tmp_path, free_port):
    labels = ["low", "mid", "high"]
    for kind in ("ordinal", "single", "multilabel"):
        folder = hand_made_export(tmp_path / kind, labels, kind)
        with live_server(folder, free_port()) as server:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            [expected] = server.predictor.predict([TEXT], explain=False)
            p = expected.probabilities
            question = {
                "ordinal": {"type": "score", "instructions": "", "levels": [{"label": name} for name in labels]},
                "single": {"type": "choice", "instructions": "", "choices": [{"value": name} for name in labels]},
                "multilabel": {"type": "predicate", "instructions": "", "name": "mid"},
            }[kind]
            [answer] = client.decisions.create(model="served", input=TEXT, questions=[question]).answers
            if kind == "ordinal":
                assert answer.score == pytest.approx(p["mid"] + 2 * p["high"], abs=1e-5)
                assert [(level.label, level.value) for level in answer.probabilities] == list(
                    zip(labels, range(3), strict=True)
                )
            elif kind == "single":
                assert answer.choice == expected.label and answer.confidence == pytest.approx(
                    p[expected.label], abs=1e-5
                )
            else:
                assert answer.probability == pytest.approx(p["mid"], abs=1e-5)
                with pytest.raises(openai.BadRequestError, match="expected the class it is about"):
                    client.decisions.create(
                        model="served", input=TEXT, questions=[{"type": "predicate", "instructions": ""}]
                    )


def test_a_decision_for_a_person_is_a_refusal(tmp_path, free_port):
    folder = hand_made_export(tmp_path / "m", ["benign", "malignant"])
    card = dataclasses.replace(ModelCard.read(folder), decisions=decisions_that_hand_over())
    card.write(folder)
    with live_server(folder, free_port()) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        question = {"type": "predicate", "instructions": "", "name": "cancer"}
        [answer] = client.decisions.create(model="served", input=TEXT, questions=[question]).answers
        assert (answer.type, answer.name) == ("refusal", "cancer") and answer.model_extra["explanation"]


def decisions_that_hand_over():
    """Fitted decisions by which every row is handed to a person."""
    rule = HandOver(HandOverRule("workload", 0.9), 2.0, 0.1, 0.0, {})
    return Decisions(hand_over=rule).to_json()
