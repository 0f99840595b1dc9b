"""A server that speaks the protocol of ``clsgen serve`` and answers what a test prescribes, for tests of the page."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "clsgen_dist/serving/page"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

HOLD = "hold"
"""Among the events: wait until the test calls ``release``."""
CUT = "cut"
"""Among the events: the connection breaks."""
END = "end"
"""Among the events: the answer ends properly, but too early."""

INFO: dict[str, Any] = {
    "model": "breast-mass",
    "labels": ["benign", "malignant"],
    "positive_label": "malignant",
    "label_space": "single",
    "thresholds": {"malignant": 0.37},
    "question": "Is the mass benign or malignant?",
    "calibrated": True,
    "max_characters": 200_000,
    "auth": False,
    "decide": "before",
}
DECISION: dict[str, Any] = {
    "id": "a1",
    "label": "malignant",
    "probabilities": {"benign": 0.22, "malignant": 0.78},
    "set": ["benign", "malignant"],
    "interval": {"malignant": [0.71, 0.84]},
    "hand_over": False,
}


def answer(*pieces: str, hold: bool = False, **changes: Any) -> list[Any]:
    """The events of a complete answer; ``hold``: wait before the first piece; ``changes`` to the last event."""
    decision = {**DECISION, **{k: v for k, v in changes.items() if k in DECISION or k == "truncated"}}
    events: list[Any] = [("decision", decision), *([HOLD] if hold else []), *(("text", {"text": p}) for p in pieces)]
    return [*events, ("done", {**decision, "explanation": "".join(pieces), "evidence": [], **changes})]


class ScriptedServer:
    """``replies`` are taken in turn: a list of events, or ``(status, headers, message)`` of an error."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.start_again()

    def start_again(self) -> None:
        self.info = dict(INFO)
        self.replies: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self.authorization: list[str | None] = []
        self.token: str | None = None
        self.gate = threading.Semaphore(0)
        self.client_left = threading.Event()

    def release(self) -> None:
        self.gate.release()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    scripted: ScriptedServer

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/v1/info":
            return self._whole(200, "application/json", json.dumps(self.scripted.info).encode())
        file = PAGE / (path.strip("/") or "index.html")
        if not file.is_file():
            return self._error(404, {}, f"no {path}")
        self._whole(200, TYPES[file.suffix], file.read_bytes())

    def do_POST(self) -> None:
        scripted = self.scripted
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        scripted.authorization.append(self.headers["Authorization"])
        if scripted.token is not None and self.headers["Authorization"] != f"Bearer {scripted.token}":
            return self._error(401, {"WWW-Authenticate": "Bearer"}, "a token is needed")
        scripted.requests.append(body)
        reply = scripted.replies.pop(0)
        if isinstance(reply, tuple):
            return self._error(*reply)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for event in reply:
                if event == HOLD:
                    while not scripted.gate.acquire(timeout=0.02):
                        self._chunk(b": still here\n\n")
                elif event == CUT:
                    self.close_connection = True
                    return
                elif event != END:
                    name, data = event
                    text = f"event: {name}\r\ndata: {json.dumps(data, ensure_ascii=False)}\r\n\r\n"
                    # Pieces may end anywhere, inside a character too.
                    for part in _halves(text.encode()):
                        self._chunk(part)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            scripted.client_left.set()
            self.close_connection = True

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()
        time.sleep(0.002)

    def _error(self, status: int, headers: dict[str, str], message: str) -> None:
        error = {"error": {"message": message, "type": "error", "code": "code"}}
        self._whole(status, "application/json", json.dumps(error).encode(), headers)

    def _whole(self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        policy = {"Content-Security-Policy": "default-src 'self'", "X-Content-Type-Options": "nosniff"}
        sizes = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        for name, value in {**policy, **sizes, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that drops a connection is no error of the server."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _halves(data: bytes) -> Iterator[bytes]:
    emoji = data.find(b"\xf0\x9f")
    middle = emoji + 2 if emoji >= 0 else len(data) - 3
    yield data[:middle]
    yield data[middle:]


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    server = _Server(("127.0.0.1", 0), _Handler)
    scripted = ScriptedServer(f"http://127.0.0.1:{server.server_address[1]}/")
    _Handler.scripted = scripted
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield scripted
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
