"""One question to an OpenAI-compatible server, asked again after what may pass.

    asked again      429, 5xx, 408, 409; a lost connection; an answer cut, too late, or no chat completion
    waits            Retry-After, if the server says so (at most two minutes); else a random time up to 1 s, 2 s, 4 s …
                     (full jitter), so that many clients do not come back together
    this row only    400, 413, 422: too long, refused
    the end          401, 403, 404, and 429 for an exhausted quota: asking again cannot help

Source of the waits: Brooker 2015, "Exponential Backoff And Jitter", AWS Architecture Blog.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from clsgen_dist.errors import ServerError, SettingsError, first_line
from clsgen_dist.io.text import shortened
from clsgen_dist.teacher.journal import Answer

_LONGEST_WAIT = 120.0
_LONGEST_BACKOFF = 60.0
_LONGEST_TOKEN = 128
"""Characters: the longest tokens of usual vocabularies are runs of so many spaces."""
_OF_THIS_ROW = (400, 413, 422)
_PASSING = (408, 409, 429)


class RefusedError(ServerError):
    """The server does not answer this question, and may answer others."""


class UnansweredError(ServerError):
    """No usable answer in all tries."""


def base_url(url: str) -> str:
    """The address that endpoints are appended to; SettingsError for what is no address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise SettingsError(
            f"--url is {shortened(url)!r}, expected an address such as http://localhost:8000/v1 (a key belongs into "
            "the environment variable OPENAI_API_KEY)"
        )
    plain = url.rstrip("/").removesuffix("/chat/completions")
    return plain if urlsplit(plain).path.strip("/") else f"{plain.rstrip('/')}/v1"


class Teacher:
    """A model behind a server.

    Args:
        url: see :func:`base_url`.
        model: its name there; None: the only one that the server lists.
        timeout: seconds for one try, from connecting to the last byte.
        tries: of one question.
        on_lost: called when an answer came that cannot be read, and was probably paid for.
    """

    def __init__(
        self, url: str, model: str | None, *, timeout: float, tries: int, on_lost: Callable[[str], None]
    ) -> None:
        try:
            import openai
        except ImportError:
            raise SettingsError(
                "a teacher needs the package openai, which is not installed; run: pip install 'clsgen-dist[teacher]'"
            ) from None
        self._openai = openai
        self.url, self.model = base_url(url), model or ""
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        self._timeout, self._tries, self._on_lost = timeout, tries, on_lost
        self._client = openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self._key or "none",
            max_retries=0,
            # A redirect may lead to another host, which the texts are not meant for.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, timeout=timeout),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def find_model(self) -> None:
        """Take the only model that the server lists, where none was named."""
        if self.model:
            return
        try:
            async with asyncio.timeout(self._timeout):
                names = [model.id for model in (await self._client.models.list()).data]
        except (self._openai.APIError, TimeoutError, ValueError, AttributeError, TypeError) as error:
            raise ServerError(f"{self.url}/models does not answer ({self._said(error)}); name --model") from None
        if len(names) != 1:
            raise SettingsError(f"{self.url} serves {len(names)} models; name one with --model: {', '.join(names[:8])}")
        [self.model] = names

    async def ask(self, body: dict[str, Any]) -> Answer:
        """The answer to a chat completion.

        Raises:
            RefusedError: the server refuses this question.
            UnansweredError: no usable answer in all tries.
            SettingsError: the server refuses all questions: key, address, model, quota.
        """
        said = ""
        for attempt in range(self._tries):
            wait = random.uniform(0, min(_LONGEST_BACKOFF, 2.0**attempt))
            try:
                async with asyncio.timeout(self._timeout):
                    raw = await self._client.chat.completions.with_raw_response.create(**body)
                    return _answer(raw.text, self._longest(body))
            except self._openai.APIStatusError as error:
                said = self._passing(error)
                wait = _retry_after(error.response.headers) or wait
            except TimeoutError:
                said = f"no answer in {self._timeout:g} s"
            except self._openai.APIConnectionError as error:  # a lost connection; httpx's timeouts too
                said = self._said(error.__cause__ or error)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError, self._openai.APIError) as error:
                said = f"no chat completion: {self._said(error)}"
                self._on_lost(body["messages"][0]["content"])
            if attempt + 1 < self._tries:
                await asyncio.sleep(wait)
        raise UnansweredError(f"{self.url} gave no usable answer in {self._tries} tries ({said})")

    @staticmethod
    def _longest(body: dict[str, Any]) -> int:
        """Characters that an answer may have, whatever the tokens are."""
        tokens = body.get("max_tokens") or body.get("max_completion_tokens") or 0
        return int(tokens) * _LONGEST_TOKEN + _LONGEST_TOKEN

    def _passing(self, error: Any) -> str:
        """What a status says, if it may pass; else an error."""
        status, said = error.status_code, self._said(error)
        if status in _OF_THIS_ROW:
            raise RefusedError(f"{self.url} refused a question with status {status} ({said})") from None
        if status in _PASSING and error.code != "insufficient_quota":
            return f"status {status}: {said}"
        if status >= 500:
            return f"status {status}: {said}"
        key = f"a key of {len(self._key)} characters" if self._key else "not set"
        raise SettingsError(
            f"{self.url} answered status {status} ({said}); check --url, --model ({self.model}) and OPENAI_API_KEY "
            f"({key}), then run the same command again: what was answered is kept"
        ) from None

    def _said(self, error: BaseException) -> str:
        """The beginning of an error, without the key, should the server repeat it."""
        text = first_line(error)
        return shortened(text.replace(self._key, "***") if self._key else text, 150)


def _answer(text: str, longest: int) -> Answer:
    """The answer in a body; ValueError, LookupError, TypeError or RecursionError if it is no chat completion."""
    fields = json.loads(text)
    [choice] = fields["choices"]
    usage, content = fields.get("usage") or {}, choice["message"]["content"]
    if content is not None and not isinstance(content, str):
        raise TypeError(f"its content is of type {type(content).__name__}")
    if content is not None and len(content) > longest:
        raise ValueError(f"its content has {len(content)} characters, {longest} or fewer were asked for")
    decision = fields.get("decision")
    label = decision.get("label") if isinstance(decision, dict) else None
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    read, written = (count if type(count) is int and count >= 0 else -1 for count in counts)
    return Answer(content or "", str(choice.get("finish_reason")), read, written, label)


def _retry_after(headers: Any) -> float | None:
    """Seconds that the server asks to wait; None if it does not say, or nonsense."""
    value = headers.get("retry-after")
    try:
        if value is None:
            seconds = float(headers["retry-after-ms"]) / 1000
        elif value.strip().replace(".", "", 1).isdigit():
            seconds = float(value)
        else:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
    # A little later each, so that not all come at the same moment.
    return min(_LONGEST_WAIT, max(0.0, seconds)) + random.uniform(0, 0.25)
