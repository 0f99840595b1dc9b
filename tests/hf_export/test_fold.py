"""The head folded into the LM head: plain transformers gives the class logits and the same explanation."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from clsgen_dist.errors import ModelError
from clsgen_dist.hf_export.artifact import HEAD_FILE, ModelCard, head_fingerprint, read_head
from clsgen_dist.hf_export.fold import fold
from clsgen_dist.inference.predict import Predictor
from tests.inference.conftest import hand_made_export, write_head
from tests.model.changed_logits import CHANGED, changed_lm

TEXTS = ["one", "two words", "three more words"]
LABELS = {"single": ["no", "yes"], "multilabel": ["x", "y", "z"], "ordinal": ["low", "mid", "high"]}


def tie(folder):
    """The model with its LM head tied to its embeddings."""
    lm = LlamaForCausalLM.from_pretrained(folder)
    lm.config.tie_word_embeddings = True
    lm.tie_weights()
    for file in folder.glob("*.safetensors"):
        file.unlink()
    lm.save_pretrained(folder)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", LABELS)
def test_a_stock_model_gives_both_answers_from_one_call(kind, tied, tmp_path):
    folder = hand_made_export(tmp_path / "export", LABELS[kind], kind)
    if tied:
        tie(folder)
    _gives_both_answers(folder, tmp_path)


@pytest.mark.parametrize("family", CHANGED)
def test_a_stock_model_whose_logits_are_scaled_capped_or_biased_does_so_too(family, tmp_path):
    """A class logit beyond the cap, a scale that is no power of two, a bias of every other row."""
    folder = hand_made_export(tmp_path / "export", LABELS["single"], make_lm=lambda size: changed_lm(family, size))
    largest = max(abs(logit) for p in Predictor(folder).predict(TEXTS, explain=False) for logit in p.logits)
    assert largest > (CHANGED[family].get("final_logit_softcapping") or 3)
    card = _gives_both_answers(folder, tmp_path)
    assert card.folded.softcap == CHANGED[family].get("final_logit_softcapping")
    bias = AutoModelForCausalLM.from_pretrained(tmp_path / "folded").get_output_embeddings().bias
    assert bias is None or ((bias[card.folded.all_rows] == 0).all() and bias.abs().max() > 1)


def _gives_both_answers(folder, tmp_path):
    """Fold the export, and compare a plain model with the predictor; the card of the folded model."""
    output = fold(folder, tmp_path / "folded")
    predictor, card = Predictor(folder), ModelCard.read(output)
    assert card.folded is not None and card.folded.largest_difference < 1e-4
    assert ModelCard.read(folder).folded is None
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(output).eval(), AutoTokenizer.from_pretrained(output)
    assert lm.config.vocab_size == len(tokenizer) == len(predictor.tokenizer) + len(card.folded.all_rows)
    assert not lm.config.tie_word_embeddings
    assert tokenizer.convert_ids_to_tokens(card.folded.all_rows)[-1] == "<|decision_none|>"
    _, bias_K = read_head(output, card)
    suppressed = [[row] for row in card.folded.all_rows]
    for text, expected in zip(TEXTS, predictor.predict(TEXTS, max_new_tokens=8), strict=True):
        ids_1T = torch.from_numpy(predictor.encoder.prompt(text)[0]).long()[None]
        log_p_V = lm(ids_1T).logits[0, -1].log_softmax(dim=0)
        logits_K = card.folded.logits({row: float(log_p_V[row]) for row in card.folded.all_rows}, bias_K)
        np.testing.assert_allclose(logits_K.numpy(), expected.logits, atol=1e-4)
        written = lm.generate(
            ids_1T,
            max_new_tokens=8,
            do_sample=False,
            bad_words_ids=suppressed,
            eos_token_id=predictor.encoder.end_token,
        )
        assert tokenizer.decode(written[0, ids_1T.shape[1] :], skip_special_tokens=True).strip() == expected.explanation
    typed = tokenizer.decode(card.folded.all_rows, skip_special_tokens=False)
    assert "<|decision_none|>" in typed, "the names of the rows, which a text may hold"
    assert not set(card.folded.all_rows) & set(Predictor(output).encoder.prompt(typed)[0].tolist())
    # It is an export like any other.
    again = Predictor(output).predict(TEXTS, max_new_tokens=8)
    for a, b in zip(again, predictor.predict(TEXTS, max_new_tokens=8), strict=True):
        np.testing.assert_allclose(a.logits, b.logits, atol=1e-5)
    return card


def test_rows_that_the_vocabulary_has_beyond_the_tokenizer_are_used(tmp_path):
    folder = hand_made_export(tmp_path / "export", ["no", "yes"])
    lm = LlamaForCausalLM.from_pretrained(folder)
    size = lm.config.vocab_size + 7
    lm.resize_token_embeddings(size, mean_resizing=False)
    lm.save_pretrained(folder)
    output = fold(folder, tmp_path / "folded")
    assert json.loads((output / "config.json").read_text())["vocab_size"] == size
    card = ModelCard.read(output)
    assert card.folded is not None and card.folded.all_rows == [size - 7, size - 6, size - 5]


def test_shards_stay_and_other_tensors_are_the_same(tmp_path):
    folder = hand_made_export(tmp_path / "export", ["no", "yes"])
    lm = LlamaForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    lm.save_pretrained(folder, max_shard_size="20KB")
    output = fold(folder, tmp_path / "folded")
    names = json.loads((output / "model.safetensors.index.json").read_text())["weight_map"]
    assert names == json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for name, file in names.items():
        with safe_open(folder / file, "pt") as old, safe_open(output / file, "pt") as new:
            before, after = old.get_tensor(name), new.get_tensor(name)
        assert torch.equal(after[: len(before)], before), name
        assert len(after) - len(before) == (3 if name in ("model.embed_tokens.weight", "lm_head.weight") else 0)


def test_sixteen_bits_round_and_say_how_much(tmp_path):
    folder = hand_made_export(tmp_path / "export", ["no", "yes"])
    LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    head = {"weight": torch.randn(2, 32) / 6, "bias": torch.zeros(2)}
    write_head(folder, head)
    replace(ModelCard.read(folder), head_sha256=head_fingerprint(head["weight"], head["bias"])).write(folder)
    card = ModelCard.read(fold(folder, tmp_path / "folded"))
    assert card.folded is not None and 1e-5 < card.folded.largest_difference < 0.1


def test_an_export_with_its_head_in_the_older_place_is_folded_and_an_earlier_one_replaced(tmp_path):
    folder = hand_made_export(tmp_path / "export", ["no", "yes"])
    (folder / HEAD_FILE).rename(folder / "classification_head.safetensors")
    for _ in range(2):
        output = fold(folder, tmp_path / "folded")
        assert torch.equal(read_head(output, ModelCard.read(output))[0], read_head(folder, ModelCard.read(folder))[0])
    assert not (output / "classification_head.safetensors").exists()


def test_what_cannot_be_folded_is_refused(tmp_path):
    folder = hand_made_export(tmp_path / "export", ["no", "yes"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for output in (tmp_path / "full", tmp_path / "full/file"):
        with pytest.raises(ModelError, match="exists and is not an exported model"):
            fold(folder, output)
    card = ModelCard.read(folder)
    replace(card, decide="after").write(folder)
    with pytest.raises(ModelError, match="decides after its explanation"):
        fold(folder, tmp_path / "folded")
    with pytest.raises(ModelError, match="not an exported dual-head model"):
        fold(tmp_path / "full", tmp_path / "folded")
    assert not (tmp_path / "folded").exists() and not list(tmp_path.glob(".*.partial"))
