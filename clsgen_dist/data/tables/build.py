"""From a source to a table on disk: read once, in parallel.

    source ──parts──▶ [read, check, tokenise] × cores ──▶ part-00000.arrow … + columns of numbers ──▶ RowTable

A build that was killed resumes with the parts that are missing. One process builds, the others wait for its lock.

Cost: a build reads the source twice and writes about twice its size (text and tokens); measured by
``benchmarks/data_scale.py``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from clsgen_dist.data.reading.ingest import Noticed, duplicate
from clsgen_dist.data.reading.records import Part, cut, find_source
from clsgen_dist.data.reading.rejection import RejectedRow, write_quarantine
from clsgen_dist.data.tables.class_columns import answers_of, class_names, rarest_class
from clsgen_dist.data.tables.spec import TableSpec, display_name, table_folder
from clsgen_dist.data.tables.table import EXAMPLE_COLUMNS, DamagedTableError, RowTable, TableCard, stored_example
from clsgen_dist.data.tables.table_part import is_written, part_path, write_part
from clsgen_dist.data.tables.workers import worker_pool
from clsgen_dist.errors import DataError

logger = logging.getLogger(__name__)

# N rows of the table, E explanations


def open_table(name: str, spec: TableSpec) -> RowTable:
    """The table of a source, built if it does not exist yet.

    Args:
        name: see :func:`clsgen_dist.data.reading.records.find_source`.
        spec: what the table depends on.

    Raises:
        DataError: the source cannot be read, or the table cannot be written.
    """
    from filelock import FileLock

    source = find_source(name)
    folder = table_folder(source, spec)
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
                    logger.warning("%s; building it again", error)
                    shutil.rmtree(folder)
            build_table(source, spec, folder)
    except OSError as error:
        raise DataError(
            f"the tokens of {name} cannot be stored in {folder} ({error}); free disk space there, check its "
            "permissions, or move the user's cache with XDG_CACHE_HOME"
        ) from error
    return RowTable(folder)


def build_table(source: Part, spec: TableSpec, folder: Path) -> None:
    """Write the missing parts, then the columns; renaming the folder to ``folder`` commits the table.

    Only one process at a time may build a folder: :func:`open_table` holds a lock.
    """
    from tqdm import tqdm

    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(exist_ok=True)
    parts = cut(source)
    missing = [(n, part) for n, part in enumerate(parts) if not is_written(part_path(partial, n))]
    done = len(parts) - len(missing)
    if 0 < done < len(parts):
        logger.info("resuming the build in %s: %d of %d parts are done", partial, done, len(parts))
    bar = tqdm(total=len(parts), initial=done, desc=f"tokenising {display_name(source)}", unit="part",
               disable=None if len(parts) > 1 else True, leave=False)  # fmt: skip
    with bar:
        for _ in _write_parts(missing, spec, partial):
            bar.update()
    _write_columns(source, spec, partial, len(parts))
    partial.rename(folder)


def _write_parts(missing: list[tuple[int, Part]], spec: TableSpec, partial: Path) -> Iterator[None]:
    """Write the parts, in worker processes if there are several parts and several cores; yields after each."""
    workers = min(len(missing), len(os.sched_getaffinity(0)))
    if workers < 2:
        for n, part in missing:
            write_part(part, spec, part_path(partial, n))
            yield
        return
    from concurrent.futures import as_completed
    from concurrent.futures.process import BrokenProcessPool

    with worker_pool(workers) as pool:
        futures = [pool.submit(write_part, part, spec, part_path(partial, n)) for n, part in missing]
        try:
            for future in as_completed(futures):
                future.result()
                yield
        except BrokenProcessPool as error:
            raise DataError(
                f"a process that read {missing[0][1].source} was killed, most likely for lack of memory; finished "
                "parts are kept: free memory, and start again"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


# --- the columns ---------------------------------------------------------------------------------------------------


def _write_columns(source: Part, spec: TableSpec, folder: Path, parts: int) -> None:
    """Write the columns of numbers, the quarantine (repeated ids included) and ``table.json``."""
    tables = [pa.ipc.open_stream(pa.memory_map(f"{part_path(folder, n)}.arrow")).read_all() for n in range(parts)]
    table = pa.concat_tables(tables)
    kept_N, duplicates = _unique(source, table)
    labels = class_names(source.source, table.select(["label", "answers"]).take(kept_N), spec)
    answers_NC = answers_of(table["answers"].take(kept_N), labels, shares=spec.space != "multilabel")
    if spec.space == "multilabel":
        label_N = rarest_class(answers_NC, len(labels), len(kept_N))
    else:
        label_N = _label_indices(table, labels)[kept_N]
    start_N1, length_E = _lengths_of_lists(table, "explanation_ids", kept_N)
    rejected_start_N1, rejected_length_R = _lengths_of_lists(table, "rejected_ids", kept_N)
    columns = {
        "place": kept_N,
        "difficulty": table["difficulty"].to_numpy()[kept_N],
        "label": label_N,
        "text_length": _lengths(table["text_ids"])[kept_N],
        "explanation_start": start_N1,
        "explanation_length": length_E,
        "rejected_start": rejected_start_N1,
        "rejected_length": rejected_length_R,
    }
    if answers_NC is not None:
        columns["answers"] = answers_NC
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", values)
    rejected = _write_rejected(folder, parts, duplicates)
    written = [json.loads(Path(f"{part_path(folder, n)}.json").read_text()) for n in range(parts)]
    digests = [part["sha256"] for part in written]
    noticed: Noticed = {}
    for part in written:
        for notice, (count, cell) in part["noticed"].items():
            noticed[notice] = (noticed.get(notice, (0, ""))[0] + count, noticed.get(notice, (0, cell))[1])
    card = TableCard(
        source=source.source,
        rows=len(kept_N),
        stored=len(table),
        labels=labels,
        space=spec.space,
        has_answers=answers_NC is not None,
        with_evidence=int((_lengths(table["evidence"])[kept_N] > 0).sum()),
        unlabelled=int((label_N < 0).sum()),
        unexplained=int((np.diff(start_N1) == 0).sum()),
        rejected=rejected,
        noticed=noticed,
        sha256=hashlib.sha256(json.dumps([digests, labels]).encode()).hexdigest(),
        evidence_sha256=hashlib.sha256(json.dumps([p["evidence_sha256"] for p in written]).encode()).hexdigest(),
    )
    (folder / "table.json").write_text(json.dumps(asdict(card), ensure_ascii=False), encoding="utf-8")


def _label_indices(table: pa.Table, labels: list[str]) -> np.ndarray:
    """The class index of each stored row, -1 without label."""
    index = {name: n for n, name in enumerate(labels)}
    encoded = table["label"].combine_chunks().dictionary_encode()
    # A label that only rejected rows have is not a class; the last entry is that of rows without label.
    indices = np.array([index.get(name, -1) for name in encoded.dictionary.to_pylist()] + [-1], dtype=np.int16)
    return indices[encoded.indices.fill_null(len(indices) - 1).to_numpy()]


def _lengths_of_lists(table: pa.Table, column: str, kept_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[N + 1]`` where each row's lists begin, and ``[E]`` their lengths in tokens."""
    counts = _lengths(table[column])
    chunks = [_lengths(pa.chunked_array([chunk.flatten()])) for chunk in table[column].chunks]
    length_E = np.concatenate(chunks or [np.zeros(0, np.int32)])
    if len(kept_N) < len(table):
        length_E = length_E[np.repeat(np.isin(np.arange(len(table)), kept_N), counts)]
        counts = counts[kept_N]
    return np.concatenate([[0], np.cumsum(counts)]), length_E.astype(np.int32)


def _write_rejected(folder: Path, parts: int, duplicates: list[RejectedRow]) -> dict[str, int]:
    """Write ``quarantine.jsonl`` from the parts' lists and the duplicates; returns the rejected rows by code."""
    counts: Counter[str] = Counter()

    def rejected() -> Iterator[RejectedRow]:
        for n in range(parts):
            file = Path(f"{part_path(folder, n)}.rejected.jsonl")
            for line in file.open(encoding="ascii") if file.exists() else ():
                yield RejectedRow(**json.loads(line))
        yield from sorted(duplicates, key=lambda row: row.line)

    def counted() -> Iterator[RejectedRow]:
        for row in rejected():
            counts[row.code] += 1
            yield row

    write_quarantine(folder / "quarantine.jsonl", counted())
    return dict(counts)


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    import pyarrow.compute as pc

    return pc.list_value_length(column).to_numpy().astype(np.int32)


def _unique(source: Part, table: pa.Table) -> tuple[np.ndarray, list[RejectedRow]]:
    """``[N]`` the stored rows whose id occurs for the first time, and the rejections of the others."""
    hashes = table["id_hash"].to_numpy()
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    duplicates: list[RejectedRow] = []
    dropped: list[int] = []
    first: dict[str, int] = {}
    name = Path(source.source).name
    for n in sorted({int(order[k]) for at in same for k in (at, at + 1)}):
        row = table.slice(n, 1).select(EXAMPLE_COLUMNS).to_pylist()[0]
        if row["id"] in first:
            duplicates.append(duplicate(stored_example(row, name), source.source, first[row["id"]]))
            dropped.append(n)
        first.setdefault(row["id"], row["line"])
    return np.delete(np.arange(len(table)), dropped), duplicates
