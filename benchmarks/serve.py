"""The server under load, and what it costs over the predictor.

    python benchmarks/serve.py                                  # SmolLM2-135M with a random head
    python benchmarks/serve.py --model runs/demo/model --clients 500 --rows 64

1. Overhead: the same rows through ``Predictor.predict`` and through a server of the same model, as many requests at a
   time as a batch of the predictor; rounds are interleaved, and medians compared.
2. Load: many clients at once. Of twenty, one sends and reads slowly, one breaks off in mid-stream, one sends too much,
   one sends nonsense. Whoever gets 429 comes again after ``Retry-After``. Counted: answers by kind, what was lost;
   seconds to the probability and to the end of the explanation, from the first try; the server's memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from inference import demo_texts, export_backbone

KINDS = ["plain"] * 16 + ["slow", "breaks off", "too much", "nonsense"]


@dataclass
class Seen:
    """What the clients saw."""

    answers: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    """Seconds to the probability."""
    last: list[float] = field(default_factory=list)
    """Seconds to the end."""
    retries: int = 0


@contextlib.contextmanager
def server(model: Path, batch: int, queue: int) -> Iterator[tuple[int, psutil.Process]]:
    """A server of the model: its port and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "clsgen_dist", "serve", "--model", str(model), "--port", str(port)]
    command += ["--max_batch", str(batch), "--max_queue", str(queue), "--deadline", "3600"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "CLSGEN_TOKENS": ""})
    try:
        while asyncio.run(ready(port)) is False:
            assert process.poll() is None, "the server ended"
            time.sleep(0.2)
        yield port, psutil.Process(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()


async def ready(port: int) -> bool:
    try:
        status, *_ = await ask(port, "GET", "/ready")
    except OSError:
        return False
    return status == 200


async def ask(
    port: int, method: str, path: str, body: bytes = b"", *, slowly: bool = False, leave: bool = False
) -> tuple[int, dict[str, str], bytes, float]:
    """Status, headers, body, and when the first event came; ``leave``: after that event."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    first = 0.0
    try:
        writer.write(head.encode())
        for start in range(0, len(body), 20) if slowly else [0]:
            writer.write(body[start : start + 20] if slowly else body)
            await writer.drain()
            if slowly:
                await asyncio.sleep(0.05)
        status = int((await reader.readline()).split()[1])
        headers = {}
        while (line := (await reader.readline()).decode().strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        found = b""
        while piece := await reader.read(50 if slowly else 65536):
            found += piece
            if not first and b"\n\n" in found:
                first = time.monotonic()
                if leave:
                    break
            if slowly:
                await asyncio.sleep(0.02)
        return status, headers, found, first
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def client(port: int, kind: str, text: str, new_tokens: int, seen: Seen) -> None:
    """One client, which comes again while the server is busy."""
    body = json.dumps({"text": text, "max_tokens": new_tokens, "decoding": {"redraws": 0}}).encode()
    if kind == "too much":
        body = json.dumps({"text": "x" * 5_000_000}).encode()
    elif kind == "nonsense":
        body = b'{"text": [1, 2'
    begun = time.monotonic()
    while True:
        try:
            status, headers, found, first = await ask(
                port, "POST", "/v1/explain", body, slowly=kind == "slow", leave=kind == "breaks off"
            )
        except (OSError, IndexError) as error:
            outcome = "413 or closed" if kind == "too much" else f"lost ({type(error).__name__})"
            seen.answers[f"{kind}: {outcome}"] += 1
            return
        if status != 429:
            break
        seen.retries += 1
        await asyncio.sleep(float(headers["retry-after"]) * random.uniform(0.5, 1.0))
    if kind in ("plain", "slow") and status == 200:
        if b"event: done" not in found:
            seen.answers[f"{kind}: lost (no end)"] += 1
            return
        seen.first.append(first - begun)
        seen.last.append(time.monotonic() - begun)
    seen.answers[f"{kind}: {'413 or closed' if kind == 'too much' and status == 413 else status}"] += 1


async def load(port: int, process: psutil.Process, own: argparse.Namespace) -> tuple[Seen, list[float]]:
    """All clients at once, and the server's memory in MB while they are there."""
    seen, memory, texts = Seen(), [], demo_texts(own.rows)

    async def watch() -> None:
        while True:
            memory.append(process.memory_info().rss / 1e6)
            await asyncio.sleep(0.5)

    watching = asyncio.create_task(watch())
    await asyncio.gather(
        *(client(port, KINDS[n % len(KINDS)], texts[n % len(texts)], own.new_tokens, seen) for n in range(own.clients))
    )
    watching.cancel()
    return seen, memory


def overhead(model: Path, own: argparse.Namespace) -> None:
    """Seconds for the same rows, by the predictor and by the server."""
    from clsgen_dist.decoding.settings import DecodingSettings
    from clsgen_dist.inference.predict import Predictor

    predictor, texts = Predictor(model), demo_texts(own.rows)

    async def served(port: int) -> list[str]:
        room = asyncio.Semaphore(own.batch)

        async def one(text: str) -> str:
            body = json.dumps({"text": text, "max_tokens": own.new_tokens, "stream": False, "decoding": {"redraws": 0}})
            async with room:
                _, _, found, _ = await ask(port, "POST", "/v1/explain", body.encode())
            return str(json.loads(found)["explanation"])

        return list(await asyncio.gather(*map(one, texts)))

    seconds: dict[str, list[float]] = {"predictor": [], "server": []}
    with server(model, own.batch, own.queue) as (port, _):
        for _ in range(own.rounds):
            start = time.perf_counter()
            found = predictor.predict(
                texts, batch_size=own.batch, max_new_tokens=own.new_tokens, decoding=DecodingSettings(redraws=0)
            )
            seconds["predictor"].append(time.perf_counter() - start)
            start = time.perf_counter()
            answers = asyncio.run(served(port))
            seconds["server"].append(time.perf_counter() - start)
    same = sum(a == p.explanation for a, p in zip(answers, found, strict=True))
    ours, theirs = (statistics.median(seconds[name]) for name in ("predictor", "server"))
    print(f"{len(texts)} rows, batch {own.batch}: predictor {ours:.1f} s, server {theirs:.1f} s, {theirs / ours:.2f}")
    print(f"equal explanations: {same} of {len(texts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an export; default: the embedded backbone with a random head")
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--queue", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    own = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        model = own.model or export_backbone(Path(folder) / "model")
        if own.rounds:
            overhead(model, own)
        with server(model, own.batch, own.queue) as (port, process):
            asyncio.run(ask(port, "POST", "/v1/classify", b'{"text": "warm"}'))
            before = process.memory_info().rss / 1e6
            start = time.monotonic()
            seen, memory = asyncio.run(load(port, process, own))
            seconds = time.monotonic() - start
            after = process.memory_info().rss / 1e6
    print(f"\n{own.clients} clients at once, {seconds:.0f} s, {seen.retries} times 429")
    for name, count in sorted(seen.answers.items()):
        print(f"  {name}: {count}")
    for name, values in (("to the probability", seen.first), ("to the end", seen.last)):
        cuts = statistics.quantiles(values, n=100)
        print(f"  {name}: p50 {cuts[49]:.1f} s, p95 {cuts[94]:.1f} s, p99 {cuts[98]:.1f} s")
    half = memory[len(memory) // 2 :]
    most = f"{max(memory):.0f} at most, {max(half):.0f} in the second half"
    print(f"  server's memory: {before:.0f} MB before, {most}, {after:.0f} after")


if __name__ == "__main__":
    main()
