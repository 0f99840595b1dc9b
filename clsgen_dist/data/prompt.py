"""The prompt around a row's text, rendered once by the tokenizer's chat template and saved.

    [ template … text … question … assistant turn opens ] [ explanation … end token ]
      └─ prefix ─┘      └─────────── suffix ──────────┘

Chat templates are programs: they write today's date, drop a system message, open a thinking block. So a prompt is
rendered when a run starts, checked, and saved as token ids with checkpoint and export; it is never rendered again.

The assistant's turn opens as in a *finished* turn without thinking: what the template puts before the answer belongs to
the prompt (an empty ``<think>`` block, the channel of the final answer). Templates get ``enable_thinking`` and
``thinking`` as false, and a thinking block that is left open is closed.

Cost: a few renderings of the template and runs of the tokenizer, once per run.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from clsgen_dist.errors import ModelError, SettingsError, first_line

PLAIN = "plain"
"""``prompt.chat_template`` for the layout without any template."""
_TEXT = "clsgenRowText 'goes'\n\"here\"  <b>&</b> there"
"""Placeholder for the row's text: a template that escapes, joins or rewrites user messages changes it."""
_ANSWER = "clsgenExplanationGoesHere"
_WITHOUT_THOUGHTS = {"enable_thinking": False, "thinking": False}
_THOUGHTS = re.compile(r"([<\[◁])(/?)([^<>\[\]◁▷\s]*(?:think|thought|reason)[^<>\[\]◁▷\s]*)([>\]▷])", re.IGNORECASE)
"""``<think>``, ``[THINK]``, ``◁think▷``, ``<|START_THINKING|>`` and what closes them."""
_NO_SYSTEM = (
    "leave prompt.system out and put it into prompt.question, or choose another template with prompt.chat_template"
)
_END_NAME = re.compile(r"\bend|_end|end_", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class RenderedPrompt:
    """The tokens around every row's text, and the settings they were rendered from."""

    system: str | None
    question: str
    chat_template: str | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    prefix: str
    """The string before the text, for people; the ids are what is used."""
    suffix: str
    """The string between the text and the explanation."""
    prefix_ids: list[int]
    suffix_ids: list[int]
    end_token: int
    """Token after each explanation."""
    control: list[str]
    """Tokens that mark turns although the tokenizer does not call them special: user text never yields them."""
    template: str | None = None
    """The chat template's text where it is not the tokenizer's default; an export's tokenizer gets it."""

    def to_json(self) -> dict[str, Any]:
        """The dictionary that :meth:`from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> RenderedPrompt:
        """The prompt that was saved with a checkpoint or an export."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in saved.items() if name in known})

    def changes(self, **settings: Any) -> list[str]:
        """The settings in which the prompt now requested differs from the one rendered, as sentences."""
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
        tokenizer: a transformers tokenizer; without a chat template a plain layout is used.
        system: system message; None leaves the template's default.
        question: the task, placed after the text.
        chat_template: name of one of the tokenizer's templates, a file, or ``plain``; None uses the default.
        template_kwargs: variables of the template.

    Raises:
        SettingsError: no such template, or none of several is the default.
        ModelError: the template cannot express this prompt; the message names the setting that helps.
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


def saved_prompt(
    saved: Mapping[str, Any] | None, tokenizer: Any, *, system: str | None, question: str
) -> RenderedPrompt:
    """The prompt of a checkpoint or an export; if it is too old to have one, rendered as it was at that time."""
    return RenderedPrompt.from_json(saved) if saved else _render_legacy(tokenizer, system, question)


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
    alone = None  # how the template renders the user's message without a system message
    if system:
        with contextlib.suppress(Exception):  # some templates require one
            alone = render(user, opens=True)
    try:
        opened = render(*turns, opens=True)
        finished = render(*turns, {"role": "assistant", "content": _ANSWER})
    except Exception as error:  # a template is a program, and may raise anything
        why = first_line(error)
        if alone is not None:
            raise ModelError(f"the chat template does not support a system message ({why}); {_NO_SYSTEM}") from error
        raise ModelError(
            f"the chat template cannot be rendered ({type(error).__name__}: {why}); set prompt.system if it needs one, "
            "give the variables it needs in prompt.template_kwargs, or choose another template with "
            "prompt.chat_template"
        ) from error
    if opened.count(_TEXT) != 1 or question.strip() not in opened.partition(_TEXT)[2] or finished.count(_ANSWER) != 1:
        raise ModelError(
            "the chat template does not render the user's message and the assistant's exactly once and unchanged; "
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
    """The opening of the assistant's turn, with a thinking block closed if it is left open."""
    openings = list(_THOUGHTS.finditer(opening))
    if not openings or openings[-1][2] or _END_NAME.search(openings[-1][3]):
        return opening
    left, _, name, right = openings[-1].groups()
    if not re.fullmatch(r"[\w:]+", name):
        raise ModelError(
            f"the chat template leaves {openings[-1][0]!r} open where the explanation begins; give the variable that "
            "turns thinking off in prompt.template_kwargs, or choose another template with prompt.chat_template"
        )
    return f"{opening.rstrip()}\n\n{left}/{name}{right}\n\n"


def _is_marker(content: str) -> bool:
    """Whether a token looks like markup, rather than a word or white space."""
    return bool(re.search(r"[^\w\s▁]", content))


def special_tokens(tokenizer: Any) -> set[str]:
    """The tokenizer's special tokens; some tokenizers in Python do not mark their own EOS as special."""
    marked = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return marked | set(tokenizer.all_special_tokens)


def _end_token(tokenizer: Any, tail: str, control: set[str]) -> int:
    """The token that ends an assistant's turn: the first that the template puts there, else the end of sequence."""
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
    """Tokens that the tokenizer itself puts before a text (BOS), without those that it puts after it (EOS)."""
    bare, with_special = _ids(tokenizer, "x"), list(tokenizer("x", add_special_tokens=True)["input_ids"])
    return next((with_special[:k] for k in range(len(with_special)) if with_special[k : k + len(bare)] == bare), [])


def _before_text(ids: Callable[[str], list[int]], before: str) -> list[int]:
    """The prefix's tokens, without its last space if the tokenizer adds one before each text."""
    for shorter in (before, before.removesuffix(" ")):
        if ids(shorter) + ids("x") == ids(before + "x"):
            return ids(shorter)
    return ids(before)


def _after_text(ids: Callable[[str], list[int]], after: str) -> list[int]:
    """The suffix's tokens as they follow a text: without the space that some tokenizers add before each text."""
    start, joined = ids("x"), ids("x" + after)
    return joined[len(start) :] if joined[: len(start)] == start else ids(after)


def _render_legacy(tokenizer: Any, system: str | None, question: str) -> RenderedPrompt:
    """The prompt as rendered before prompts were saved, for checkpoints and exports of that time."""
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
