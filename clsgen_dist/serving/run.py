"""Start the server: model, backend, application, uvicorn; TERM drains."""

from __future__ import annotations

import logging
import signal
from dataclasses import dataclass
from pathlib import Path

from clsgen_dist.clients import EnginePredictor
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.serving.access import Access, allowed_hosts, read_tokens, require_free, require_guarded
from clsgen_dist.serving.app import create_app
from clsgen_dist.serving.engine_backend import EngineBackend
from clsgen_dist.serving.guards import PatientProtocol
from clsgen_dist.serving.local_backend import LocalBackend
from clsgen_dist.serving.service import Limits, Service
from clsgen_dist.serving.tickets import Backend

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServeOptions(Access):
    """How a model is served."""

    name: str | None = None
    """What clients call the model; None: the folder's name."""
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
    app = create_app(service, tokens=tokens, max_body=options.max_body, hosts=allowed_hosts(options, tokens))
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


def _opened(folder: Path, options: ServeOptions, engine: str | None) -> tuple[Predictor | EnginePredictor, Backend]:
    sizes = {"max_batch": options.max_batch, "max_queue": options.max_queue}
    if engine is not None:
        remote = EnginePredictor(folder, engine)
        return remote, EngineBackend(remote, **sizes)
    local = Predictor(folder)
    return local, LocalBackend(local, **sizes)
