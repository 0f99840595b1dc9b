"""Drafts that join and leave a decode loop write what they write alone."""

from __future__ import annotations

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM

from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.inference.predict import Predictor
from tests.inference.conftest import hand_made_export

TEXTS = ["one", "two words", "three more words and still more of them", "4", "five is the last"]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor(hand_made_export(tmp_path_factory.mktemp("loop") / "m", ["benign", "malignant"]))


def task(predictor, text, tokens=20, explain=True, **settings):
    decoding = DecodingSettings(**{"redraws": 0, **settings})
    prompt = predictor.encoder.prompt(text)
    return predictor.task(text, prompt, decoding=decoding, explain=explain, max_new_tokens=tokens)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 7}], ids=["greedy", "drawn"])
def test_rows_that_join_later_write_what_they_write_alone(predictor, settings):
    alone = [
        predictor.predict([text], max_new_tokens=20, decoding=DecodingSettings(redraws=0, **settings))[0]
        for text in TEXTS
    ]
    decoder = predictor.decoder(ended_share=0)
    tasks = [task(predictor, text, **settings) for text in TEXTS]
    left, steps, found = list(tasks), 0, []

    def interrupted():
        nonlocal steps
        steps += 1
        return bool(left) and steps % 3 == 0

    while left or decoder.tasks:
        if left:
            assert decoder.is_open
            found += decoder.begin([left.pop(0)])
        found += decoder.run(interrupted)
    assert sorted(map(id, found)) == sorted(map(id, tasks)), "each is answered once"
    assert [t.raw.explanation for t in tasks] == [p.explanation for p in alone]
    for one, prediction in zip(tasks, alone, strict=True):
        assert one.raw.first == pytest.approx(prediction.logits, rel=1e-4, abs=1e-4)
    assert steps > 20, "they overlapped"


def test_those_who_leave_stop_and_disturb_nobody(predictor):
    decoder, tasks = predictor.decoder(ended_share=0), [task(predictor, text) for text in TEXTS[:3]]
    pieces = []
    tasks[1].on_text = pieces.append
    decoder.begin(tasks)
    steps = 0

    def interrupted():
        nonlocal steps
        steps += 1
        if steps == 4:
            tasks[1].cancel()
        return False

    done = []
    while decoder.tasks:
        done += decoder.run(interrupted)
    assert len(done) == 3 and len("".join(pieces)) < len(tasks[0].raw.explanation)
    expected = predictor.predict(TEXTS[:3], max_new_tokens=20, decoding=DecodingSettings(redraws=0))
    assert [tasks[n].raw.explanation for n in (0, 2)] == [expected[n].explanation for n in (0, 2)]


def test_pieces_make_up_the_explanation_and_a_decision_comes_first(predictor):
    events, one = [], task(predictor, TEXTS[2])
    one.on_reading, one.on_text = lambda reading: events.append(reading.label), events.append
    [raw] = predictor.decoder().answer([one])
    assert events[0] in ("benign", "malignant")
    # Bytes that make no character wait for those that do.
    assert raw.explanation.startswith("".join(events[1:])) and len(events) > 5


def test_texts_with_and_without_explanation_share_a_decoder(predictor):
    tasks = [task(predictor, text, explain=number % 2 == 0) for number, text in enumerate(TEXTS)]
    raws = predictor.decoder().answer(tasks)
    assert [raw.explanation is None for raw in raws] == [False, True, False, True, False]
    expected = predictor.predict(TEXTS, explain=False)
    for raw, prediction in zip(raws, expected, strict=True):
        assert raw.first == pytest.approx(prediction.logits, rel=1e-4, abs=1e-4)


def test_a_constraint_that_cannot_be_read_fails_its_own_text_alone(predictor):
    good, bad = task(predictor, TEXTS[0]), task(predictor, TEXTS[1], regex="([")
    decoder = predictor.decoder()
    done = decoder.begin([good, bad])
    while decoder.tasks:
        done += decoder.run()
    assert bad.error is not None and "decoding.regex" in str(bad.error)
    assert good.error is None and good.raw.explanation and len(done) == 2


@pytest.mark.parametrize(
    "family",
    [
        lambda size: MambaForCausalLM(MambaConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2, state_size=4)),
        lambda size: MistralForCausalLM(
            MistralConfig(vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                          num_attention_heads=2, num_key_value_heads=1, sliding_window=16)
        ),
    ],
    ids=["mamba", "sliding window"],
)  # fmt: skip
def test_families_with_another_cache_keep_their_batch(tmp_path, family):
    folder = hand_made_export(tmp_path / "m", ["benign", "malignant"])
    size = len(Predictor(folder).tokenizer)
    torch.manual_seed(1)
    for file in folder.glob("model*.safetensors"):
        file.unlink()
    family(size).save_pretrained(folder)
    predictor = Predictor(folder)
    settings = {"temperature": 1.0, "candidates": 3, "seed": 3, "redraws": 0}
    together = predictor.predict(TEXTS, max_new_tokens=8, decoding=DecodingSettings(**settings))
    alone = [predictor.predict([t], max_new_tokens=8, decoding=DecodingSettings(**settings))[0] for t in TEXTS]
    assert [p.explanation for p in together] == [p.explanation for p in alone]
    assert [p.others for p in together] == [p.others for p in alone] and any(p.others for p in alone)
    decoder = predictor.decoder(ended_share=0)
    first, second = task(predictor, TEXTS[0]), task(predictor, TEXTS[1])
    decoder.begin([first])
    assert not decoder.is_open
    while decoder.tasks:
        decoder.run(lambda: True)
    assert decoder.is_open and first.raw.cut
    decoder.begin([second])
    while decoder.tasks:
        decoder.run()
    [expected] = predictor.predict(TEXTS[1:2], max_new_tokens=20, decoding=DecodingSettings(redraws=0))
    assert second.raw.explanation == expected.explanation
