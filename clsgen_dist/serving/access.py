"""Where a server listens, and who may reach it: address, tokens, names of the machine."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from clsgen_dist.errors import SettingsError
from clsgen_dist.serving.guards import LOOPBACK_NAMES

TOKENS_VARIABLE = "CLSGEN_TOKENS"


@dataclass(frozen=True, kw_only=True)
class Access:
    """Address and tokens."""

    host: str = "127.0.0.1"
    port: int = 8000
    tokens_file: str | None = None
    """One token a line; beside it the environment variable CLSGEN_TOKENS, divided by commas."""
    without_tokens: bool = False
    """Allow anybody in, on an address that others reach."""


def allowed_hosts(access: Access, tokens: list[str]) -> tuple[str, ...]:
    """Names by which the server may be called; empty: any.

    Any page may be made to call this machine; with tokens, or behind something that guards, that is of no use.
    """
    return () if tokens or access.without_tokens else (*LOOPBACK_NAMES, access.host)


def read_tokens(options: Access) -> list[str]:
    """The tokens of file and environment; SettingsError if the file has none."""
    tokens = [token.strip() for token in os.environ.get(TOKENS_VARIABLE, "").split(",") if token.strip()]
    if options.tokens_file is not None:
        try:
            lines = Path(options.tokens_file).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise SettingsError(f"--tokens_file {options.tokens_file} cannot be read ({error.strerror})") from None
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise SettingsError(f"--tokens_file {options.tokens_file} has no token, expected one a line; write one")
        tokens += found
    if not all(map(str.isascii, tokens)):
        raise SettingsError("a token has characters other than ASCII, which HTTP headers cannot hold; choose another")
    return tokens


def require_guarded(options: Access, tokens: list[str]) -> None:
    """SettingsError for an address that others reach, without tokens."""
    if tokens or options.without_tokens or _is_loopback(options.host):
        return
    raise SettingsError(
        f"--host is {options.host}, which others may reach, and there are no tokens; give --tokens_file, set "
        f"{TOKENS_VARIABLE}, or say --without_tokens true where something else guards the server"
    )


def require_free(host: str, port: int) -> None:
    """SettingsError for an address that cannot be listened on, before anything else is done."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise SettingsError(
            f"--host {host} --port {port} cannot be listened on ({error.strerror}): port {port} is taken, or the "
            "address is not this machine's; choose another"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
