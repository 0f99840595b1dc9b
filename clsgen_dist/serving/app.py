"""The ASGI application: routes, tokens, limits, errors, metrics, the web page."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clsgen_dist import __version__
from clsgen_dist.serving import faults, guards
from clsgen_dist.serving.answers import ASKS, OPEN, Status, documented
from clsgen_dist.serving.chat_routes import chat_router
from clsgen_dist.serving.decision_routes import decision_router
from clsgen_dist.serving.faults import RequestError, TooLargeError
from clsgen_dist.serving.guards import Guard, SlowError
from clsgen_dist.serving.own_routes import own_router
from clsgen_dist.serving.service import Service

logger = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page")
_HEADERS = {
    b"content-security-policy": b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}
_DOCS_POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)
"""Of the OpenAPI page, whose start is an inline script."""


def create_app(
    service: Service, *, tokens: Sequence[str] = (), max_body: int = 4_000_000, hosts: Sequence[str] = ()
) -> FastAPI:
    """The application.

    Args:
        service: answers.
        tokens: any of which a client must send as its bearer token; empty: none is needed.
        max_body: most bytes of a request.
        hosts: names by which clients may call the server; empty: any.
    """
    guard = Guard(tokens, hosts)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.backend.start()
        yield
        service.backend.stop()

    app = FastAPIOffline(
        redoc_url=None,
        title="clsgen serve",
        version=__version__,
        description="A calibrated probability and the reason, from one model.",
        lifespan=lifespan,
    )
    _handle_errors(app)
    guarded = [Depends(_bearer(guard))] if tokens else []
    for router in (own_router(service, auth=bool(tokens)), chat_router(service), decision_router(service)):
        app.include_router(router, dependencies=guarded)
    _add_operations(app, service, guarded)
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")  # last: it takes whatever no route takes
    app.add_middleware(_Limited, max_body=max_body, guard=guard)
    app.add_middleware(_Measured, service=service)  # last, so that it sees what the other one refuses
    return app


def _add_operations(app: FastAPI, service: Service, guarded: Sequence[Any]) -> None:
    """Health, readiness and metrics."""

    @app.get("/health", tags=["operations"], responses=documented(Status) | OPEN)
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    working = documented(Status) | OPEN | {503: {"model": Status, "description": "Not ready."}}

    @app.get("/ready", tags=["operations"], responses=working)
    async def ready(response: Response) -> dict[str, str]:
        """Whether texts can be answered; 503 if not."""
        if service.backend.is_alive:
            return {"status": "ready"}
        response.status_code = 503
        return {"status": "not ready"}

    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}, "description": "The metrics."}}

    @app.get(
        "/metrics", tags=["operations"], dependencies=list(guarded), responses=text | ASKS, response_class=Response
    )
    async def metrics() -> Response:
        """Metrics in Prometheus' text format."""
        counts = (service.card.calibrated_on or {}).get("score_counts")
        text = service.metrics.text(counts, service.backend.waiting, service.backend.running)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _bearer(guard: Guard) -> Any:
    """A dependency that lets requests with one of the tokens through."""

    async def check(
        request: Request,
        named_in_openapi: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> None:
        guard.require_token(dict(request.headers.raw).get(b"authorization", b""))

    return check


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:])) or "the body"
        fault = RequestError(f"{where}: {first['msg']}; see /docs", "invalid_request")
        return JSONResponse(faults.body(fault), 422)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        fault = RequestError(f"{error.detail}: {request.method} {request.url.path}; see /docs", "http_error")
        return JSONResponse(faults.body(fault), error.status_code, headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def other(request: Request, error: Exception) -> JSONResponse:
        return _answered(error)

    for kind in (RequestError, ValueError, RuntimeError):
        app.add_exception_handler(kind, lambda request, error: _answered(error))


def _answered(error: Exception) -> JSONResponse:
    """The answer that says what went wrong; what nobody foresaw is logged."""
    fault = faults.as_request_error(error)
    if fault.code == "internal_error":
        logger.error("a request failed", exc_info=error)
    return JSONResponse(faults.body(fault), fault.status, headers=fault.headers)


class _Limited:
    """Refuses strangers, slow bodies, and those over the limit whatever their header says; adds security headers."""

    def __init__(self, app: ASGIApp, max_body: int, guard: Guard) -> None:
        self._app, self._max_body, self._guard = app, max_body, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
                await _answered(refusal)(scope, receive, with_headers)
            elif not answered:
                await with_headers(message)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = dict(_HEADERS)
                own[b"cache-control"] = b"no-store" if scope["path"].startswith("/v1/") else b"no-cache"
                if scope["path"] == "/docs":
                    own[b"content-security-policy"] = _DOCS_POLICY
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in own]
                message = {**message, "headers": [*kept, *own.items()]}
            await send(message)

        try:
            self._guard.require_head(headers)
            if not declared.isdigit() or int(declared) > self._max_body:
                raise self._too_large(int(declared) if declared.isdigit() else -1)
        except RequestError as error:
            await _answered(error)(scope, receive, with_headers)
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


class _Measured:
    """Counts requests by path and status, and their time."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._metrics = app, service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            path = getattr(scope.get("route"), "path", "other")  # not the URL, which anybody chooses
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - begun)
