"""Errors of the server's requests, as a status and OpenAI's error object."""

from __future__ import annotations

import math

from pydantic import ValidationError

from clsgen_dist.errors import ModelError, ServerError, SettingsError, UserError


class RequestError(UserError):
    """A request that is not answered; the message says value, expectation and remedy."""

    status = 400
    kind = "invalid_request_error"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        return {}


class TooLargeError(RequestError):
    """A body or a text over the limit."""

    status = 413


class ClientLeftError(RequestError):
    """Nobody waits for the answer."""


class UnauthorizedError(RequestError):
    """No token, or a wrong one."""

    status, kind = 401, "authentication_error"

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        return {"WWW-Authenticate": "Bearer"}


class BusyError(RequestError):
    """The queue is full."""

    status, kind = 429, "rate_limit_error"

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message, "queue_full")
        self._seconds = seconds

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        return {"Retry-After": str(self._seconds)}


class UnavailableError(RequestError):
    """The server is starting, stopping, or its model has failed."""

    status, kind = 503, "server_error"


class LateError(RequestError):
    """The deadline passed before the answer was there."""

    status, kind = 504, "server_error"


def queue_full(held: int, count: int, limit: int, seconds: float) -> BusyError:
    """The error of a request that does not fit; ``seconds``: after which it may."""
    return BusyError(
        f"{held} texts are waiting and {count} more exceed the queue of {limit}; try again later",
        max(1, min(600, math.ceil(seconds))),
    )


def as_request_error(error: Exception) -> RequestError:
    """The error that a client is told; an unexpected one without its message, which could hold the text."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, SettingsError):
        return RequestError(str(error), "invalid_settings")
    if isinstance(error, ValidationError):  # of settings that were put together from several parts of a request
        first = error.errors()[0]
        return RequestError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", "invalid_settings")
    if isinstance(error, ServerError):
        return UnavailableError(str(error), "engine_failed")
    if isinstance(error, ModelError):
        return UnavailableError(str(error), "model_failed")
    return UnavailableError(
        f"the server failed ({type(error).__name__}); its log has the traceback, try again or tell whoever runs it",
        "internal_error",
    )


_LONGEST_MESSAGE = 2000
"""Characters: messages repeat what was sent."""


def body(error: RequestError) -> dict[str, object]:
    """OpenAI's error object."""
    return {"error": {"message": str(error)[:_LONGEST_MESSAGE], "type": error.kind, "code": error.code, "param": None}}
