"""Every answer that was paid for, on disk before it counts: a kill loses the requests on their way, and no answer.

A line is ``{"key", "content", "finish", "decision", "prompt_tokens", "completion_tokens"}``; the key is the hash of
the request (address and body), so the journal is a cache of any run with the same rows and settings. In memory is only
where each line begins.

Cost: one fsync an answer (some milliseconds); 150 bytes of memory an answer.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from clsgen_dist.errors import SettingsError
from clsgen_dist.io.files import writing
from clsgen_dist.io.json_lines import json_object


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    content: str
    finish: str
    """OpenAI's finish reason: ``stop``, ``length``, ``content_filter``."""
    prompt_tokens: int
    completion_tokens: int
    decision: str | list[str] | None = None
    """The class that ``clsgen serve`` decided on; several for a multi-label model."""


def request_key(url: str, body: dict[str, Any]) -> str:
    """The hash of a request's content."""
    return hashlib.sha256(json.dumps([url, body], sort_keys=True).encode()).hexdigest()[:32]


class Journal:
    """The journal of one run at a time.

    Raises:
        SettingsError: another process writes to it, or it is no journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path.with_name(path.name + ".lock"))
        with writing(path):
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise SettingsError(
                    f"{path} is written by another run; wait for it, or name another --output"
                ) from None
            self._file = path.open("ab+")
        self._places: dict[str, int] = {}
        self.prompt_tokens = self.completion_tokens = 0
        self._read()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def _read(self) -> None:
        self._file.seek(0)
        place = 0
        for line in self._file:
            fields = json_object(line)
            if fields is not None:
                if "prompt_tokens" not in fields:
                    raise SettingsError(f"{self.path} is no journal of answers; name another --journal")
                self._count(fields)
                if "key" in fields:
                    self._places[fields["key"]] = place
            place += len(line)
            is_torn = not line.endswith(b"\n")
        if place and is_torn:
            self._file.write(b"\n")

    def _count(self, fields: dict[str, Any]) -> None:
        self.prompt_tokens += fields["prompt_tokens"]
        self.completion_tokens += fields["completion_tokens"]

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer; it is on disk when this returns."""
        place = self._append({"key": key, **asdict(answer)})
        self._places[key] = place

    def add_lost(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count tokens of an answer that could not be read: it was paid for all the same."""
        self._append({"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens})

    def _append(self, fields: dict[str, Any]) -> int:
        with writing(self.path):
            place = self._file.seek(0, os.SEEK_END)
            self._file.write(json.dumps(fields).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self._count(fields)
        return place

    def get(self, key: str) -> Answer | None:
        """The answer to a request; None if there is none."""
        if key not in self._places:
            return None
        self._file.seek(self._places[key])
        fields = json_object(self._file.readline()) or {}
        fields.pop("key")
        return Answer(**fields)

    def close(self) -> None:
        """Let others write."""
        self._file.close()
        self._lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
