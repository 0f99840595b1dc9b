"""What makes a table, and so where it is kept.

A table is a folder next to the data, ``.clsgen/NAME-KEY/``, or in the user's cache where that folder cannot be written.
The key is a hash of everything that the table depends on: the file, the columns, the label space, the tokenizer, the
longest explanation. The prompt is not part of it: texts are tokenised without it, and it is put around them when a
sample is made.

Cost: at most 64 blocks of 64 KB are read from each file, whatever its size.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.label_cells import Space
from clsgen_dist.data.reading.records import Part
from clsgen_dist.io.cache import cache_dir

FORMAT = 7
"""Version of the files and of the rules by which cells are read: a table of another version is built again."""
_NOT_STORED = ("provenance", "groups", "cluster")
"""Columns that no table has."""
_SAMPLED_BLOCKS, _BLOCK = 64, 65_536


@dataclass(frozen=True)
class TableSpec:
    """What a table depends on besides its source."""

    columns: Columns
    labels: tuple[str, ...] | None
    """The label space; None accepts any label."""
    max_explanation_length: int
    """Longest explanation in tokens; a row with a longer one is rejected."""
    tokens_of: Callable[[Sequence[str]], list[list[int]]]
    end_token: int
    """Token after each explanation."""
    tokenizer: str
    """Identifies the tokenizer."""
    space: Space = "auto"
    """How label cells are read."""
    require_target: bool = True
    """Whether a row with neither label nor explanation is rejected."""


def table_folder(source: Part, spec: TableSpec) -> Path:
    """The folder of a source's table, whether or not it has been built."""
    return _tables_dir(source) / f"{display_name(source)}-{_key(source, spec)}"


def display_name(source: Part) -> str:
    """The file's name with its split, short enough for a file system."""
    name = "-".join(filter(None, [Path(source.path).name, source.split]))
    return name.encode()[:100].decode(errors="ignore")


def _tables_dir(source: Part) -> Path:
    """``.clsgen`` next to the data, or a folder of the user's cache where that cannot be written."""
    data_dir = Path(source.path).resolve().parent
    if source.kind != "hub":
        tables = data_dir / ".clsgen"
        place = tables if tables.exists() else data_dir
        # The mode counts too: root may write anywhere, but a folder marked read-only is left alone.
        if place.is_dir() and os.access(place, os.W_OK) and place.stat().st_mode & 0o222:
            return tables
    return cache_dir() / "tables"


def _key(source: Part, spec: TableSpec) -> str:
    path = source.path if source.kind == "hub" else str(Path(source.path).resolve())
    depends_on = {
        "format": FORMAT,
        "source": [source.kind, path, source.split],
        "content": _fingerprint(source),
        "columns": {name: value for name, value in asdict(spec.columns).items() if name not in _NOT_STORED},
        "labels": spec.labels,
        "space": spec.space,
        "max_explanation_length": spec.max_explanation_length,
        "end_token": spec.end_token,
        "tokenizer": spec.tokenizer,
        **({} if spec.require_target else {"require_target": False}),
    }
    return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]


def _fingerprint(source: Part) -> object:
    """Changes when the source changes: size, time and a digest of 64 blocks of each file."""
    if source.kind == "hub":
        from clsgen_dist.data.reading.records import dataset_of

        return dataset_of(source)._fingerprint
    path = Path(source.path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [(f.stat().st_size, f.stat().st_mtime_ns, _digest_of_blocks(f)) for f in files]


def _digest_of_blocks(file: Path) -> str:
    digest, size = hashlib.sha256(), file.stat().st_size
    with file.open("rb") as data:
        for block in range(min(_SAMPLED_BLOCKS, -(-size // _BLOCK))):
            data.seek(block * (size // _SAMPLED_BLOCKS) if size > _SAMPLED_BLOCKS * _BLOCK else block * _BLOCK)
            digest.update(data.read(_BLOCK))
    return digest.hexdigest()
