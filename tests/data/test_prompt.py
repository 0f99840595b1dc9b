"""Chat templates: rendered correctly, or refused with the setting to change."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from clsgen_dist.data.prompt import RenderedPrompt, render_prompt, saved_prompt
from clsgen_dist.errors import ModelError, SettingsError
from tests.tiny_tokenizers import CHATML, byte_level

OPENS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
DROPS = "{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}" + OPENS
DROPS_FOR_ITS_OWN = "<|im_start|>system\nBe kind.<|im_end|>\n" + DROPS
SHOUTS = CHATML.replace("m.content", "(m.content | upper if m.role == 'system' else m.content)")
THINKS_IF_ASKED = CHATML + (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
ALWAYS_THINKS = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")
CHANNELS = CHATML.replace("+ m.content", "+ ('<|channel|>final' if m.role == 'assistant' else '') + m.content")


def _render(template, system=None, question="Why?", **options):
    return render_prompt(byte_level(template), system=system, question=question, **options)


def _change(of):
    return "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ " + of + " }}<|im_end|>\n{% endfor %}" + OPENS


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (NO_SYSTEM, "does not support a system message (System role not supported)"),
        (DROPS, "does not put prompt.system into the prompt"),
        (DROPS_FOR_ITS_OWN, "does not put prompt.system into the prompt"),
        (SHOUTS, "does not put prompt.system into the prompt"),
    ],
    ids=["refuses it", "drops it", "has its own", "changes it"],
)
def test_a_system_message_that_the_template_drops_is_refused(template, message):
    with pytest.raises(ModelError) as caught:
        _render(template, system="Be brief.")
    assert message in str(caught.value) and "leave prompt.system out" in str(caught.value)
    assert _render(template).prefix.endswith("<|im_start|>user\n")


@pytest.mark.parametrize(
    "of",
    [
        "m.content | upper",
        "m.content | e",
        "m.content | tojson",
        "m.content[:20]",
        "m.content | replace('\n', ' ')",
        "''",
    ],
)
def test_a_template_that_changes_the_users_message_is_refused(of):
    with pytest.raises(ModelError, match=r"does not render the user's message.*prompt\.chat_template"):
        _render(_change(of))


def test_a_template_that_requires_a_system_message_needs_one():
    wants = NO_SYSTEM.replace("== 'system'", "!= 'system'").replace("not supported", "first")
    assert _render(wants, system="Be brief.").prefix.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    with pytest.raises(ModelError, match=r"System role first.*set prompt\.system"):
        _render(wants)


def test_a_template_that_trims_is_accepted():
    assert _render(_change("m.content | trim")).suffix == "\n\nWhy?<|im_end|>\n<|im_start|>assistant\n"


def test_of_several_templates_one_must_be_named_unless_one_is_the_default(tmp_path):
    several = {"rag": CHATML, "tool_use": "TOOLS " + CHATML}
    with pytest.raises(SettingsError, match=r"\['rag', 'tool_use'\], none of them the default; choose one with prompt"):
        _render(several)
    assert _render(several, chat_template="tool_use").prefix == "TOOLS <|im_start|>user\n"
    assert _render({**several, "default": "MINE " + CHATML}).prefix == "MINE <|im_start|>user\n"
    (tmp_path / "own.jinja").write_text("FILE " + CHATML)
    own = _render(several, chat_template=str(tmp_path / "own.jinja"))
    assert (own.prefix, own.template) == ("FILE <|im_start|>user\n", "FILE " + CHATML)
    assert _render(CHATML).template is None
    assert _render(several, chat_template="plain").prefix == ""
    with pytest.raises(SettingsError, match=r"prompt\.chat_template is 'rga'.*no such file"):
        _render(several, chat_template="rga")
    with pytest.raises(SettingsError, match="names no templates"):
        _render(CHATML, chat_template="rag")


@pytest.mark.parametrize(
    ("template", "options", "opening"),
    [
        (THINKS_IF_ASKED, {}, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        (THINKS_IF_ASKED, {"template_kwargs": {"enable_thinking": True}}, "<|im_start|>assistant\n"),
        (ALWAYS_THINKS, {}, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        (ALWAYS_THINKS.replace("<think>", "[THINK]"), {}, "<|im_start|>assistant\n[THINK]\n\n[/THINK]\n\n"),
        (CHANNELS, {}, "<|im_start|>assistant\n<|channel|>final"),
        (CHATML.replace("{% if add_generation_prompt %}", "{% if false %}"), {}, "<|im_start|>assistant\n"),
    ],
    ids=["disabled by default", "enabled", "always open", "in brackets", "answer channel", "no generation prompt"],
)  # fmt: skip
def test_the_assistants_turn_has_no_open_thinking_block(template, options, opening):
    suffix = _render(template, question="Does it <think>?", **options).suffix
    assert suffix == f"\n\nDoes it <think>?<|im_end|>\n{opening}"


def test_an_open_thinking_block_that_cannot_be_closed_is_refused():
    with pytest.raises(ModelError, match=r"leaves '<\|START_THINKING\|>' open.*prompt\.template_kwargs"):
        _render(ALWAYS_THINKS.replace("<think>", "<|START_THINKING|>"))


def test_a_template_variable_must_be_in_template_kwargs():
    template = "{{ hospital.name }}: " + CHATML
    with pytest.raises(ModelError, match=r"'hospital' is undefined.*prompt\.template_kwargs"):
        _render(template)
    assert _render(template, template_kwargs={"hospital": {"name": "Charité"}}).prefix.startswith(
        "Charité: <|im_start|>"
    )


@pytest.mark.parametrize(
    "template", ["{% for m in messages %}", "{{ messages[7].content }}", "{{ 1 / 0 }}", "{{ 'a' + 1 }}"]
)
def test_a_broken_template_is_a_one_line_error(template):
    with pytest.raises(ModelError, match=r"cannot be rendered \(\w+: .*prompt\.chat_template"):
        _render(template)


def test_a_prompt_round_trips_through_json_and_reports_changes():
    prompt = _render(CHATML, system="Be brief.", template_kwargs={"date_string": "1 Jan"})
    kept = RenderedPrompt.from_json(json.loads(json.dumps(prompt.to_json())))
    assert kept == prompt
    same = {name: asdict(prompt)[name] for name in ("system", "question", "chat_template", "template_kwargs")}
    assert kept.changes(**same) == []
    assert kept.changes(**{**same, "question": "How?"}) == ["prompt.question was 'Why?' and is now 'How?'"]


def test_a_run_older_than_saved_prompts_resumes_with_the_same_prompt():
    tokenizer = byte_level(THINKS_IF_ASKED, words=["glioblastoma"])
    prompt = saved_prompt(None, tokenizer, system=None, question="Why?")
    assert prompt.suffix == "\n\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert "glioblastoma" in prompt.control
    assert saved_prompt(_render(CHATML).to_json(), tokenizer, system=None, question="x") == _render(CHATML)
