"""Which prompt a resumed run uses, from the checkpoint's marker, without ranks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from clsgen_dist import checkpoint
from clsgen_dist.config import PromptSettings
from clsgen_dist.data.prompt import render_prompt
from clsgen_dist.errors import CheckpointError
from clsgen_dist.training.run_prompt import prompt_of_run
from tests.tiny_tokenizers import CHATML, byte_level

CLOCK = "{{ strftime_now('%H:%M:%S.%f') }}" + CHATML
ALONE = SimpleNamespace(broadcast=lambda value: value)


def test_every_rank_uses_the_prompt_of_rank_0():
    first = render_prompt(byte_level(CLOCK), system=None, question="Why?")
    second = prompt_of_run(
        PromptSettings(question="Why?"), byte_level(CLOCK), None, SimpleNamespace(broadcast=lambda value: first)
    )
    assert second is first


def test_a_resumed_run_keeps_its_prompt_and_refuses_another(tmp_path):
    tokenizer, settings = byte_level(CLOCK), PromptSettings(question="Why?", template_kwargs={"thinking": True})
    started = prompt_of_run(settings, tokenizer, None, ALONE)
    checkpoint.commit(tmp_path, {"prompt": started.to_json()})
    assert prompt_of_run(settings, tokenizer, tmp_path, ALONE) == started
    for changed in ({"question": "How?"}, {"system": "Be brief."}, {"chat_template": "plain"}, {"template_kwargs": {}}):
        (name,) = changed
        with pytest.raises(CheckpointError, match=rf"another prompt: prompt\.{name} was .* and is now"):
            prompt_of_run(PromptSettings(**{**vars(settings), **changed}), tokenizer, tmp_path, ALONE)


def test_a_checkpoint_without_a_saved_prompt_is_resumed(tmp_path):
    checkpoint.commit(tmp_path, {"state": {}})
    prompt = prompt_of_run(PromptSettings(question="Why?"), byte_level(), tmp_path, ALONE)
    assert prompt.suffix == "\n\nWhy?<|im_end|>\n<|im_start|>assistant\n"
