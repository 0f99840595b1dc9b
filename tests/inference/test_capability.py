"""Language kept: against a hand computation, with models that differ in a known way."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from clsgen_dist.errors import DataError
from clsgen_dist.inference.capability import WINDOW, general_text, measure_capability, text_windows
from clsgen_dist.inference.instruction_probes import PROBES


@pytest.fixture
def lm(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def test_a_model_has_kept_all_of_itself(lm, tokenizer):
    found = measure_capability(lm, lm, tokenizer, general_text(), tokens=10 * WINDOW)
    assert found.drop_percent.value == 0 == found.drop_percent.interval.low == found.drop_percent.interval.high
    assert found.agreement.value == 1 and found.kl.value == pytest.approx(0, abs=1e-6)
    assert found.perplexity == found.perplexity_backbone
    assert found.tokens == 10 * WINDOW // (WINDOW - 1) * (WINDOW - 1)
    assert found.instructions == len(PROBES) and found.instructions_backbone == found.instructions_trained


def test_figures_are_those_of_their_equations(lm, tokenizer):
    sharper = copy.deepcopy(lm)
    sharper.lm_head.weight.data *= 1.5
    found = measure_capability(sharper, lm, tokenizer, general_text(), tokens=9 * WINDOW)
    windows = torch.from_numpy(text_windows(tokenizer, general_text(), 9 * WINDOW))
    with torch.no_grad():
        p, q = (torch.softmax(model(windows).logits[:, :-1].double(), dim=-1) for model in (lm, sharper))
    own_p, own_q = (x.gather(2, windows[:, 1:, None]).log().mean().item() for x in (p, q))
    assert found.perplexity_backbone == pytest.approx(np.exp(-own_p), rel=1e-4)
    assert found.perplexity == pytest.approx(np.exp(-own_q), rel=1e-4)
    assert found.drop_percent.value == pytest.approx(100 * (np.exp(own_p - own_q) - 1), rel=1e-3)
    assert found.drop_percent.interval.low < found.drop_percent.value < found.drop_percent.interval.high
    assert found.kl.value == pytest.approx((p * (p.log() - q.log())).sum(-1).mean().item(), rel=1e-3)
    assert found.agreement.value == 1, "the order of the logits is the same"


def test_windows_begin_with_a_neutral_token_and_hold_the_text_once(tokenizer):
    windows = text_windows(tokenizer, ["word " * 5000], 100_000)
    start = tokenizer.bos_token_id
    assert (windows[:, 0] == (tokenizer("\n")["input_ids"][-1] if start is None else start)).all()
    text = tokenizer.decode(windows[:, 1:].ravel())
    assert text == ("word " * 5000).strip()[: len(text)]


def test_a_text_that_is_short_or_missing_is_an_error(tokenizer, tmp_path):
    (tmp_path / "short.txt").write_text("too short\n\nby far")
    assert general_text(tmp_path / "short.txt") == ["too short", "by far"]
    with pytest.raises(DataError, match="tokens, expected 2040 or more"):
        text_windows(tokenizer, general_text(tmp_path / "short.txt"), 25_000)
    with pytest.raises(DataError, match="give another --general_text"):
        general_text(tmp_path / "none.txt")


def test_the_default_text_resolves_one_per_cent():
    assert sum(map(len, general_text())) > 90_000


@pytest.mark.parametrize(
    ("instruction", "right", "wrong"),
    [
        ("What is the capital of France?", "The capital of France is Paris.", "It is Parisian."),
        ("Answer with one word: is fire cold, yes or no?", "No.", "No, fire is hot."),
        ("Write the word 'hello' in capital letters.", "HELLO", "Hello"),
        ("List three fruits, separated by commas.", "apple, banana, and pear", "apples and pears"),
        ("Count from 1 to 5.", "1, 2, 3, 4, 5", "1, 2, 3, 5, 4"),
        ("What is 10 - 4?", "10 - 4 = 6", "16"),
    ],
)
def test_answers_are_checked(instruction, right, wrong):
    [probe] = [probe for probe in PROBES if probe.instruction == instruction]
    assert probe.is_right(right) and not probe.is_right(wrong)
