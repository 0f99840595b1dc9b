"""Backbones whose logits are scaled, capped or biased: trained on two ranks under ZeRO-3, exported, opened, folded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from clsgen_dist.hf_export.artifact import ModelCard, read_head
from clsgen_dist.hf_export.export import export
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.model.lm_head import LMHead
from tests.model.changed_logits import CHANGED, changed_lm

pytestmark = pytest.mark.dist


@pytest.mark.long
@pytest.mark.parametrize("family", CHANGED)
def test_a_sharded_head_trains_as_a_gathered_one(family, train, smollm2, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    changed_lm(family, len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    curves = []
    for lm_head in ("gathered", "sharded"):
        output = tmp_path / lm_head
        train(output, model__backbone=tmp_path / "base", train__max_steps=4, objectives__lm_head=lm_head, optim__eps=1e-3)
        log = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0})
        log.Reload()
        curves.append([event.value for tag in ("loss/generation", "optim/grad_norm") for event in log.Scalars(tag)])
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


@pytest.mark.parametrize("family", [pytest.param(f, marks=[] if f == "Gemma2" else pytest.mark.long) for f in CHANGED])
def test_it_trains_and_both_answers_come_from_the_folded_export(family, train, smollm2, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    base = tmp_path / "base"
    lm = changed_lm(family, len(tokenizer))
    lm.save_pretrained(base)
    tokenizer.save_pretrained(base)
    train(tmp_path / "run", model__backbone=base, train__epochs=0.3, optim__lr=5e-3, data__dev="few")
    log = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"scalars": 0})
    log.Reload()
    losses = [event.value for event in log.Scalars("loss/generation")]
    assert losses[-1] < losses[0] - 0.3, losses
    folded = export(tmp_path / "run", tmp_path / "folded", fold=True)
    predictor, card = Predictor(folded), ModelCard.read(folded)
    plain = AutoModelForCausalLM.from_pretrained(folded).eval()
    if (bias := LMHead.of(lm).bias_V) is not None:
        trained = LMHead.of(plain).bias_V
        assert (trained[: len(bias)] - bias).abs().max() > 1e-3 and (trained[card.folded.all_rows] == 0).all()
    text = "Size high, texture low."
    (answer,) = predictor.predict([text], max_new_tokens=4)
    with torch.no_grad():
        log_p_V = plain(torch.tensor([predictor.encoder.prompt(text)[0].tolist()])).logits[0, -1].log_softmax(dim=0)
    _, bias_K = read_head(folded, card)
    found = card.folded.logits({row: float(log_p_V[row]) for row in card.folded.all_rows}, bias_K)
    np.testing.assert_allclose(found, answer.logits, atol=1e-3)
