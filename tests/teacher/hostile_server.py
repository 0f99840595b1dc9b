"""A server that speaks OpenAI's chat completions and misbehaves as a test prescribes."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


class HostileServer:
    """``faults`` names what happens to each try of a question; beyond them it is answered with ``reply``."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.faults: list[str] = []
        self.reply: Callable[[Body], str] = lambda body: f"It is {label_told(body)}, says the text."
        self.seconds = 0.0
        self.usage: dict[str, int] | None = {"prompt_tokens": 100, "completion_tokens": 20}
        self.tries: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.times: list[float] = []
        self.keys: set[str | None] = set()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()


def row_of(body: Body) -> dict[str, Any]:
    """The JSON object in the message."""
    lines = body["messages"][0]["content"].split("\n")
    row: dict[str, Any] = json.loads(next(line for line in lines if line.startswith("{")))
    return row


def label_told(body: Body) -> str:
    """The label that the message tells."""
    return str(body["messages"][0]["content"].partition("belongs to the class '")[2].partition("'")[0])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hostile: HostileServer

    def do_GET(self) -> None:
        self._send(200, json.dumps({"object": "list", "data": [{"id": "big", "object": "model"}]}).encode())

    def do_POST(self) -> None:
        hostile = self.hostile
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = json.dumps(body, sort_keys=True)
        with hostile.lock:
            attempt = hostile.tries[question]
            hostile.tries[question] += 1
            hostile.times.append(time.monotonic())
            hostile.keys.add(self.headers["Authorization"])
            hostile.at_once += 1
            hostile.most_at_once = max(hostile.most_at_once, hostile.at_once)
        try:
            time.sleep(hostile.seconds)
            fault = hostile.faults[attempt] if attempt < len(hostile.faults) else ""
            self._answer(fault, body, question)
        finally:
            with hostile.lock:
                hostile.at_once -= 1

    def _answer(self, fault: str, body: Body, question: str) -> None:
        hostile = self.hostile
        message = {"role": "assistant", "content": hostile.reply(body) if fault != "null" else None}
        whole: Body = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }
        if hostile.usage is not None:
            whole["usage"] = hostile.usage
        data = json.dumps(whole).encode()
        if fault.isdigit() or ":" in fault:
            status, _, wait = fault.partition(":")
            said = {"error": {"message": f"no, {self.headers['Authorization']}", "code": None}}
            return self._send(int(status), json.dumps(said).encode(), {"Retry-After": wait} if wait else {})
        if fault == "quota":
            return self._send(429, b'{"error": {"message": "no money", "code": "insufficient_quota"}}')
        if fault == "cut":
            self._send(200, data[: len(data) // 2], {"Content-Length": str(len(data))})
            self.close_connection = True
            return None
        if fault == "closed":
            self.close_connection = True
            return None
        if fault == "garbage":
            return self._send(200, b'{"choices": [{"mess')
        if fault == "nested":
            return self._send(200, b"[" * 200_000)
        if fault == "huge":
            message["content"] = "so " * 100_000
            return self._send(200, json.dumps(whole).encode())
        if fault == "page":
            return self._send(200, b"<html>busy</html>", {"Content-Type": "text/html"})
        if fault == "shape":
            return self._send(200, b'{"choices": [], "usage": null}')
        if fault == "drip":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            try:
                for _ in range(200):
                    self.wfile.write(b" ")
                    time.sleep(0.05)
            except OSError:
                self.close_connection = True
            return None
        with hostile.lock:
            hostile.answered[question] += 1
        return self._send(200, data)

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error of the server."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def hostile_server() -> Iterator[HostileServer]:
    """A server in a thread."""
    server = _Server(("127.0.0.1", 0), _Handler)
    hostile = HostileServer(f"http://127.0.0.1:{server.server_address[1]}")
    _Handler.hostile = hostile
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hostile
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
