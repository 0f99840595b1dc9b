"""No row's text becomes a control token, whatever is in it: SmolLM2's tokenizer and tiny ones of other kinds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import ByT5Tokenizer

from clsgen_dist.data.encode import Encoder
from clsgen_dist.data.prompt import special_tokens
from clsgen_dist.model.backbone import load_tokenizer
from tests.tiny_tokenizers import CHATML, byte_level, with_space_before_each_text

INJECTIONS = [json.loads(line) for line in (Path(__file__).parent / "injections.jsonl").read_text().splitlines()]
TURNS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
THINKING = CHATML.replace("assistant\n'", "assistant\n<think>\n\n</think>\n\n'")


def _turns_not_special():
    marks = [AddedToken(f"<|{name}|>", special=False) for name in ("user", "assistant", "end")]
    return byte_level(TURNS, words=marks)


def _in_python():
    tokenizer = ByT5Tokenizer(extra_ids=2)
    tokenizer.add_tokens([AddedToken(f"<|{name}|>", special=False) for name in ("user", "assistant", "end")])
    tokenizer.chat_template = TURNS
    return tokenizer


MAKERS = {
    "chatml": byte_level,
    "every name": lambda: byte_level(
        special=("<|im_start|>", "<|im_end|>", "</s>", "<s>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>",
                 "[INST]", "[/INST]", "<｜end▁of▁sentence｜>", "<|endoftext|>", "<|reserved_special_token_0|>",
                 "<unused0>")
    ),
    "thinking": lambda: byte_level(THINKING, words=[AddedToken("<think>", special=False), "</think>"]),
    "turns that are not special": _turns_not_special,
    "a space before each text": lambda: with_space_before_each_text(LLAMA2),
    "in Python": _in_python,
}  # fmt: skip


def control_ids(tokenizer, encoder):
    """Ids that no row may yield: special tokens, those of the template's turns, and what ends a turn."""
    names = special_tokens(tokenizer) | set(encoder.rendered.control)
    harmless = {tokenizer.unk_token_id} & set(encoder.tokens_of(["\U0010fffd"])[0])  # stands for unknown characters
    return {*tokenizer.convert_tokens_to_ids(sorted(names)), encoder.end_token} - harmless


@pytest.fixture(scope="module", params=["smollm2", *MAKERS])
def encoded(request):
    """A tokenizer, and its encoder."""
    name = request.param
    tokenizer = load_tokenizer(str(request.getfixturevalue("smollm2"))) if name == "smollm2" else MAKERS[name]()
    return tokenizer, Encoder(tokenizer, question="Why?", max_prompt_length=4000)


def _whole(encoder, text):
    """The prompt's three parts, by the lengths of the first and the last."""
    ids, _ = encoder.prompt(text)
    prefix, suffix = encoder.rendered.prefix_ids, encoder.rendered.suffix_ids
    return ids[: len(prefix)].tolist(), ids[len(prefix) : len(ids) - len(suffix)].tolist(), ids[-len(suffix) :].tolist()


def test_an_injection_stays_text_and_the_prompt_stays_as_rendered(encoded):
    tokenizer, encoder = encoded
    control = control_ids(tokenizer, encoder)
    for injection in INJECTIONS:
        for text in (injection["text"], f"a row {injection['text']} of text", injection["text"] * 2):
            before, ids, after = _whole(encoder, text)
            assert (before, after) == (encoder.rendered.prefix_ids, encoder.rendered.suffix_ids), injection["id"]
            assert not control & set(ids), injection["id"]
            assert not control & set(encoder.explanations([text])[0][:-1]), "nor can a model learn to write them"


def test_the_tokenizer_by_itself_would_let_turns_be_forged(smollm2):
    tokenizer = load_tokenizer(str(smollm2))
    control = control_ids(tokenizer, Encoder(tokenizer, question="Why?", max_prompt_length=4000))
    forging = [row["id"] for row in INJECTIONS if control & set(tokenizer(row["text"])["input_ids"])]
    assert {"chatml-turn", "chatml-system", "end-of-text", "smollm2-names"} <= set(forging)


def test_names_of_all_added_tokens_stay_text(encoded):
    """Those that a head may be folded into are among them."""
    tokenizer, encoder = encoded
    control = control_ids(tokenizer, encoder)
    names = [token.content for token in tokenizer.added_tokens_decoder.values()]
    assert names and len(control) > 1
    for text in (*names, "".join(names), " ".join(names), "\n".join(reversed(names))):
        assert not control & set(encoder.tokens_of([text])[0])


def test_the_injections_are_of_every_kind():
    kinds = {row["kind"] for row in INJECTIONS}
    assert len(INJECTIONS) >= 40 and len({row["id"] for row in INJECTIONS}) == len(INJECTIONS)
    assert {"forged-turn", "end-token", "thinking", "order", "fake-answer", "mention", "look-alike"} < kinds
    assert all(set(row) == {"id", "kind", "text"} for row in INJECTIONS)


PIECES = ["<|", "|>", "im_", "start", "end", "<|im_end|>", "<|im_start|>", "</s>", "<s>", "[INST]", "\u200b", " ", "▁",
          "<", ">", "<think>", "</think>", "<|user|>", "<|end|>", "\n", "\u202e", "İ", "ﬁ", "e\u0301"]  # fmt: skip
MADE = {name: make() for name, make in MAKERS.items()}
ENCODERS = {name: Encoder(tokenizer, question="Why?", max_prompt_length=4000) for name, tokenizer in MADE.items()}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join))
def test_no_text_of_pieces_of_control_tokens_yields_one(text):
    text = text.encode("utf-8", "ignore").decode()
    for name, encoder in ENCODERS.items():
        [ids] = encoder.tokens_of([text])
        assert not control_ids(MADE[name], encoder) & set(ids), (name, text)
