"""From a source to a table on disk: read once, in parallel.

    source ──parts──▶ [read, check, tokenise] × cores ──▶ part-00000.arrow … + columns of numbers ──▶ RowTable

A table is a folder beside the data, ``.clsgen/NAME-KEY/`` (in the user's cache where that folder cannot be written).
The key is a hash of everything that made it: the file, the columns, the label space, the tokenizer, the longest
explanation. The prompt is not in it: a row's text is kept in tokens by itself, and the prompt is laid around it when
the row is shown.

A build that was killed goes on where it stopped; one process builds, the others wait.

Cost: a build reads the source twice and writes about its size twice over (text and tokens); measured by
``benchmarks/data_scale.py``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clsgen_dist.data.example import Columns, Example
from clsgen_dist.data.reading.ingest import (
    Noticed,
    add_notices,
    duplicate,
    iter_rows,
)
from clsgen_dist.data.reading.records import Part, cut, find_source
from clsgen_dist.data.reading.rejection import Fault, RejectedRow, Rejection, write_quarantine
from clsgen_dist.data.tables.table import DamagedTableError, RowTable, TableCard
from clsgen_dist.data.tables.workers import worker_pool
from clsgen_dist.errors import DataError
from clsgen_dist.io.cache import cache_dir

FORMAT = 4
"""Of tables on disk, and of the rules by which cells are read: with another number they are built again."""
_BATCH_ROWS, _BATCH_CHARACTERS = 1024, 2**22
"""A record batch is full with either: long texts are not gathered a thousand at a time."""
_SAMPLED_BLOCKS, _BLOCK = 64, 65_536
_MOST_CLASSES = 2**15 - 1

_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "line": pa.int64(),
        "text": pa.large_string(),
        "label": pa.string(),
        "difficulty": pa.float64(),
        "explanations": pa.list_(pa.large_string()),
        "text_ids": pa.list_(pa.int32()),
        "explanation_ids": pa.list_(pa.list_(pa.int32())),
        "id_hash": pa.uint64(),
    }
)


@dataclass(frozen=True)
class TableSpec:
    """What makes a table, besides its source."""

    columns: Columns
    labels: tuple[str, ...] | None
    """The label space; None takes what is found."""
    max_explanation_length: int
    """Longest explanation in tokens; a row with a longer one is rejected."""
    tokens_of: Callable[[Sequence[str]], list[list[int]]]
    end_token: int
    """Token after each explanation."""
    tokenizer: str
    """What tells this tokenizer from another."""


def open_table(source: str, spec: TableSpec, say: Callable[[str], None] = lambda text: None) -> RowTable:
    """The table of a source, built if it is not there yet.

    Args:
        source: see :func:`clsgen_dist.data.reading.ingest.read_examples`.
        spec: what makes the table.
        say: told when a table is built, and where.

    Raises:
        DataError: the source cannot be read, or the table not be written.
    """
    from filelock import FileLock

    whole = find_source(source)
    folder = _home(whole) / f"{_name(whole)}-{_key(whole, spec)}"
    try:
        if folder.is_dir():
            with suppress(DamagedTableError):
                return RowTable(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if folder.is_dir():
                try:
                    return RowTable(folder)
                except DamagedTableError as error:
                    say(f"{error}: it is built anew")
                    shutil.rmtree(folder)
            build_table(whole, spec, folder, say)
    except OSError as error:
        raise DataError(
            f"the tokens of {source} cannot be kept in {folder} ({error}); make room there, see who may write to it, "
            "or move the user's cache with XDG_CACHE_HOME"
        ) from error
    return RowTable(folder)


# --- where, and under which name -----------------------------------------------------------------------------------


def _home(whole: Part) -> Path:
    """``.clsgen`` beside the data; where that cannot be, a folder of the user's cache."""
    beside = Path(whole.path).resolve().parent
    # The mode is asked too: root may write everywhere, but a folder marked read-only is left as it is.
    if whole.kind != "hub":
        there = beside / ".clsgen"
        place = there if there.exists() else beside
        if place.is_dir() and os.access(place, os.W_OK) and place.stat().st_mode & 0o222:
            return there
    return cache_dir() / "tables"


def _name(whole: Part) -> str:
    name = "-".join(filter(None, [Path(whole.path).name, whole.split]))
    return name.encode()[:100].decode(errors="ignore")


def _key(whole: Part, spec: TableSpec) -> str:
    made_of = {
        "format": FORMAT,
        "source": [whole.kind, str(Path(whole.path).resolve()) if whole.kind != "hub" else whole.path, whole.split],
        "content": _content(whole),
        "columns": asdict(spec.columns),
        "labels": spec.labels,
        "max_explanation_length": spec.max_explanation_length,
        "end_token": spec.end_token,
        "tokenizer": spec.tokenizer,
    }
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]


def _content(whole: Part) -> object:
    """What changes when the source changes: sizes, times, and samples of 64 blocks of each file."""
    if whole.kind == "hub":
        from clsgen_dist.data.reading.records import dataset_of

        return dataset_of(whole)._fingerprint
    path = Path(whole.path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [(f.stat().st_size, f.stat().st_mtime_ns, _sample(f)) for f in files]


def _sample(file: Path) -> str:
    digest, size = hashlib.sha256(), file.stat().st_size
    with file.open("rb") as data:
        for block in range(min(_SAMPLED_BLOCKS, -(-size // _BLOCK))):
            data.seek(block * (size // _SAMPLED_BLOCKS) if size > _SAMPLED_BLOCKS * _BLOCK else block * _BLOCK)
            digest.update(data.read(_BLOCK))
    return digest.hexdigest()


# --- building ------------------------------------------------------------------------------------------------------


def build_table(whole: Part, spec: TableSpec, folder: Path, say: Callable[[str], None]) -> None:
    """Every part by whichever process is free, then the columns; a rename makes ``folder`` a table.

    One process at a time may build a folder: :func:`open_table` sees to it.
    """
    from tqdm import tqdm

    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(exist_ok=True)
    parts = cut(whole)
    missing = [(n, part) for n, part in enumerate(parts) if not _is_written(partial / f"part-{n:05d}")]
    if 0 < len(missing) < len(parts):
        say(f"going on with {partial}: {len(parts) - len(missing)} of {len(parts)} parts were done")
    bar = tqdm(total=len(parts), initial=len(parts) - len(missing), desc=f"tokenising {_name(whole)}", unit="part",
               disable=None if len(parts) > 1 else True, leave=False)  # fmt: skip
    with bar:
        for _ in _each(missing, spec, partial):
            bar.update()
    _finish(whole, spec, partial, len(parts))
    partial.rename(folder)


def _is_written(part: Path) -> bool:
    """Whether a part is there whole."""
    try:
        written = json.loads(part.with_name(f"{part.name}.json").read_text())
        return bool(part.with_name(f"{part.name}.arrow").stat().st_size == written["bytes"])
    except (OSError, ValueError):
        return False


def _each(missing: list[tuple[int, Part]], spec: TableSpec, partial: Path) -> Iterator[None]:
    """Do the parts, in processes of their own where there are several and several cores."""
    workers = min(len(missing), len(os.sched_getaffinity(0)))
    if workers < 2:
        for n, part in missing:
            _write_part(part, spec, partial / f"part-{n:05d}")
            yield
        return
    from concurrent.futures import as_completed
    from concurrent.futures.process import BrokenProcessPool

    with worker_pool(workers) as pool:
        futures = [pool.submit(_write_part, part, spec, partial / f"part-{n:05d}") for n, part in missing]
        try:
            for future in as_completed(futures):
                future.result()
                yield
        except BrokenProcessPool as error:
            raise DataError(
                f"a process that read {missing[0][1].source} was killed, most likely for want of memory; what is done "
                "is kept: free memory, and start again"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_part(part: Part, spec: TableSpec, target: Path) -> None:
    """``target.arrow``, ``target.rejected.jsonl``, and last ``target.json``, which says that the part is done."""
    digest = hashlib.sha256()
    rejected: list[RejectedRow] = []
    noticed: Noticed = {}
    pending: list[Example] = []
    held = 0
    with pa.OSFile(f"{target}.arrow", "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:

        def flush() -> None:
            batch, refused = _encoded(part, pending, spec, digest)
            rejected.extend(refused)
            writer.write_batch(batch)
            pending.clear()

        for row in iter_rows(part, columns=spec.columns, labels=spec.labels):
            if isinstance(row, RejectedRow):
                rejected.append(row)
                continue
            add_notices(noticed, row.notices)
            pending.append(row)
            held += len(row.text) + sum(map(len, row.explanations))
            if len(pending) == _BATCH_ROWS or held > _BATCH_CHARACTERS:
                flush()
                held = 0
        if pending:
            flush()
    rejected.sort(key=lambda row: row.line)
    write_quarantine(target.with_name(f"{target.name}.rejected.jsonl"), rejected)
    aside = target.with_name(f"{target.name}.json.tmp")
    size = os.path.getsize(f"{target}.arrow")
    aside.write_text(json.dumps({"sha256": digest.hexdigest(), "bytes": size, "noticed": noticed}))
    aside.rename(target.with_name(f"{target.name}.json"))


def _encoded(
    part: Part, examples: list[Example], spec: TableSpec, digest: Any
) -> tuple[pa.RecordBatch, list[RejectedRow]]:
    """The rows in tokens, and those whose explanation is too long."""
    texts = spec.tokens_of([e.text for e in examples])
    flat = iter(spec.tokens_of([x.strip() for e in examples for x in e.explanations]))
    rows: list[tuple[Example, int, list[int], list[list[int]]]] = []
    refused: list[RejectedRow] = []
    for example, text_ids in zip(examples, texts, strict=True):
        explanation_ids = [[*next(flat), spec.end_token] for _ in example.explanations]
        line = int(example.source.rpartition(":")[2])
        longest = max(map(len, explanation_ids), default=0)
        if longest > spec.max_explanation_length:
            fault = Fault(
                Rejection.LONG_EXPLANATION,
                f"{longest} tokens, longer than data.max_explanation_length {spec.max_explanation_length}",
            )
            refused.append(RejectedRow.of(fault, part.source, line, json.dumps(asdict(example))))
            continue
        digest.update(repr((example.id, example.label, example.difficulty, text_ids, explanation_ids)).encode())
        rows.append((example, line, text_ids, explanation_ids))
    columns = {
        "id": [e.id for e, *_ in rows],
        "line": [line for _, line, *_ in rows],
        "text": [e.text for e, *_ in rows],
        "label": [e.label for e, *_ in rows],
        "difficulty": [e.difficulty for e, *_ in rows],
        "explanations": [list(e.explanations) for e, *_ in rows],
        "text_ids": _list_array([ids for *_, ids, _ in rows]),
        "explanation_ids": _list_array([ids for *_, ids in rows], _list_array([x for *_, ids in rows for x in ids])),
        "id_hash": [_hash64(e.id) for e, *_ in rows],
    }
    arrays = [pa.array(values, type=_SCHEMA.field(name).type) if isinstance(values, list) else values
              for name, values in columns.items()]  # fmt: skip
    return pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA), refused


def _list_array(lists: list[list[Any]], values: pa.Array | None = None) -> pa.ListArray:
    """Lists of tokens, or lists of ``values``."""
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int32)
    if values is None:
        values = pa.array(np.fromiter(itertools.chain.from_iterable(lists), np.int32, count=offsets[-1]))
    return pa.ListArray.from_arrays(offsets, values)


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _finish(whole: Part, spec: TableSpec, folder: Path, parts: int) -> None:
    """The columns of numbers, the second of each two equal ids rejected, and ``table.json``."""
    tables = [pa.ipc.open_stream(pa.memory_map(str(folder / f"part-{n:05d}.arrow"))).read_all() for n in range(parts)]
    table = pa.concat_tables(tables)
    kept, twice = _unique(whole, table)
    found = sorted(name for name in table["label"].take(kept).unique().to_pylist() if name is not None)
    labels = list(spec.labels) if spec.labels is not None else found
    if len(labels) > _MOST_CLASSES:
        raise DataError(
            f"{whole.source} has {len(labels)} classes, the first {labels[:3]}; expected at most {_MOST_CLASSES}: see "
            "that data.columns.label names the column of the classes"
        )
    code = {name: index for index, name in enumerate(labels)}
    encoded = table["label"].combine_chunks().dictionary_encode()
    # A label that only rejected rows have is none of the classes.
    names = np.array([code.get(name, -1) for name in encoded.dictionary.to_pylist()] + [-1], dtype=np.int16)
    label_N = names[encoded.indices.fill_null(len(names) - 1).to_numpy()][kept]
    counts_N = _lengths(table["explanation_ids"])
    start_N1 = np.concatenate([[0], np.cumsum(counts_N)])
    lengths_E = np.concatenate(
        [_lengths(pa.chunked_array([chunk.flatten()])) for chunk in table["explanation_ids"].chunks]
        or [np.zeros(0, np.int32)]
    )
    if len(kept) < len(table):
        lengths_E = lengths_E[np.repeat(np.isin(np.arange(len(table)), kept), counts_N)]
        start_N1 = np.concatenate([[0], np.cumsum(counts_N[kept])])
    columns = {
        "place": kept,
        "difficulty": table["difficulty"].to_numpy()[kept],
        "label": label_N,
        "text_length": _lengths(table["text_ids"])[kept],
        "explanation_start": start_N1,
        "explanation_length": lengths_E.astype(np.int32),
    }
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", values)
    reasons: Counter[str] = Counter()

    def rejected() -> Iterator[RejectedRow]:
        duplicates = iter(sorted(twice, key=lambda row: row.line))
        for n in range(parts):
            file = folder / f"part-{n:05d}.rejected.jsonl"
            for line in file.open(encoding="ascii") if file.exists() else ():
                yield RejectedRow(**json.loads(line))
        yield from duplicates

    def counted() -> Iterator[RejectedRow]:
        for row in rejected():
            reasons[row.code] += 1
            yield row

    write_quarantine(folder / "quarantine.jsonl", counted())
    written = [json.loads((folder / f"part-{n:05d}.json").read_text()) for n in range(parts)]
    digests = [part["sha256"] for part in written]
    noticed: Noticed = {}
    for part in written:
        for notice, (count, cell) in part["noticed"].items():
            noticed[notice] = (noticed.get(notice, (0, ""))[0] + count, noticed.get(notice, (0, cell))[1])
    card = TableCard(
        source=whole.source,
        rows=len(kept),
        stored=len(table),
        labels=labels,
        unlabelled=int((label_N < 0).sum()),
        unexplained=int((np.diff(start_N1) == 0).sum()),
        rejected=dict(reasons),
        noticed=noticed,
        sha256=hashlib.sha256(json.dumps([digests, labels]).encode()).hexdigest(),
    )
    (folder / "table.json").write_text(json.dumps(asdict(card), ensure_ascii=False), encoding="utf-8")


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    import pyarrow.compute as pc

    return pc.list_value_length(column).to_numpy().astype(np.int32)


def _unique(whole: Part, table: pa.Table) -> tuple[np.ndarray, list[RejectedRow]]:
    """Row numbers whose id comes for the first time, and the rejection of the others."""
    hashes = table["id_hash"].to_numpy()
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    twice: list[RejectedRow] = []
    dropped: list[int] = []
    first: dict[str, str] = {}
    name = Path(whole.source).name
    for n in sorted({int(order[k]) for at in same for k in (at, at + 1)}):
        row = table.slice(n, 1).select(["id", "line", "text", "label", "difficulty", "explanations"]).to_pylist()[0]
        where = f"{name}:{row.pop('line')}"
        if row["id"] in first:
            example = Example(**{**row, "explanations": tuple(row["explanations"])}, source=where)
            twice.append(duplicate(example, whole.source, first[row["id"]]))
            dropped.append(n)
        first.setdefault(row["id"], where)
    kept = np.delete(np.arange(len(table)), dropped)
    return kept, twice
