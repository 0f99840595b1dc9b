"""Who is let in, and for how long a client may take: tokens, host names, slow clients.

All of it is checked before a body is read, so that a stranger's costs nothing.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from clsgen_dist.serving.faults import RequestError, UnauthorizedError

HEAD_SECONDS, BODY_SECONDS = 10.0, 60.0
"""Within which a request's head and body must be there."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


class SlowError(RequestError):
    """A body that takes too long."""

    status = 408


class WrongHostError(RequestError):
    """A name in ``Host`` that is not the server's."""

    status = 421


class Guard:
    """Checks a request by its head.

    Args:
        tokens: any of which a client must send as its bearer token; empty: none is needed.
        hosts: names by which the server may be called; empty: any.
    """

    def __init__(self, tokens: Sequence[str] = (), hosts: Sequence[str] = ()) -> None:
        self._tokens, self._hosts = [token.encode() for token in tokens], {name.lower() for name in hosts}

    def require_token(self, authorization: bytes) -> None:
        """UnauthorizedError unless the header holds one of the tokens."""
        scheme, _, given = authorization.partition(b" ")
        # All are compared, each in constant time, so that the time says nothing of which was near.
        known = sum(hmac.compare_digest(given.strip(), token) for token in self._tokens)
        if self._tokens and (not known or scheme.lower() != b"bearer"):
            raise UnauthorizedError(
                "the request has no valid token; send the header Authorization: Bearer TOKEN", "invalid_token"
            )

    def require_host(self, host: bytes) -> None:
        """WrongHostError for another name: a page of a stranger's whose name was made to lead here (DNS rebinding)."""
        name = host.decode("latin-1").lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if self._hosts and name.rstrip(".") not in self._hosts:
            raise WrongHostError(
                f"the request is for the host {name[:100]!r}, expected one of {sorted(self._hosts)}; use one of these, "
                "or start the server with tokens, or with --without_tokens true",
                "wrong_host",
            )

    def require_head(self, headers: dict[bytes, bytes]) -> None:
        """What must be right before a body is read; routes without a body ask for the token themselves."""
        self.require_host(headers.get(b"host", b""))
        if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
            self.require_token(headers.get(b"authorization", b""))


class PatientProtocol(H11Protocol):
    """uvicorn's connection, which is closed where a request's head is not there in time.

    uvicorn itself waits for a first head without end: whoever sends it byte by byte holds a connection (slowloris).
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Stop to wait once a head is there, and begin again after its answer."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to wait for."""
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self) -> None:
        """Run the timer while a head is waited for."""
        waits = self.cycle is None or self.cycle.response_complete
        if waits and self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        elif not waits and self._timer is not None:
            self._timer.cancel()
            self._timer = None
