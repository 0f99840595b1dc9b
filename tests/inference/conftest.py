"""A hand-made export, and rows to evaluate it on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from clsgen_dist.data.example import Columns
from clsgen_dist.data.prompt import render_prompt
from clsgen_dist.hf_export.artifact import HEAD_FILE, ModelCard, head_fingerprint
from clsgen_dist.inference.predict import Predictor
from tests.tiny_tokenizers import CHATML, byte_level

CLOCK = "{{ '<|im_start|>system\n' + strftime_now('%H:%M:%S.%f') + '<|im_end|>\n' }}" + CHATML


@pytest.fixture
def folder(tmp_path):
    """An exported model with random weights, whose template writes the time of day."""
    return hand_made_export(tmp_path, ["no", "yes"])


def hand_made_export(path, labels, kind="single", make_lm=None):
    """A model of random weights with a head for the label space; ``make_lm`` makes it of a vocabulary's size."""
    tokenizer = byte_level(CLOCK, words=["glioblastoma"])
    # The saved prompt is of one time of day: random weights answer another one otherwise, and figures differ.
    noon = byte_level(CLOCK.replace("strftime_now('%H:%M:%S.%f')", "'12:00:00.000000'"), words=["glioblastoma"])
    torch.manual_seed(0)
    (make_lm or _llama)(len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    outputs = len(labels) - (kind == "ordinal")
    head = {"weight": torch.randn(outputs, 32), "bias": torch.zeros(outputs)}
    if kind == "ordinal":
        head = {"weight": head["weight"][:1].repeat(outputs, 1), "bias": torch.linspace(1, -1, outputs)}
    write_head(path, head)
    ModelCard(
        labels=labels,
        label_space=kind,
        positive_label=labels[-1],
        system=None,
        question="Why?",
        prompt=render_prompt(noon, system=None, question="Why?").to_json(),
        max_prompt_length=160,
        max_explanation_length=24,
        head_sha256=head_fingerprint(head["weight"], head["bias"]),
        trained={},
    ).write(path)
    return path


def _llama(vocabulary):
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                    num_attention_heads=2, max_position_embeddings=256, initializer_range=0.5)
    )  # fmt: skip


def write_head(path, head):
    """The head's file, without its fingerprint in the card."""
    (path / HEAD_FILE).parent.mkdir(exist_ok=True)
    save_file(head, path / HEAD_FILE)


@pytest.fixture
def rows(folder, tmp_path):
    """80 rows: labels are the head's decision, wrong in every fifth row; two sites, three rows a patient."""
    rng = np.random.default_rng(0)
    seen = ("absent", "seen", "seen")
    texts = [f"note {n}: size {rng.integers(1, 90)} mm, glioblastoma {seen[n % 3]}" for n in range(80)]
    predictions = Predictor(folder).predict(texts, explain=False)
    margin = np.array([p.logits[1] - p.logits[0] for p in predictions])
    yes = (margin > np.median(margin)) ^ (np.arange(80) % 5 == 0)
    path = tmp_path / "rows" / "test.jsonl"
    path.parent.mkdir()
    label = np.where(yes, "yes", "no").tolist()
    cells = [
        {"id": f"r{n}", "text": text, "label": label[n], "explanation": f"{label[n]}, size", "site": "AB"[n % 2],
         "patient": n // 3}
        for n, text in enumerate(texts)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    return path


@pytest.fixture
def few_resamples(monkeypatch):
    """A tenth of the bootstrap draws, for time."""
    from clsgen_dist.evaluation import bootstrap

    for function in (bootstrap.bootstrap_intervals, bootstrap.paired_difference):
        monkeypatch.setattr(function, "__kwdefaults__", {**function.__kwdefaults__, "resamples": 60})


@pytest.fixture
def columns():
    return Columns(groups=("site",), cluster="patient")
