"""The prompt around a row's text, rendered once by the tokenizer's chat template and kept from then on.

    [ template … text … question … assistant turn opens ] [ explanation … end token ]
      └─ prefix ─┘      └─────────── suffix ──────────┘

Chat templates are programs: they write today's date, drop a system message, open a block of thoughts. So a prompt is
rendered when a run starts, checked, and kept as token ids with checkpoint and export; nothing renders it again.

The assistant's turn opens as the template writes a *finished* turn, without thoughts: what it puts before the answer
belongs to the prompt (an empty ``<think>`` block, the channel of the final answer). Templates that know
``enable_thinking`` or ``thinking`` are told false, and a block of thoughts that is left open is closed.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from clsgen_dist.errors import ModelError, SettingsError

PLAIN = "plain"
"""``prompt.chat_template`` for the layout without any template."""
_TEXT = "clsgenRowText 'goes'\n\"here\"  <b>&</b> there"
"""Stands for the row's text: a template that escapes, joins or rewrites what users say does not leave it whole."""
_ANSWER = "clsgenExplanationGoesHere"
_WITHOUT_THOUGHTS = {"enable_thinking": False, "thinking": False}
_THOUGHTS = re.compile(r"([<\[◁])(/?)([^<>\[\]◁▷\s]*(?:think|thought|reason)[^<>\[\]◁▷\s]*)([>\]▷])", re.IGNORECASE)
"""``<think>``, ``[THINK]``, ``◁think▷``, ``<|START_THINKING|>`` and what closes them."""
_NO_SYSTEM = (
    "leave prompt.system out and say it in prompt.question, or choose another template with prompt.chat_template"
)
_CLOSES = re.compile(r"\bend|_end|end_", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class RenderedPrompt:
    """What stands around every row's text, in tokens, and the settings that it was rendered from."""

    system: str | None
    question: str
    chat_template: str | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    prefix: str
    """What stands before the text, for people; the ids count."""
    suffix: str
    """What stands between the text and the explanation."""
    prefix_ids: list[int]
    suffix_ids: list[int]
    end_token: int
    """Token after each explanation."""
    control: list[str]
    """Tokens that mark turns though the tokenizer does not call them special: user text never yields them."""
    template: str | None = None
    """The chat template's text where it is not the tokenizer's default; an export's tokenizer gets it."""

    def to_json(self) -> dict[str, Any]:
        """What :meth:`of_json` reads back."""
        return asdict(self)

    @classmethod
    def of_json(cls, kept: Mapping[str, Any]) -> RenderedPrompt:
        """The prompt that a checkpoint or an export keeps."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in kept.items() if name in known})

    def changes(self, **settings: Any) -> list[str]:
        """In which of the settings given the prompt now wanted differs from the one rendered."""
        return [
            f"prompt.{name} was {getattr(self, name)!r} and is now {value!r}"
            for name, value in settings.items()
            if getattr(self, name) != value
        ]


def render_prompt(
    tokenizer: Any,
    *,
    system: str | None,
    question: str,
    chat_template: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> RenderedPrompt:
    """The prompt of a new run.

    Args:
        tokenizer: a transformers tokenizer; without chat template a plain layout is used.
        system: system message; None leaves the template's own.
        question: the task, put after the text.
        chat_template: name of one of the tokenizer's templates, a file, or ``plain``; None takes the default.
        template_kwargs: variables of the template.

    Raises:
        SettingsError: no such template, or none of several is the default.
        ModelError: the template cannot say this prompt; the message names the setting that helps.
    """
    template = _template(tokenizer, chat_template)
    ids = functools.partial(_ids, tokenizer)
    if template is None:
        before, after, tail = f"{system}\n\n" if system else "", f"\n\n{question}\n", ""
        opening = _opening_tokens(tokenizer)
    else:
        before, after, tail = _rendered(tokenizer, template, system, question, dict(template_kwargs or {}))
        opening = []  # the template writes its own
    frame = f"{before}{after}{tail}".replace(question, "").replace(system or question, "")
    special = special_tokens(tokenizer)
    written = f"{template or ''}\0{frame}"
    control = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.content not in special and _is_marker(token.content) and token.content in written
    ]
    return RenderedPrompt(
        system=system,
        question=question,
        chat_template=chat_template,
        template_kwargs=dict(template_kwargs or {}),
        prefix=before,
        suffix=after,
        prefix_ids=opening + _before_text(ids, before),
        suffix_ids=_after_text(ids, after),
        end_token=_end_token(tokenizer, tail, special | set(control)),
        control=control,
        template=template if chat_template is not None else None,
    )


def kept_prompt(kept: Mapping[str, Any] | None, tokenizer: Any, *, system: str | None, question: str) -> RenderedPrompt:
    """The prompt that a checkpoint or an export keeps; of one too old to keep any, as it was rendered then."""
    return RenderedPrompt.of_json(kept) if kept else _as_first_rendered(tokenizer, system, question)


def _template(tokenizer: Any, wanted: str | None) -> str | None:
    """The chat template's text; None for the plain layout."""
    own = tokenizer.chat_template or None
    named = own if isinstance(own, dict) else {}
    if wanted is None and not named:
        return own
    if wanted == PLAIN:
        return None
    if (found := named.get(wanted or "default")) is not None:
        return str(found)
    if wanted is not None and Path(wanted).expanduser().is_file():
        return Path(wanted).expanduser().read_text(encoding="utf-8")
    has = f"the tokenizer has the chat templates {sorted(named)}" if named else "the tokenizer names no templates"
    if wanted is None:
        raise SettingsError(f"{has}, none of them the default; choose one with prompt.chat_template")
    raise SettingsError(
        f"prompt.chat_template is {wanted!r}: {has}, and there is no such file; name one, or a .jinja file, or "
        f"{PLAIN!r} for no template"
    )


def _rendered(
    tokenizer: Any, template: str, system: str | None, question: str, kwargs: dict[str, Any]
) -> tuple[str, str, str]:
    """Template text before the row's text, between it and the explanation, and after the explanation."""

    def render(*messages: dict[str, str], opens: bool = False) -> str:
        options = {**_WITHOUT_THOUGHTS, **kwargs}
        return str(
            tokenizer.apply_chat_template(
                list(messages), chat_template=template, tokenize=False, add_generation_prompt=opens, **options
            )
        )

    user = {"role": "user", "content": f"{_TEXT}\n\n{question}"}
    turns = [{"role": "system", "content": system}, user] if system else [user]
    alone = None  # what the template makes of the user's message without a system message
    if system:
        with contextlib.suppress(Exception):  # some demand one
            alone = render(user, opens=True)
    try:
        opened = render(*turns, opens=True)
        finished = render(*turns, {"role": "assistant", "content": _ANSWER})
    except Exception as error:  # a template is a program, and raises what it likes
        why = str(error).strip().partition("\n")[0]
        if alone is not None:
            raise ModelError(f"the chat template has no system message ({why}); {_NO_SYSTEM}") from error
        raise ModelError(
            f"the chat template cannot be rendered ({type(error).__name__}: {why}); set prompt.system if it wants one, "
            "give the variables it needs in prompt.template_kwargs, or choose another template with "
            "prompt.chat_template"
        ) from error
    if opened.count(_TEXT) != 1 or question.strip() not in opened.partition(_TEXT)[2] or finished.count(_ANSWER) != 1:
        raise ModelError(
            "the chat template does not render the user's message and the assistant's exactly once and as they are; "
            "choose another with prompt.chat_template: the name of one, a .jinja file, or 'plain' for none"
        )
    if system and (opened == alone or system.strip() not in opened):
        raise ModelError(f"the chat template does not put prompt.system into the prompt; {_NO_SYSTEM}")
    before, after = opened.split(_TEXT)
    until_answer, tail = finished.split(_ANSWER)
    if until_answer.startswith(opened) and until_answer[len(opened) :].strip():
        after += until_answer[len(opened) :]
    question_end = after.rfind(question.strip()) + len(question.strip()) if question.strip() else 0
    return before, after[:question_end] + _without_open_thoughts(after[question_end:]), tail


def _without_open_thoughts(opening: str) -> str:
    """The opening of the assistant's turn with the block of thoughts closed that it leaves open."""
    found = list(_THOUGHTS.finditer(opening))
    if not found or found[-1][2] or _CLOSES.search(found[-1][3]):
        return opening
    left, _, name, right = found[-1].groups()
    if not re.fullmatch(r"[\w:]+", name):
        raise ModelError(
            f"the chat template leaves {found[-1][0]!r} open where the explanation begins; give the variable that "
            "turns thoughts off in prompt.template_kwargs, or choose another template with prompt.chat_template"
        )
    return f"{opening.rstrip()}\n\n{left}/{name}{right}\n\n"


def _is_marker(content: str) -> bool:
    """Whether a token looks like a mark-up, rather than a word or a run of white space."""
    return bool(re.search(r"[^\w\s▁]", content))


def special_tokens(tokenizer: Any) -> set[str]:
    """The tokens that the tokenizer itself calls special; some tokenizers in Python mark their own EOS as ordinary."""
    marked = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return marked | set(tokenizer.all_special_tokens)


def _end_token(tokenizer: Any, tail: str, control: set[str]) -> int:
    """The token that closes an assistant's turn: the first that the template puts there, else the end of sequence."""
    added = tokenizer.added_tokens_decoder
    for token in _ids(tokenizer, tail):
        if token in added and added[token].content in control:
            return token
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has neither a token that ends a turn nor an eos_token; set one in its config")
    return int(tokenizer.eos_token_id)


def _ids(tokenizer: Any, text: str) -> list[int]:
    if not text:
        return []
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])


def _opening_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text by itself (BOS); what it puts after (EOS) would end the prompt."""
    bare, whole = _ids(tokenizer, "x"), list(tokenizer("x", add_special_tokens=True)["input_ids"])
    return next((whole[:k] for k in range(len(whole)) if whole[k : k + len(bare)] == bare), [])


def _before_text(ids: Callable[[str], list[int]], before: str) -> list[int]:
    """The prefix's tokens; its last space is left out where the tokenizer puts one before each text by itself."""
    for shorter in (before, before.removesuffix(" ")):
        if ids(shorter) + ids("x") == ids(before + "x"):
            return ids(shorter)
    return ids(before)


def _after_text(ids: Callable[[str], list[int]], after: str) -> list[int]:
    """The suffix's tokens as they follow a text: without the space that some tokenizers put before each text."""
    start, whole = ids("x"), ids("x" + after)
    return whole[len(start) :] if whole[: len(start)] == start else ids(after)


def _as_first_rendered(tokenizer: Any, system: str | None, question: str) -> RenderedPrompt:
    """As prompts were rendered before they were kept, for the checkpoints and exports of that time."""
    template = bool(tokenizer.chat_template)
    if template:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": f"{_ANSWER}\n\n{question}"})
        answer = {"role": "assistant", "content": _ANSWER}
        opened = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        before, after = opened.split(_ANSWER)
        tail = tokenizer.apply_chat_template([*messages, answer], tokenize=False).rsplit(_ANSWER, 1)[1]
    else:
        before, after, tail = f"{system}\n\n" if system else "", f"\n\n{question}\n", ""
    closing = _ids(tokenizer, tail)
    added = tokenizer.added_tokens_decoder
    return RenderedPrompt(
        system=system,
        question=question,
        prefix=before,
        suffix=after,
        prefix_ids=list(tokenizer(before, add_special_tokens=not template)["input_ids"]),
        suffix_ids=_ids(tokenizer, after),
        end_token=closing[0] if closing and closing[0] in added else int(tokenizer.eos_token_id),
        control=[token.content for token in added.values()],
    )
