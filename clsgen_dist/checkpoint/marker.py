"""The marker of a checkpoint, ``committed.json``: what was saved, and proof that it is complete.

    format, world_size     3; how many ranks wrote it
    state, identity        where the run stood, and what must be equal to resume it
    canary, prompt         the scores of a fixed text; the rendered prompt
    files                  size and SHA-256 of every file
    sha256                 of the marker itself

A checkpoint without marker is a save that was killed. Markers of formats 1 and 2 are read as if they were of format 3.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from clsgen_dist.checkpoint.state import SpikeState, TrainState, best_by
from clsgen_dist.errors import CheckpointError
from clsgen_dist.io.files import atomic_write

FORMAT = 3
MARKER = "committed.json"
SETTINGS_FILE = "settings.yaml"
SAVING, DELETING = "saving", "deleting"
LEFTOVER = (SAVING, DELETING)
"""Files that mark a folder without marker as ours to delete."""
_NOTE = """Checkpoints of a clsgen_dist run, in DeepSpeed's sharded format. A folder counts if it holds committed.json.

A model to use:    clsgen export --checkpoint RUN --output DIR
To resume:         clsgen train ... --resume auto

zero_to_fp32.py, which DeepSpeed copies into each folder, gives the trained tensors alone: without the backbone's frozen
weights, and with LoRA updates apart.
"""


def read_marker(folder: Path) -> dict[str, Any]:
    """The marker of a committed checkpoint; CheckpointError if there is none or it cannot be read."""
    try:
        marker = json.loads((folder / MARKER).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MARKER}: its save was not finished, so it does not count") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / MARKER} cannot be read ({error}); use an earlier checkpoint") from None
    if not isinstance(marker, dict) or marker.pop("sha256", None) != _digest(marker):
        raise CheckpointError(f"{folder / MARKER} does not match its own checksum; use an earlier checkpoint")
    if "format" not in marker:
        marker = _from_format_1(marker)
    return _from_format_2(marker) if marker["format"] < FORMAT else marker


def commit(folder: Path, marker: dict[str, Any]) -> None:
    """Publish a checkpoint's marker: from here on it counts."""
    marker = {"format": FORMAT, **marker}
    text = json.dumps({**marker, "sha256": _digest(marker)}, indent=1)
    atomic_write(folder / MARKER, text, durable=True)
    (folder / SAVING).unlink(missing_ok=True)
    atomic_write(folder.parent / "latest", folder.name, durable=True)
    if not (note := folder.parent / "README.txt").exists():
        note.write_text(_NOTE)


def _digest(marker: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(marker, sort_keys=True).encode()).hexdigest()


def verify(folder: Path, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    """The marker, after every file's size and checksum matched it; CheckpointError names the first that does not.

    Of several ranks each looks at its share of the files.
    """
    marker = read_marker(folder)
    for name in sorted(marker["files"])[rank::ranks]:
        path, expected = folder / name, marker["files"][name]
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if path.stat().st_size != expected["bytes"]:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes, expected {expected['bytes']}")
        if _sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path} does not match its checksum")
    return marker


def seal(path: Path) -> dict[str, Any]:
    """Flush a written file to the disk, and its size and checksum."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def train_state(marker: dict[str, Any]) -> TrainState:
    """The training state of a marker."""
    state = dict(marker["state"])
    spikes = state.pop("spikes")
    recent = {term: tuple(losses) for term, losses in spikes.pop("recent").items()}
    return TrainState(**state, spikes=SpikeState(**spikes, recent=recent))


def _from_format_1(marker: dict[str, Any]) -> dict[str, Any]:
    """A marker of version 0.1: it named what decides the order, and what is best, in words."""
    state, identity = dict(marker["state"]), dict(marker["identity"])
    state["spikes"] = state.pop("guard")
    if state["best_by"]:
        state["best_by"] = best_by(*state["best_by"].split(" of the dev rows "))
    identity["order"] = {_order_code(words): value for words, value in identity["order"].items()}
    return {**marker, "state": state, "identity": identity, "canary": marker["probe"], "format": 1}


def _from_format_2(marker: dict[str, Any]) -> dict[str, Any]:
    """A marker of format 2: the spike guard knew two losses by field, and every label space was single."""
    spikes = dict(marker["state"]["spikes"])
    spikes["recent"] = {name: spikes.pop(f"recent_{name}") for name in ("generation", "classification")}
    identity = {**marker["identity"], "label_space": "single", "decide": "before", "bias_correction": None}
    return {**marker, "state": {**marker["state"], "spikes": spikes}, "identity": identity}


def _order_code(words: str) -> str:
    if not (stage := re.fullmatch(r"stage (\d+): (\w+)(.*)", words)):
        return {"difficulty of the rows (sha256)": "difficulty_sha256"}.get(words, words)
    return f"stages.{int(stage[1]) - 1}.{'last_rows' if stage[3] else stage[2]}"
