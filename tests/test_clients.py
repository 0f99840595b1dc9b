"""An engine in the predictor's place, played by a server of plain transformers (a real one: tests/engines)."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from clsgen_dist import clients
from clsgen_dist.clients import EnginePredictor
from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.errors import ModelError, ServerError, SettingsError
from clsgen_dist.hf_export.artifact import ModelCard
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.predict_file import predict_file
from tests.engine_server import serving_engine

TEXTS = ["one", "two words", "x" * 400, "three more words"]


@pytest.fixture
def engine(tmp_path):
    with serving_engine(tmp_path, ["no", "yes"]) as server:
        yield server


def test_an_engines_answers_are_the_predictors(engine):
    expected = Predictor(engine.export).predict(TEXTS, max_new_tokens=6)
    for url in ("", "/", "/v1", "/v1/completions"):
        found = EnginePredictor(engine.folded, engine.url + url).predict(TEXTS, max_new_tokens=6, batch_size=3)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a.logits, b.logits, atol=1e-4)
            assert a.probabilities == pytest.approx(b.probabilities, abs=1e-5)
            assert (a.label, a.explanation, a.truncated) == (b.label, b.explanation, b.truncated)
            assert a.explanation_cut == b.explanation_cut
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
    with pytest.raises(SettingsError, match=r"text 0: .* answered 400: .*busy"):
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


def test_an_engine_that_hangs_is_waited_for_once_and_no_longer_than_asked(engine, monkeypatch):
    predictor = EnginePredictor(engine.folded, engine.url)
    engine.asked.clear()
    for explain in (False, True):
        engine.faults[:] = [1.5]
        task = predictor.task("one", predictor.encoder.prompt("one"), decoding=DecodingSettings(), explain=explain)
        start = time.monotonic()
        assert predictor.answer(task, until=start + 0.3) is None
        assert time.monotonic() - start < 1.2
    assert len(engine.asked) == 2
    monkeypatch.setattr(clients, "_SECONDS", 0.3)
    engine.faults[:] = [1.5]
    with pytest.raises(ServerError, match="does not answer"):
        predictor.predict(["one"])
    assert len(engine.asked) == 3


def test_an_engines_key_is_sent_and_not_shown(engine, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " key-1 ")
    predictor = EnginePredictor(engine.folded, engine.url)
    predictor.predict(["one"], explain=False)
    assert engine.keys[-1] == "Bearer key-1"
    engine.faults[:] = [401]
    with pytest.raises(ServerError, match="answered 401") as caught:
        predictor.predict(["one"])
    assert "key-1" not in str(caught.value)


def test_an_engine_streams_draws_anew_and_keeps_to_budgets(tmp_path):
    with serving_engine(tmp_path, ["benign", "malignant"]) as engine:
        predictor = EnginePredictor(engine.folded, engine.url)
        ours = Predictor(engine.export)
        prompt = predictor.encoder.prompt("one")

        def task(tokens=12, **settings):
            decoding = predictor.decoding(DecodingSettings(**settings))
            return predictor.task("one", prompt, decoding=decoding, max_new_tokens=tokens)

        events, one = [], task()
        one.on_reading, one.on_text = lambda reading: events.append(reading.label), events.append
        raw = predictor.answer(one)
        [expected] = ours.predict(["one"], max_new_tokens=12)
        assert events[0] == expected.label and "".join(events[1:]) == expected.explanation == raw.explanation
        assert one.tokens_written == 12 and len(events) > 2

        engine.asked.clear()
        engine.faults[:] = [answer_of(engine, expected.label, other) for other in (True, True, False)]
        one = task(redraws=2)
        raw = predictor.answer(one)
        assert raw.redraws == 2 and raw.explanation.startswith("It is " + expected.label)
        assert [body["temperature"] for body in engine.asked] == [0, 0.7, 0.7]
        assert len({body["seed"] for body in engine.asked}) == 3

        engine.faults[:] = [answer_of(engine, expected.label, other=False)]
        assert predictor.answer(task(max_sentences=1)).explanation == f"It is {expected.label}."
        one, seen = task(), []
        one.on_text = seen.append
        engine.seconds_a_piece, engine.pieces = 0.05, 0
        assert predictor.answer(one, is_void=lambda: len(seen) > 0) is None
        assert engine.pieces <= 3, "the engine goes on while nobody reads"


def answer_of(engine, label, other):
    """An answer that states the label, or the other one."""
    names = {"benign": "malignant", "malignant": "benign"}
    [first] = Predictor(engine.export).predict(["one"], explain=False)
    rows = ModelCard.read(engine.folded).folded.all_rows
    top = dict.fromkeys((f"token_id:{row}" for row in rows), -3.0)
    top[f"token_id:{rows[['benign', 'malignant'].index(first.label)]}"] = 40.0
    text = f" It is {names[label] if other else label}. And more."
    return {"choices": [{"text": text, "logprobs": {"top_logprobs": [top]}, "finish_reason": "stop"}]}


@pytest.mark.parametrize("settings", [{"tell": "decision"}, {"forbidden": ["x"]}, {"length": "detailed"}], ids=str)
def test_what_an_engine_cannot_do_is_refused(engine, settings):
    predictor = EnginePredictor(engine.folded, engine.url)
    with pytest.raises(SettingsError, match="is not possible with an engine"):
        predictor.predict(["one"], decoding=DecodingSettings(**settings))
