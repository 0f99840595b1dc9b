"""An engine's answers as predictions; the engine's part is played by plain transformers (a real one: tests/engines)."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from clsgen_dist.clients import FoldedModel
from clsgen_dist.errors import ModelError, ServerError
from clsgen_dist.hf_export.artifact import ModelCard
from clsgen_dist.hf_export.fold import fold
from clsgen_dist.inference.predict import Predictor
from tests.inference.conftest import hand_made_export


@pytest.fixture
def folders(tmp_path):
    """An export and the same folded; binary, calibrated, with a threshold."""
    folder = hand_made_export(tmp_path / "export", ["no", "yes"])
    card = ModelCard.read(folder)
    replace(card, calibration={"method": "affine", "scale": 0.5, "bias": [0.25, -0.25]}, thresholds=[0.4]).write(folder)
    return folder, fold(folder, tmp_path / "folded")


@torch.inference_mode()
def answer_of(body, folder, tokenizer):
    """What vLLM answers to the request."""
    lm = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids_1T = torch.tensor([body["prompt"]])
    log_p_V = lm(ids_1T).logits[0, -1].log_softmax(dim=0)
    [end] = body["stop_token_ids"]
    never = [[int(row)] for row, bias in body["logit_bias"].items() if bias == -100]
    tokens = lm.generate(
        ids_1T, max_new_tokens=body["max_tokens"], do_sample=False, bad_words_ids=never, eos_token_id=end
    )
    text = tokenizer.decode(tokens[0, ids_1T.shape[1] :], skip_special_tokens=True)
    top = {f"token_id:{row}": float(log_p_V[row]) for row in [int(log_p_V.argmax()), *body["logprob_token_ids"]]}
    return {"choices": [{"text": text, "logprobs": {"top_logprobs": [top, {"token_id:5": -1.0}]}}]}


def test_an_engines_answer_is_the_predictors(folders):
    export, folded = folders
    model, predictor = FoldedModel(folded), Predictor(export)
    for text in ("one", "x" * 400):
        body = json.loads(json.dumps(model.request(text, model="served", max_new_tokens=6)))
        found = model.read(answer_of(body, folded, predictor.tokenizer), text)
        [expected] = predictor.predict([text], max_new_tokens=6)
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
        assert (found.label, found.explanation, found.truncated) == (
            *(expected.label, expected.explanation, expected.truncated),
        )


def test_what_an_engine_does_not_tell_is_named(folders):
    export, folded = folders
    with pytest.raises(ModelError, match=r"head is not in its LM head.*--fold true"):
        FoldedModel(export)
    model = FoldedModel(folded)
    first = model.folded.rows[0]
    for logprobs in (None, {"top_logprobs": [{"token_id:3": -1.0}]}, {"top_logprobs": [{"a: b": -1.0}]}):
        with pytest.raises(ModelError, match=f"3 of 3 folded rows, first of token {first}"):
            model.read({"choices": [{"text": "", "logprobs": logprobs}]}, "one")
    with pytest.raises(ServerError, match="does not answer"):
        model.ask("http://127.0.0.1:9/v1/completions", "one", model="served")
    nothing = {f"token_id:{row}": float("-inf") for row in model.folded.all_rows}
    with pytest.raises(ModelError, match="expected finite numbers"):
        model.read({"choices": [{"text": "", "logprobs": {"top_logprobs": [nothing]}}]}, "one")
