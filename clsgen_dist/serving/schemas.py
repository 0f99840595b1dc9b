"""What requests may say."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.serving.faults import TooLargeError

_MOST = {"candidates": 8, "redraws": 5}
"""What a single request may ask for."""
_LONGEST_FORM = 20_000
"""Characters of a schema, an expression or a grammar."""
_LONGEST_PHRASE, _PHRASES = 200, 500
"""Of what is forbidden."""
_hints = get_type_hints(DecodingSettings, include_extras=True)
_fields: dict[str, Any] = {
    field.name: (_hints[field.name] | None, Field(default=None, le=_MOST.get(field.name)))
    if field.name in _MOST
    else (_hints[field.name] | None, None)
    for field in dataclasses.fields(DecodingSettings)
}
for _form in ("regex", "grammar"):
    _fields[_form] = (str | None, Field(default=None, max_length=_LONGEST_FORM))
_fields["json_schema"] = (Annotated[str, Field(max_length=_LONGEST_FORM)] | dict[str, Any] | None, None)
_phrase = Annotated[str, Field(max_length=_LONGEST_PHRASE)]
_fields["forbidden"] = (list[_phrase] | None, Field(default=None, max_length=_PHRASES))
Decoding: Any = create_model("Decoding", __config__=ConfigDict(extra="forbid"), **_fields)
"""The settings of :class:`DecodingSettings` that a request changes; the others stay as the model's folder says."""


Name = Annotated[str, Field(max_length=200)]
"""A short text that answers repeat; a limit on its length has pydantic refuse lone surrogates too."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ClassifyRequest(_Request):
    """A text to classify."""

    text: str = Field(description="The text, as the model was trained on it.")


class ExplainRequest(ClassifyRequest):
    """A text to classify and explain."""

    stream: bool = Field(default=True, description="Server-sent events, else one JSON object.")
    max_tokens: int | None = Field(default=None, ge=1, description="Longest explanation in tokens.")
    decoding: Decoding | None = Field(default=None, description="How the explanation is written.")


class BatchRequest(_Request):
    """Several texts."""

    texts: list[str] = Field(min_length=1, max_length=1024)
    explain: bool = True
    max_tokens: int | None = Field(default=None, ge=1)
    decoding: Decoding | None = None


_FORMS = ("json_schema", "regex", "grammar")
_FREE = (*_FORMS, "length", "max_sentences", "max_words", "state_decision", "quote_evidence", "forbidden")
"""What does not go together with a form."""


def changed(settings: DecodingSettings, request: Any) -> DecodingSettings:
    """The settings with what a request's ``decoding`` changes; null stands for the default.

    A form that a request asks for takes the place of what the model's folder says of form and length; a temperature of
    0 that of how tokens are drawn.

    Raises:
        TooLargeError: a schema is over the limit.
    """
    if request is None:
        return settings
    plain = DecodingSettings()
    changes = {
        name: getattr(plain, name) if value is None else value
        for name, value in request.model_dump(exclude_unset=True).items()
    }
    if isinstance(changes.get("json_schema"), dict):
        changes["json_schema"] = schema = json.dumps(changes["json_schema"])
        if len(schema) > _LONGEST_FORM:
            raise TooLargeError(
                f"decoding.json_schema has {len(schema)} characters, expected {_LONGEST_FORM} or fewer; simplify it",
                "schema_too_long",
            )
    replaced: tuple[str, ...] = ()
    if any(changes.get(name) is not None for name in _FORMS):
        replaced += _FREE
    if changes.get("temperature") == 0:
        replaced += ("top_p", "min_p", "candidates")
    return dataclasses.replace(settings, **{name: getattr(plain, name) for name in replaced} | changes)
