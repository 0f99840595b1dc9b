"""The ASGI application: routes, tokens, limits, errors, metrics, the web page."""

from __future__ import annotations

import hmac
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
from clsgen_dist.serving import faults
from clsgen_dist.serving.chat_routes import chat_router
from clsgen_dist.serving.decision_routes import decision_router
from clsgen_dist.serving.faults import RequestError, TooLargeError, UnauthorizedError
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


def create_app(service: Service, *, tokens: Sequence[str] = (), max_body: int = 4_000_000) -> FastAPI:
    """The application.

    Args:
        service: answers.
        tokens: any of which a client must send as its bearer token; empty: none is needed.
        max_body: most bytes of a request.
    """

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
    guarded = [Depends(_bearer(tokens))] if tokens else []
    for router in (own_router(service, auth=bool(tokens)), chat_router(service), decision_router(service)):
        app.include_router(router, dependencies=guarded)
    _add_operations(app, service, guarded)
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")  # last: it takes whatever no route takes
    app.add_middleware(_Measured, service=service)
    app.add_middleware(_Limited, max_body=max_body)
    return app


def _add_operations(app: FastAPI, service: Service, guarded: Sequence[Any]) -> None:
    """Health, readiness and metrics."""

    @app.get("/health", tags=["operations"])
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/ready", tags=["operations"])
    async def ready(response: Response) -> dict[str, str]:
        """Whether texts can be answered; 503 if not."""
        if service.backend.is_alive:
            return {"status": "ready"}
        response.status_code = 503
        return {"status": "not ready"}

    @app.get("/metrics", tags=["operations"], dependencies=list(guarded))
    async def metrics() -> Response:
        """Metrics in Prometheus' text format."""
        counts = (service.card.calibrated_on or {}).get("score_counts")
        text = service.metrics.text(counts, service.backend.waiting, service.backend.running)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _bearer(tokens: Sequence[str]) -> Any:
    """A dependency that lets requests with one of the tokens through."""
    known = [token.encode() for token in tokens]

    async def check(
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> None:
        given = credentials.credentials.encode() if credentials else b""
        # All are compared, each in constant time, so that the time says nothing of which was near.
        if sum(hmac.compare_digest(given, token) for token in known) == 0:
            raise UnauthorizedError(
                "the request has no valid token; send the header Authorization: Bearer TOKEN", "invalid_token"
            )

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
    """Refuses bodies over the limit, whatever their header says, and adds security headers."""

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self._app, self._max_body = app, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        received, refused = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body:
                raise self._too_large(received)
            return message

        async def unless_refused(message: Message) -> None:
            nonlocal refused
            if received > self._max_body and message["type"] == "http.response.start":  # FastAPI calls it a bad body
                refused = True
                await _answered(self._too_large(received))(scope, receive, with_headers)
            elif not refused:
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

        if not declared.isdigit() or int(declared) > self._max_body:
            size = int(declared) if declared.isdigit() else -1
            await _answered(self._too_large(size))(scope, receive, with_headers)
            return
        await self._app(scope, counted, unless_refused)

    def _too_large(self, size: int) -> TooLargeError:
        return TooLargeError(
            f"the request has {size} bytes or more, expected {self._max_body} at most; send fewer or shorter texts",
            "request_too_large",
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
