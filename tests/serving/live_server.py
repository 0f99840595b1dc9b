"""A server in this process: a hand-made model, uvicorn in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn

from clsgen_dist.clients import EnginePredictor
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.serving.app import create_app
from clsgen_dist.serving.engine_backend import EngineBackend
from clsgen_dist.serving.guards import PatientProtocol
from clsgen_dist.serving.local_backend import LocalBackend
from clsgen_dist.serving.service import Limits, Service


@contextmanager
def live_server(
    folder: Path, port: str, *, engine: str | None = None, tokens: tuple[str, ...] = (), **options: Any
) -> Iterator[SimpleNamespace]:
    """A server of an exported folder; ``options``: max_batch, max_queue, max_characters, max_body, deadline, hosts."""
    sizes = {"max_batch": options.get("max_batch", 4), "max_queue": options.get("max_queue", 64)}
    if engine is None:
        predictor: Any = Predictor(folder)
        backend: Any = LocalBackend(predictor, **sizes)
    else:
        predictor = EnginePredictor(folder, engine)
        backend = EngineBackend(predictor, **sizes)
    limits = Limits(
        max_characters=options.get("max_characters", 2000),
        deadline=options.get("deadline", 30.0),
        log_texts=options.get("log_texts", False),
    )
    service = Service(folder, "served", predictor, backend, limits)
    app = create_app(service, tokens=tokens, max_body=options.get("max_body", 100_000), hosts=options.get("hosts", ()))
    server = uvicorn.Server(uvicorn.Config(app, port=int(port), http=PatientProtocol, ws="none", log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(200):
        if server.started:
            break
        time.sleep(0.05)
    yield SimpleNamespace(url=f"http://127.0.0.1:{port}", service=service, backend=backend, predictor=predictor)
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()
