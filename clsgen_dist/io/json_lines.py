"""Files of JSON lines that are added to while work goes on, and that a kill may leave with a torn last line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, none if it does not exist; a torn line is passed over."""
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        if (fields := json_object(line)) is not None:
            yield fields


def json_object(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None for a torn line, which may end within a character."""
    try:
        fields = json.loads(line.decode("utf-8"))
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def append_json_line(path: Path, fields: dict[str, Any]) -> None:
    """Add a line, on disk before this returns; a torn last line is ended first."""
    # A lone surrogate, which UTF-8 has no bytes for, becomes JSON's own escape.
    line = json.dumps(fields, ensure_ascii=False).encode("utf-8", "backslashreplace")
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())
