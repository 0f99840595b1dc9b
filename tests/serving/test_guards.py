"""Who is let in: tokens before bodies, host names, slow clients, files outside the page."""

from __future__ import annotations

import json
import socket
import time

import pytest
import requests

from clsgen_dist.errors import SettingsError
from clsgen_dist.serving import guards
from clsgen_dist.serving.guards import LOOPBACK_NAMES, Guard, WrongHostError
from clsgen_dist.serving.run import ServeOptions, read_tokens
from tests.inference.conftest import hand_made_export
from tests.serving.live_server import live_server


@pytest.fixture(scope="module")
def server(tmp_path_factory, free_port):
    folder = hand_made_export(tmp_path_factory.mktemp("guards") / "m", ["benign", "malignant"])
    with live_server(folder, free_port(), tokens=("key",), hosts=LOOPBACK_NAMES) as running:
        yield running


def raw(server, head, body=b"", seconds=5.0):
    """What the server answers to bytes, until it closes the connection or says nothing more."""
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + body)
        connection.settimeout(seconds)
        received = b""
        try:
            while data := connection.recv(65536):
                received += data
        except TimeoutError:
            return received.decode(), False
        return received.decode(), True


CLASSIFY = "POST /v1/classify HTTP/1.1\nHost: localhost\nContent-Type: application/json\n"


def test_a_stranger_is_refused_before_the_body_is_read(server):
    """None of the bytes that are announced come; a body that cannot be parsed is not looked at."""
    answer, _ = raw(server, f"{CLASSIFY}Content-Length: 90000\nConnection: close\n\n", b"{")
    assert answer.startswith("HTTP/1.1 401") and "invalid_token" in answer
    for authorization in ("Bearer wrong", "Basic key", "key", "Bearer  ", "Bearer key2", "Bearer ke"):
        answer = requests.post(
            f"{server.url}/v1/classify", data="{broken", headers={"Authorization": authorization}, timeout=9
        )
        assert answer.status_code == 401
    for known in ("Bearer key", "bearer key"):
        answer = requests.post(
            f"{server.url}/v1/classify", json={"text": "a"}, headers={"Authorization": known}, timeout=9
        )
        assert answer.status_code == 200


def test_only_names_of_this_machine_are_answered(server):
    """A page whose name was made to lead to 127.0.0.1 (DNS rebinding) has its own name in Host."""
    port = server.url.rsplit(":", 1)[1]
    own = ("localhost", f"127.0.0.1:{port}", f"[::1]:{port}", "LOCALHOST.")
    others = ("evil.example", f"localhost.evil.example:{port}", "127.0.0.1.evil", "")
    for host, status in [*((name, 200) for name in own), *((name, 421) for name in others)]:
        answer, _ = raw(server, f"GET /health HTTP/1.1\nHost: {host}\nConnection: close\n\n")
        assert answer.startswith(f"HTTP/1.1 {status}"), (host, answer[:200])
    Guard(hosts=()).require_host(b"any.example")
    with pytest.raises(WrongHostError, match=r"'evil', expected one of \['127.0.0.1', '::1', 'localhost'\]"):
        Guard(hosts=LOOPBACK_NAMES).require_host(b"evil")


def test_other_pages_cannot_use_the_server(server):
    """No CORS header lets a page of another origin read; a form, which needs none, is not taken for JSON."""
    headers = {"Origin": "https://evil.example", "Authorization": "Bearer key"}
    asked = requests.options(
        f"{server.url}/v1/classify", headers={**headers, "Access-Control-Request-Method": "POST"}, timeout=9
    )
    form = requests.post(
        f"{server.url}/v1/classify", data='{"text": "a"}', headers={**headers, "Content-Type": "text/plain"}, timeout=9
    )
    assert asked.status_code == 405 and form.status_code == 422
    for answer in (asked, form):
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]


def test_who_sends_byte_by_byte_is_disconnected(server, monkeypatch):
    monkeypatch.setattr(guards, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(guards, "BODY_SECONDS", 0.3)
    for head in ("", "GET / HTTP/1.1\nHo"):
        begun = time.monotonic()
        assert raw(server, head) == ("", True) and time.monotonic() - begun < 3, head
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), 3) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while b'"ok"' not in received:
            received += connection.recv(1000)
        connection.sendall(b"GET /")  # the head of a second request
        assert connection.recv(1000) == b""
    slow = f"{CLASSIFY}Authorization: Bearer key\nContent-Length: 50\n\n"
    answer, _ = raw(server, slow, b'{"text": "')
    assert answer.startswith("HTTP/1.1 408") and "only 10 bytes of the request were there" in answer
    whole = json.dumps({"text": "a" * 38}).encode()
    answer, _ = raw(server, slow, whole)
    assert len(whole) == 50 and answer.startswith("HTTP/1.1 200")


def test_an_answer_may_take_longer_than_a_head(server, monkeypatch):
    monkeypatch.setattr(guards, "HEAD_SECONDS", 0.05)
    body = {"text": "a", "max_tokens": 170, "stream": False, "decoding": {"redraws": 0}}
    answer = requests.post(f"{server.url}/v1/explain", json=body, headers={"Authorization": "Bearer key"}, timeout=30)
    assert answer.status_code == 200 and answer.elapsed.total_seconds() > 0.05


@pytest.mark.parametrize(
    "path",
    ["/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "/....//app.py", "//etc/passwd", "/%00", "/x/../../app.py",
     "/\\..\\app.py", "/%c0%ae%c0%ae/app.py", "/~root", "/." * 2000],
)  # fmt: skip
def test_no_file_outside_the_page_is_served(server, path):
    answer, _ = raw(server, f"GET {path} HTTP/1.1\nHost: localhost\nConnection: close\n\n")
    status = answer.split()[1]
    assert status in ("307", "400", "404") or (status == "200" and "<title>" in answer), answer[:200]
    assert status != "307" or "\nlocation: http://localhost/" in answer
    assert "def create_app" not in answer and "root:" not in answer


def test_upgrades_to_websockets_are_not_taken(server):
    upgrade = "GET / HTTP/1.1\nHost: localhost\nUpgrade: websocket\nConnection: Upgrade\nSec-WebSocket-Version: 13\n"
    answer, _ = raw(server, f"{upgrade}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n\n", seconds=1)
    assert answer.startswith("HTTP/1.1 200")  # the page, as if nothing had been asked


def test_tokens_that_headers_cannot_hold_are_refused(monkeypatch):
    monkeypatch.setenv("CLSGEN_TOKENS", "good,sécond")
    with pytest.raises(SettingsError, match="other than ASCII"):
        read_tokens(ServeOptions())
