"""What stands before every application: limits of bodies, in bytes and seconds, security headers, errors as JSON."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clsgen_dist.serving import faults, guards
from clsgen_dist.serving.faults import RequestError, TooLargeError
from clsgen_dist.serving.guards import Guard, SlowError

logger = logging.getLogger(__name__)

_HEADERS = {
    b"content-security-policy": b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}


def error_response(error: Exception) -> JSONResponse:
    """The answer that says what went wrong; what nobody foresaw is logged."""
    fault = faults.as_request_error(error)
    if fault.code == "internal_error":
        logger.error("a request failed", exc_info=error)
    return JSONResponse(faults.body(fault), fault.status, headers=fault.headers)


class Limited:
    """Refuses strangers, slow bodies, and those over the limit whatever their header says; adds security headers.

    Args:
        app: what is guarded.
        max_body: most bytes of a request.
        guard: checks a request by its head.
        policies: content policies of paths that need another one.
        private: beginning of the paths whose answers no cache may keep.
    """

    def __init__(
        self, app: ASGIApp, max_body: int, guard: Guard, policies: Mapping[str, bytes] | None = None, private: str = "/"
    ) -> None:
        self._app, self._max_body, self._guard = app, max_body, guard
        self._policies, self._private = policies or {}, private

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        received, is_whole, answered = 0, False, False
        refusal: RequestError | None = None
        until = time.monotonic() + guards.BODY_SECONDS

        async def counted() -> Message:
            nonlocal received, is_whole, refusal
            if is_whole:  # what follows says that the client has left
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), until - time.monotonic())
            except TimeoutError:
                refusal = self._too_slow(received)
                raise refusal from None
            received += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if received > self._max_body:
                refusal = self._too_large(received)
                raise refusal
            return message

        async def unless_refused(message: Message) -> None:
            nonlocal answered
            if refusal is not None and message["type"] == "http.response.start":  # FastAPI calls it a bad body
                answered = True
                await error_response(refusal)(scope, receive, with_headers)
            elif not answered:
                await with_headers(message)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = dict(_HEADERS)
                own[b"cache-control"] = b"no-store" if scope["path"].startswith(self._private) else b"no-cache"
                if scope["path"] in self._policies:
                    own[b"content-security-policy"] = self._policies[scope["path"]]
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in own]
                message = {**message, "headers": [*kept, *own.items()]}
            await send(message)

        try:
            self._guard.require_head(headers)
            if not declared.isdigit() or int(declared) > self._max_body:
                raise self._too_large(int(declared) if declared.isdigit() else -1)
        except RequestError as error:
            await error_response(error)(scope, receive, with_headers)
            return
        await self._app(scope, counted, unless_refused)

    def _too_large(self, size: int) -> TooLargeError:
        return TooLargeError(
            f"the request has {size} bytes or more, expected {self._max_body} at most; send fewer or shorter texts",
            "request_too_large",
        )

    def _too_slow(self, size: int) -> SlowError:
        return SlowError(
            f"only {size} bytes of the request were there after {guards.BODY_SECONDS:g} s; send it again",
            "request_too_slow",
        )
