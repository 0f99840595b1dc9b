"""Start the server: model, backend, application, uvicorn; TERM drains."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from clsgen_dist.clients import EnginePredictor
from clsgen_dist.errors import SettingsError
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.serving.app import create_app
from clsgen_dist.serving.engine_backend import EngineBackend
from clsgen_dist.serving.guards import LOOPBACK_NAMES, PatientProtocol
from clsgen_dist.serving.local_backend import LocalBackend
from clsgen_dist.serving.service import Limits, Service
from clsgen_dist.serving.tickets import Backend

logger = logging.getLogger(__name__)

TOKENS_VARIABLE = "CLSGEN_TOKENS"


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How a model is served."""

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    """What clients call the model; None: the folder's name."""
    tokens_file: str | None = None
    """One token a line; beside it the environment variable CLSGEN_TOKENS, divided by commas."""
    without_tokens: bool = False
    """Allow anybody in, on an address that others reach."""
    max_batch: int = 16
    max_queue: int = 256
    max_characters: int = 200_000
    max_body: int = 4_000_000
    deadline: float = 120.0
    log_texts: bool = False


def serve(model: str | Path, options: ServeOptions | None = None, *, engine: str | None = None) -> None:
    """Serve an exported model until TERM or Ctrl-C; then no request is taken in, and those at work are finished.

    Args:
        model: folder that :func:`clsgen_dist.export` wrote.
        options: address and limits.
        engine: address of a server that serves the folder folded, which computes instead of this process.

    Raises:
        ModelError: ``model`` is no exported folder.
        ServerError: the engine does not answer.
        SettingsError: others could reach the server without a token.
    """
    import uvicorn

    options = options or ServeOptions()
    tokens = read_tokens(options)
    require_guarded(options, tokens)
    require_free(options.host, options.port)
    folder = Path(model)
    predictor, backend = _opened(folder, options, engine)
    limits = Limits(max_characters=options.max_characters, deadline=options.deadline, log_texts=options.log_texts)
    service = Service(folder, options.name or folder.resolve().name, predictor, backend, limits)
    # Any page may be made to call this machine; with tokens, or behind something that guards, that is of no use.
    hosts = () if tokens or options.without_tokens else (*LOOPBACK_NAMES, options.host)
    app = create_app(service, tokens=tokens, max_body=options.max_body, hosts=hosts)
    logger.info("serving %s on http://%s:%d (page at /, API at /docs)", folder, options.host, options.port)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # uvicorn's own, while it runs; then it raises TERM once more
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        http=PatientProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(options.deadline) + 1,
    )


def read_tokens(options: ServeOptions) -> list[str]:
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


def require_guarded(options: ServeOptions, tokens: list[str]) -> None:
    """SettingsError for an address that others reach, without tokens."""
    if tokens or options.without_tokens or _is_loopback(options.host):
        return
    raise SettingsError(
        f"--host is {options.host}, which others may reach, and there are no tokens; give --tokens_file, set "
        f"{TOKENS_VARIABLE}, or say --without_tokens true where something else guards the server"
    )


def require_free(host: str, port: int) -> None:
    """SettingsError for an address that cannot be listened on, before the model is loaded."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise SettingsError(
            f"--host {host} --port {port} cannot be listened on ({error.strerror}): port {port} is taken, or the "
            "address is not this machine's; choose another"
        ) from None


def _opened(folder: Path, options: ServeOptions, engine: str | None) -> tuple[Predictor | EnginePredictor, Backend]:
    sizes = {"max_batch": options.max_batch, "max_queue": options.max_queue}
    if engine is not None:
        remote = EnginePredictor(folder, engine)
        return remote, EngineBackend(remote, **sizes)
    local = Predictor(folder)
    return local, LocalBackend(local, **sizes)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
