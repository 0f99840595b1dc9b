"""The ASGI application: routes, tokens, limits, errors, metrics, the web page."""

from __future__ import annotations

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
from clsgen_dist.serving.answers import ASKS, OPEN, Status, documented
from clsgen_dist.serving.chat_routes import chat_router
from clsgen_dist.serving.decision_routes import decision_router
from clsgen_dist.serving.faults import RequestError
from clsgen_dist.serving.guards import Guard
from clsgen_dist.serving.limits import Limited, error_response
from clsgen_dist.serving.own_routes import own_router
from clsgen_dist.serving.service import Service

PAGE = Path(__file__).with_name("page")
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
    app.add_middleware(Limited, max_body=max_body, guard=guard, policies={"/docs": _DOCS_POLICY}, private="/v1/")
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
        return error_response(error)

    for kind in (RequestError, ValueError, RuntimeError):
        app.add_exception_handler(kind, lambda request, error: error_response(error))


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
