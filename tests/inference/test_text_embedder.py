"""Embeddings of texts: against hidden states of each text alone, and what a real model makes of reasons."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, T5Config, T5EncoderModel, T5Model

from clsgen_dist.errors import ModelError, SettingsError
from clsgen_dist.explanations.reference_similarity import reference_similarity
from clsgen_dist.inference.evaluate import evaluate
from clsgen_dist.inference.text_embedder import TextEmbedder

CPU = torch.device("cpu")
TEXTS = ["a mass of 31 mm", "no", "glioblastoma seen, " * 5]


def mean_state(model, tokenizer, text: str) -> np.ndarray:
    """The mean of the last hidden states of a text alone, scaled to length 1."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        mean_D = model(input_ids=ids).last_hidden_state[0].mean(dim=0)
    return (mean_D / mean_D.norm()).numpy()


def test_an_embedding_is_the_mean_state_of_the_text_whatever_shares_its_batch(folder):
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = TextEmbedder(str(folder), CPU)(TEXTS * 15)
    assert found.shape == (45, 32) and found.dtype == np.float32
    for row, text in zip(found, TEXTS * 15, strict=True):
        np.testing.assert_allclose(row, mean_state(model, tokenizer, text), atol=1e-5)


def test_long_texts_are_cut_to_what_the_model_reads(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "glioblastoma and a mass of 31 mm. " * 100
    ids = tokenizer(text)["input_ids"][:256]
    assert tokenizer.model_max_length > 256
    cut = tokenizer.decode(ids)
    assert tokenizer(cut)["input_ids"] == ids
    embed = TextEmbedder(str(folder), CPU)
    np.testing.assert_allclose(embed([text]), embed([cut]), atol=1e-5)


def test_of_an_encoder_decoder_the_encoder_embeds(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5Model(config).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    encoder = T5EncoderModel.from_pretrained(tmp_path / "t5").eval()
    [row] = TextEmbedder(str(tmp_path / "t5"), CPU)(["a mass"])
    np.testing.assert_allclose(row, mean_state(encoder, tokenizer, "a mass"), atol=1e-5)


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(ModelError, match=r"--embedding_model '.*' is not a folder with a config.json"):
        TextEmbedder(str(tmp_path), CPU)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=r"--embedding_model '.*' cannot be loaded \(.*\); give a folder"):
        TextEmbedder(str(tmp_path), CPU)


def test_a_real_language_model_tells_reasons_apart_only_beside_the_control():
    """SmolLM2 finds any two sentences alike; its own row's reference is nearer all the same."""
    pairs = [
        ("The iron store is nearly empty, so she lacks iron.", "Ferritin is very low, which shows iron deficiency."),
        ("He broke his arm when he fell from a ladder.", "The fall from the ladder fractured the left arm."),
        ("The contract ends when either side gives notice.", "Either party may terminate by giving notice."),
        ("The loan is risky since income is too small.", "Low income makes repayment of the loan unlikely."),
        ("The comment insults another user.", "It is a personal attack on another member."),
        ("The pump stopped because the filter was blocked.", "A clogged filter made the pump stop."),
        ("The train was late after snow fell overnight.", "Heavy snow in the night delayed the train."),
    ]
    explanations, references = zip(*pairs, strict=True)
    found = reference_similarity(explanations, references, TextEmbedder("demo:smollm2-135m", CPU))
    assert found.control.mean > 0.5, "unrelated sentences"
    assert (found.excess.values_N > 0).all() and found.excess.interval.low > 0


@pytest.mark.usefixtures("few_resamples")
def test_an_evaluation_reports_similarity_beside_its_control(folder, tmp_path):
    cells = [{"text": f"note {n}", "label": ("no", "yes")[n % 2], "explanation": f"size {n}"} for n in range(12)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    found = evaluate(folder, str(data), embedding_model=str(folder), output=tmp_path / "report")
    expected = reference_similarity(
        [p.explanation for p in found.predictions], [f"size {n}" for n in range(12)], TextEmbedder(str(folder), CPU)
    )
    written = json.loads((tmp_path / "report/report.json").read_text())
    for name in ("similarity", "control", "excess"):
        mean = written["explanations"]["reference_similarity"][name]["mean"]
        assert mean == pytest.approx(getattr(expected, name).mean, abs=1e-5)
    assert written["provenance"]["embedding_model"] == str(folder)
    assert f"{expected.control.mean:.3f} [" in (tmp_path / "report/report.md").read_text()
    for cell in cells:
        del cell["explanation"]
    data.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    with pytest.raises(SettingsError, match=r"needs reference explanations, and .* has none"):
        evaluate(folder, str(data), embedding_model=str(folder))
