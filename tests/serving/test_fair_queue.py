"""Requests take turns, whatever their lengths."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import requests

from clsgen_dist.serving.fair_queue import FairQueue
from clsgen_dist.serving.faults import BusyError
from tests.inference.conftest import hand_made_export
from tests.serving.live_server import live_server


def post(server, path, body):
    return requests.post(f"{server.url}/v1/{path}", json=body, timeout=60)


def test_a_long_batch_leaves_others_their_turn(tmp_path, free_port):
    folder = hand_made_export(tmp_path / "m", ["benign", "malignant"])
    with live_server(folder, free_port(), max_batch=2, max_queue=8) as server, ThreadPoolExecutor(4) as pool:
        body = {"texts": [f"text {n}" for n in range(60)], "max_tokens": 40}
        batch = pool.submit(post, server, "batch", body)
        while server.backend.waiting < 40:
            time.sleep(0.005)
        others = [pool.submit(post, server, "explain", {"text": "one", "max_tokens": 5, "stream": False})]
        others += [pool.submit(post, server, "batch", {"texts": ["a", "b", "c"], "max_tokens": 5})]
        assert [other.result().status_code for other in others] == [200] * 2
        assert not batch.done() and server.backend.waiting > 10, "they did not wait for its end"
        assert len(batch.result().json()["answers"]) == 60


def test_requests_take_turns():
    tickets = {name: SimpleNamespace(name=name, task=SimpleNamespace(is_cancelled=False)) for name in "abcdefg"}
    queue = FairQueue(4)
    queue.add([tickets[name] for name in "abcd"], 3)
    queue.add([tickets["e"]], 3)
    queue.add([tickets["f"]], 3)
    with pytest.raises(BusyError, match="6 texts are waiting and 1 more exceed the queue of 4") as caught:
        queue.add([tickets["g"]], 2.5)
    assert caught.value.headers == {"Retry-After": "3"}
    tickets["c"].task.is_cancelled = tickets["e"].task.is_cancelled = True
    queue.add([tickets["g"]], 3)
    assert queue.first().name == "a" and len(queue) == 5
    assert [ticket.name for ticket in queue.take_all()] == ["a", "f", "g", "b", "d"] and len(queue) == 0
