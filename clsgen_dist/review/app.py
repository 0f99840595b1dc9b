"""The ASGI application of a review: pages made on the server, and requests that change something, as JSON.

    GET  /  /row/N  /rows  /agreement     pages
    POST /decide /undo /skip /note        each is on disk before it is answered
    POST /reviewer /login                 who reviews; a token becomes a cookie that scripts cannot read

A request from another page is refused: it has no JSON body that a browser would let it send, and says where it is from.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from clsgen_dist.review.bodies import Body, DecideBody, NameBody, NoteBody, RowBody
from clsgen_dist.review.decision import ReviewError, ReviewFault
from clsgen_dist.review.store import Store, checked_name
from clsgen_dist.review.views import Views
from clsgen_dist.serving import faults
from clsgen_dist.serving.faults import RequestError, UnauthorizedError
from clsgen_dist.serving.guards import Guard
from clsgen_dist.serving.limits import Limited, error_response

PAGE = Path(__file__).with_name("page")
MAX_BODY = 2_000_000
_BROWSER_ID = re.compile("[0-9a-f]{16}")
_YEAR = 365 * 86400
_STATUS = {ReviewFault.UNKNOWN_ROW: 404, ReviewFault.TAKEN: 409, ReviewFault.NOTHING_TO_UNDO: 409}
B = TypeVar("B", bound=Body)


@dataclass(frozen=True)
class Cookies:
    """Names of the cookies of one review: browsers do not tell ports of a machine apart."""

    token: str
    reviewer: str
    browser: str

    @classmethod
    def of(cls, store: Path, reviewer: str | None) -> Cookies:
        """Those of a store; a name that was chosen on the page counts until the command names another one."""
        digests = [hashlib.sha256(f"{store.resolve()}\0{name}".encode()).hexdigest()[:8] for name in ("", reviewer)]
        return cls(f"clsgen_token_{digests[0]}", f"clsgen_reviewer_{digests[1]}", f"clsgen_browser_{digests[0]}")


class ForeignPageError(RequestError):
    """A request that another web page sends."""

    status = 403


class CookieGuard(Guard):
    """A guard that takes the token from a cookie too."""

    def __init__(self, tokens: Sequence[str], hosts: Sequence[str], cookie: str) -> None:
        super().__init__(tokens, hosts)
        self._cookie = cookie

    def is_known(self, headers: dict[bytes, bytes]) -> bool:
        """Whether the request has one of the tokens, or none is needed."""
        for given in (headers.get(b"authorization", b""), b"Bearer " + _cookie(headers, self._cookie).encode()):
            try:
                self.require_token(given)
            except UnauthorizedError:
                continue
            return True
        return False

    def require_head(self, headers: dict[bytes, bytes]) -> None:
        """What must be right before a body is read."""
        self.require_host(headers.get(b"host", b""))
        has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        if has_body and not self.is_known(headers):
            raise UnauthorizedError("the request has no valid token; sign in on the page again", "invalid_token")


def create_app(
    store: Store, *, reviewer: str | None = None, tokens: Sequence[str] = (), hosts: Sequence[str] = ()
) -> Starlette:
    """The application.

    Args:
        store: rows and decisions.
        reviewer: who reviews, where the page was not told another name.
        tokens: any of which a browser must have been given; empty: none is needed.
        hosts: names by which the server may be called; empty: any.
    """
    cookies = Cookies.of(store.path, reviewer)
    guard = CookieGuard(tokens, hosts, cookies.token)
    pages = _Pages(Views(store), store, guard, reviewer, cookies)
    routes = [
        Route("/", pages.page(pages.next_row)),
        Route("/row/{number:int}", pages.page(pages.one_row)),
        Route("/rows", pages.page(pages.rows)),
        Route("/agreement", pages.page(pages.agreement)),
        Route("/health", lambda request: JSONResponse({"status": "ok"})),
        Route("/decide", pages.change(DecideBody, pages.decide), methods=["POST"]),
        Route("/undo", pages.change(Body, pages.undo), methods=["POST"]),
        Route("/skip", pages.change(RowBody, pages.skip), methods=["POST"]),
        Route("/note", pages.change(NoteBody, pages.note), methods=["POST"]),
        Route("/reviewer", pages.change(NameBody, pages.name, needs_reviewer=False), methods=["POST"]),
        Route("/login", pages.login, methods=["POST"]),
        Mount("/static", StaticFiles(directory=PAGE / "static"), name="static"),
    ]
    handlers: dict[Any, Any] = {
        RequestError: lambda request, error: error_response(error),
        HTTPException: pages.http_error,
        Exception: lambda request, error: error_response(error),
    }
    middleware = [Middleware(Limited, max_body=MAX_BODY, guard=guard)]
    return Starlette(routes=routes, exception_handlers=handlers, middleware=middleware)


class _Pages:
    """The routes of one application."""

    def __init__(self, views: Views, store: Store, guard: CookieGuard, reviewer: str | None, cookies: Cookies) -> None:
        self._views, self._store, self._guard, self._reviewer = views, store, guard, reviewer
        self._cookies = cookies

    # --- pages -----------------------------------------------------------------------------------------------------

    def page(self, make: Callable[[Request, str, str], str]) -> Callable[[Request], Response]:
        """A route that shows a page to a reviewer; strangers sign in first, and who is new says a name."""

        def answer(request: Request) -> Response:
            if not self._guard.is_known(dict(request.headers.raw)):
                return HTMLResponse(self._views.sign_in(), 401)
            reviewer = self._reviewer_of(request)
            if reviewer is None:
                return HTMLResponse(self._views.who())
            known = self._browser_of(request)
            browser = known or secrets.token_hex(8)
            try:
                response = HTMLResponse(make(request, reviewer, browser))
            except ReviewError as error:
                response = HTMLResponse(self._views.problem(reviewer, str(error)), _STATUS.get(error.code, 400))
            if not known:
                response.set_cookie(self._cookies.browser, browser, max_age=_YEAR, httponly=True, samesite="strict")
            return response

        return answer

    def next_row(self, request: Request, reviewer: str, browser: str) -> str:
        """The next row of the queue."""
        return self._views.next_row(reviewer, browser, request.query_params)

    def one_row(self, request: Request, reviewer: str, browser: str) -> str:
        """A row that was chosen."""
        return self._views.one_row(reviewer, browser, request.path_params["number"], request.query_params)

    def rows(self, request: Request, reviewer: str, browser: str) -> str:
        """The list of rows."""
        return self._views.rows(reviewer, request.query_params)

    def agreement(self, request: Request, reviewer: str, browser: str) -> str:
        """Agreement of reviewers."""
        return self._views.agreement(reviewer)

    def http_error(self, request: Request, error: HTTPException) -> Response:
        """A page that does not exist, a method that is not allowed."""
        if request.method != "GET":
            return error_response(RequestError(f"{error.detail}: {request.method} {request.url.path}", "http_error"))
        return HTMLResponse(self._views.problem(None, f"{error.detail}."), error.status_code)

    # --- changes ---------------------------------------------------------------------------------------------------

    def change(
        self, kind: type[B], work: Callable[[B, str, str], Response], *, needs_reviewer: bool = True
    ) -> Callable[[Request], Any]:
        """A route that takes a JSON body and changes something."""

        async def answer(request: Request) -> Response:
            self._require_own_page(request)
            reviewer = self._reviewer_of(request) or ""
            if needs_reviewer and not reviewer:
                raise RequestError("the request has no reviewer; load the page again and choose a name", "no_reviewer")
            if not request.headers.get("content-type", "").startswith("application/json"):
                raise RequestError("the body is no JSON; send Content-Type: application/json", "invalid_request")
            try:
                body = kind.model_validate_json(await request.body() or b"{}")
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"])) or "the body"
                raise RequestError(f"{where}: {first['msg']}; load the page again", "invalid_request") from None
            try:
                return await run_in_threadpool(work, body, reviewer, self._browser_of(request))
            except ReviewError as error:
                fault = RequestError(str(error), str(error.code))
                return JSONResponse(faults.body(fault), _STATUS.get(error.code, 400))

        return answer

    def decide(self, body: DecideBody, reviewer: str, browser: str) -> Response:
        """Record a decision."""
        made = self._store.decide(reviewer, body.row, body.answer(), body.key, browser)
        return JSONResponse({"decision": str(made.verdict), "entry": made.entry})

    def undo(self, body: Body, reviewer: str, browser: str) -> Response:
        """Take the last decision back."""
        return JSONResponse({"row": self._store.undo(reviewer, browser).number})

    def skip(self, body: RowBody, reviewer: str, browser: str) -> Response:
        """Put a row behind the others."""
        self._store.skip(reviewer, body.row)
        return JSONResponse({"row": body.row})

    def note(self, body: NoteBody, reviewer: str, browser: str) -> Response:
        """Keep a note."""
        self._store.set_note(reviewer, body.row, body.text)
        return JSONResponse({"row": body.row})

    def name(self, body: NameBody, reviewer: str, browser: str) -> Response:
        """Remember in the browser who reviews."""
        name = checked_name(body.name)
        if browser and name != reviewer:
            self._store.release(browser)
        response = JSONResponse({"name": name})
        response.set_cookie(self._cookies.reviewer, quote(name), max_age=_YEAR, httponly=True, samesite="strict")
        return response

    async def login(self, request: Request) -> Response:
        """A token in the header Authorization becomes a cookie, for this browser's session."""
        self._require_own_page(request)
        self._guard.require_token(dict(request.headers.raw).get(b"authorization", b""))
        given = request.headers.get("authorization", "").partition(" ")[2].strip()
        response = JSONResponse({})
        is_https = request.url.scheme == "https"
        response.set_cookie(self._cookies.token, given, httponly=True, samesite="strict", secure=is_https)
        return response

    # --- who asks --------------------------------------------------------------------------------------------------

    def _require_own_page(self, request: Request) -> None:
        headers = dict(request.headers.raw)
        if not self._guard.is_known(headers):
            raise UnauthorizedError("the token is not valid; ask whoever runs the review for one", "invalid_token")
        origin = request.headers.get("origin")
        is_foreign = request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        if is_foreign or (origin is not None and origin.partition("://")[2] != request.headers.get("host")):
            raise ForeignPageError("the request comes from another web page; use the review's own", "foreign_page")

    def _reviewer_of(self, request: Request) -> str | None:
        """The name that this browser was told, else the command line's."""
        given = _cookie(dict(request.headers.raw), self._cookies.reviewer)
        try:
            return checked_name(unquote(given)) if given else self._reviewer
        except ReviewError:
            return self._reviewer

    def _browser_of(self, request: Request) -> str:
        """What tells this browser from others, empty for one that has not seen a page yet."""
        given = _cookie(dict(request.headers.raw), self._cookies.browser)
        return given if _BROWSER_ID.fullmatch(given) else ""


def _cookie(headers: dict[bytes, bytes], name: str) -> str:
    """A cookie's value, empty without one."""
    value = cookie_parser(headers.get(b"cookie", b"").decode("latin-1")).get(name, "")
    return value if value.isascii() else ""
