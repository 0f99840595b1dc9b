"""Predictions of a hand-made export: decoding and prompt."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from clsgen_dist.errors import SettingsError
from clsgen_dist.hf_export.artifact import META_FILE, ModelCard
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.predict_file import predict_file


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1},
        {"num_beams": 4, "length_penalty": 2.0},
        {"do_sample": True, "temperature": 2.0, "top_k": 0},
        {"suppress_tokens": list(range(100)), "forced_eos_token_id": 3, "min_new_tokens": 20, "max_length": 2},
        {"penalty_alpha": 0.6, "top_k": 4, "cache_implementation": "static", "stop_strings": ["a", "e"]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_decoding_is_greedy_whatever_the_generation_config(settings, folder):
    (folder / "generation_config.json").write_text(json.dumps(settings))
    predictor = Predictor(folder)
    ids = predictor.encoder.prompt("Hello.")[0].tolist()
    prompt, end = len(ids), predictor.encoder.end_token
    while len(ids) < prompt + 12 and ids[-1] != end:
        ids.append(int(predictor.lm(torch.tensor([ids])).logits[0, -1].argmax()))
    [prediction] = predictor.predict(["Hello."], max_new_tokens=12)
    assert prediction.explanation == predictor.tokenizer.decode(ids[prompt:], skip_special_tokens=True).strip()


def test_the_saved_prompt_is_used_and_not_rendered_again(folder):
    kept = ModelCard.read(folder).prompt
    first, second = (Predictor(folder) for _ in range(2))
    assert first.encoder.prompt("x")[0].tolist() == [*kept["prefix_ids"], ord("x") - 33, *kept["suffix_ids"]]
    texts = ["x", "glioblastoma"]
    assert first.predict(texts, explain=False) == second.predict(texts, explain=False)


def test_an_export_of_format_1_is_read_with_its_original_prompt(folder):
    card = ModelCard.read(folder)
    newer = ("prompt", "label_space", "decide", "thresholds", "calibration_after", "thresholds_after", "distorted_by")
    fields = {name: value for name, value in dataclasses.asdict(card).items() if name not in newer}
    (folder / META_FILE).write_text(json.dumps({**fields, "threshold": 0.4, "format_version": 1}))
    predictor = Predictor(folder)
    assert predictor.card.prompt is None
    assert predictor.encoder.rendered.suffix_ids == card.prompt["suffix_ids"]
    assert len(predictor.encoder.tokens_of(["glioblastoma"])[0]) == len("glioblastoma"), "as its training split it"
    ModelCard.read(folder).write(folder)  # as calibration does
    again = ModelCard.read(folder)
    assert (again.prompt, again.thresholds, again.label_space, again.decide) == (None, [0.4], "single", "before")


@pytest.mark.parametrize(
    ("new_tokens", "expected"), [(0, "expected 1 or more"), (-3, "expected 1 or more"), (200, "lower it to")]
)
def test_max_new_tokens_must_fit_after_the_longest_prompt(new_tokens, expected, folder):
    predictor = Predictor(folder)
    with pytest.raises(SettingsError, match=expected):
        predictor.predict(["x" * 60, "x"], max_new_tokens=new_tokens)
    room = 256 - len(predictor.encoder.prompt("x" * 60)[0])
    assert len(predictor.predict(["x" * 60, "x"], max_new_tokens=room)) == 2
    with pytest.raises(SettingsError, match=f"context of 256; lower it to {room}"):
        predictor.predict(["x" * 60, "x"], max_new_tokens=room + 1)


def test_rows_whose_explanation_has_ended_leave_the_batch(folder):
    """The same texts as each row alone, with fewer and fewer rows a step."""
    predictor = Predictor(folder)
    texts = [f"{'x' * (n % 5)} note {n}" for n in range(12)]
    # A model with random weights rarely ends: let a token that it does write end it.
    tokens = [predictor.encoder.tokens_of([p.explanation])[0] for p in predictor.predict(texts)]
    end = max({t for row in tokens for t in row}, key=lambda t: len({row.index(t) for row in tokens if t in row}))
    predictor.encoder.end_token = end
    predictor.lm.generation_config.eos_token_id = predictor.lm.generation_config.pad_token_id = end
    alone = [predictor.predict([text])[0].explanation for text in texts]
    rows = []
    predictor.lm.register_forward_pre_hook(
        lambda lm, args, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    assert [p.explanation for p in predictor.predict(texts, batch_size=12)] == alone
    assert rows == sorted(rows, reverse=True) and rows[0] == 12 and rows[-1] < 6


def test_a_killed_predict_goes_on_and_writes_each_row_once(folder, tmp_path, monkeypatch):
    rows, compute, done = tmp_path / "rows.jsonl", Predictor.compute, []
    rows.write_text("".join(json.dumps({"id": n, "text": "x" * (n % 9) or None}) + "\n" for n in range(40)))
    predict_file(folder, str(rows), tmp_path / "whole.jsonl", batch_size=4)

    def killed(*args, **options):
        done.append(1)
        if len(done) == 4:
            raise KeyboardInterrupt
        return compute(*args, **options)

    monkeypatch.setattr(Predictor, "compute", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_file(folder, str(rows), tmp_path / "killed.jsonl", batch_size=4)
    assert not (tmp_path / "killed.jsonl").exists()
    written = predict_file(folder, str(rows), tmp_path / "killed.jsonl", batch_size=4)
    assert (written.rows, written.bad, len(done)) == (40, 5, 4 + 6), "35 texts in 9 batches, 3 before the kill"
    assert (tmp_path / "killed.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    assert not list(tmp_path.glob("*.parts"))
