"""Datasets larger than the disk: Parquet shards fetched and deleted on the way, in an order that is fixed all the same.

    epoch e: shards shuffled by (seed, e) ──▶ windows of W shards ──▶ the window's rows shuffled by (seed, e, window)

Only the windows in use are on the disk. Each is fetched (from any address that fsspec opens: ``hf://``, ``s3://``,
``gs://``, a folder) and tokenised into tables, shard by shard, while the window before it is trained on, and deleted
when no rank needs it any more. Positions are counted in rows by the shards' footers, so the order is known before any
row is read, and does not depend on ranks or restarts. A row that turns out to be bad leaves its position empty, and is
counted and quarantined.

The tables are in a folder of the user's cache that belongs to one run on one machine. It is deleted when the run ends;
what a killed run left is deleted when any run starts. The ranks of a machine read and delete under one lock per shard;
a table that is already open stays readable, since it is mapped.

Cost: disk for the tokens of three windows, and of those that the last few steps used; the footers of all shards at the
start. Ids are compared within a shard only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from clsgen_dist.data.curriculum.stages import PlannedStage, visited_before
from clsgen_dist.data.encode import Encoder, Ids
from clsgen_dist.data.pack import Sample
from clsgen_dist.data.reading.label_cells import Space
from clsgen_dist.data.reading.records import find_source
from clsgen_dist.data.reading.rejection import require_few_bad_rows
from clsgen_dist.data.tables.build import build_table
from clsgen_dist.data.tables.dataset import Compared, RowDataset
from clsgen_dist.data.tables.spec import FORMAT, TableSpec
from clsgen_dist.data.tables.table import RowTable
from clsgen_dist.errors import DataError
from clsgen_dist.io.cache import cache_dir

logger = logging.getLogger(__name__)

# N rows of all shards, p positions

_DOMAIN = 0x5A4D
_FOOTERS_AT_ONCE = 32
_STEPS_KEPT = 8
"""Steps whose windows are kept: ranks prefetch a few steps, and not all at the same speed."""


class ShardedRows:
    """Rows of many shards, by global number; a row is available once :meth:`enter_window` was called for its window.

    Args:
        pattern: address of Parquet shards, with ``*``.
        spec: what a shard's table depends on; its label space must be given.
        encoder: the prompt.
        window: shards of a window.
        seed: of the order.
        max_bad_fraction: more rejected rows than this share of a shard raise.
        run: identifies this run on this machine, like its output folder.
        quarantine: folder for the lists of rejected rows, one per shard; None on all ranks but one.
        compared: as for :class:`RowDataset`.
        owns_cache: whether this process deletes windows that are over; true for one process per machine.

    Raises:
        DataError: no shard was found, or one is not a Parquet file.
    """

    def __init__(
        self,
        pattern: str,
        spec: TableSpec,
        encoder: Encoder,
        *,
        window: int,
        seed: int,
        max_bad_fraction: float,
        run: str,
        quarantine: Path | None,
        owns_cache: bool,
        compared: Compared = "own",
    ) -> None:
        import fsspec

        self.encoder, self.window, self.seed, self.max_bad_fraction = encoder, window, seed, max_bad_fraction
        self._spec, self._quarantine, self._compared = spec, quarantine, compared
        self._files, self.names = _list_shards(fsspec, pattern)
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            footers = list(pool.map(lambda name: _read_footer(self._files, name), self.names))
        self.counts = np.array([rows for rows, _ in footers], dtype=np.int64)
        self._footers = [digest for _, digest in footers]
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._datasets: dict[int, RowDataset] = {}
        self._folders: dict[int, Path] = {}
        self._needed: deque[set[int]] = deque([set()], maxlen=_STEPS_KEPT)
        self._lock = threading.Lock()
        self._prefetch: threading.Thread | None = None
        self._cache_dir = _run_cache_dir(run)
        self._run_lock = _lock_and_clean_cache(self._cache_dir) if owns_cache else None

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def space(self) -> Space:
        """How label cells are read."""
        return self._spec.space

    @property
    def name(self) -> str:
        """Where the rows come from."""
        return f"{self.names[0]} and {len(self.names) - 1} more shards"

    def longest(self, max_prompt_length: int | None = None) -> int:
        """Upper bound of the tokens of a sample; the rows themselves are not known yet."""
        longest = (max_prompt_length or self.encoder.max_prompt_length) + self._spec.max_explanation_length
        return (1 + ("own", "rejected", "mismatched").index(self._compared)) * longest

    @property
    def fingerprint(self) -> str:
        """Identifies these shards with this prompt."""
        prompt = self.encoder.build_prompt(np.zeros(0, dtype=np.int32)).tobytes()
        names = [Path(name).name for name in self.names]  # without the folder: shards may be copied elsewhere
        shards = [names, self._footers, self.window, self.encoder.max_prompt_length]
        return hashlib.sha256(json.dumps(shards).encode() + prompt).hexdigest()

    # --- the interface of RowDataset, for the shards that are available

    def usable(self, row_p: np.ndarray) -> np.ndarray:
        """``[p]`` whether each row was accepted."""
        return np.array([self._locate(int(row))[1] >= 0 for row in row_p], dtype=bool)

    def sample(self, row: int, visit: int = 0, max_prompt_length: int | None = None) -> Sample:
        """As :meth:`RowDataset.sample`."""
        rows, at = self._locate(row)
        return rows.sample(at, visit, max_prompt_length)

    def lengths(self, row_p: np.ndarray, visit_p: np.ndarray, max_prompt_length: int | None = None) -> Ids:
        """As :meth:`RowDataset.lengths`."""
        row_lengths = []
        for row, visit in zip(row_p, visit_p, strict=True):
            rows, at = self._locate(int(row))
            row_lengths.append(rows.lengths(np.array([at]), np.array([visit]), max_prompt_length)[0])
        return np.array(row_lengths, dtype=np.int64)

    def id(self, row: int) -> str:
        """The row's id."""
        rows, at = self._locate(row)
        return rows.id(at)

    def _locate(self, row: int) -> tuple[RowDataset, int]:
        """The dataset of a row's shard, and the row's number in it; -1 for a rejected row."""
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        rows = self._datasets[shard]
        line = row - int(self.starts[shard]) + 1
        lines = rows.table.lines()
        at = int(np.searchsorted(lines, line))
        return rows, at if at < len(lines) and lines[at] == line else -1

    # --- windows

    def begin_step(self) -> None:
        """Start another step: windows that only much older steps used may be deleted."""
        self._needed.append(set())

    def windows(self, epoch: int) -> list[np.ndarray]:
        """The shards of each window of an epoch, in order."""
        order = np.random.default_rng([_DOMAIN, self.seed, epoch]).permutation(len(self.names))
        return [order[at : at + self.window] for at in range(0, len(order), self.window)]

    def enter_window(self, shards: np.ndarray, following: np.ndarray) -> None:
        """Make a window available, start fetching the following one, and delete windows that are over."""
        if self._prefetch is not None:
            self._prefetch.join()
        self._fetch(shards)
        self.mark_in_use(shards)
        self._evict(set.union(*self._needed, map(int, following)))
        self._prefetch = threading.Thread(target=self._prefetch_window, args=(following,), daemon=True)
        self._prefetch.start()

    def mark_in_use(self, shards: np.ndarray) -> None:
        """Mark these shards as needed by the current step."""
        self._needed[-1].update(map(int, shards))

    def close(self) -> None:
        """Delete everything from the disk at the end of the run. All ranks of this machine must be done."""
        if self._prefetch is not None:
            self._prefetch.join()
        self._evict(set())
        if self._run_lock is not None:
            shutil.rmtree(self._cache_dir, ignore_errors=True)
            self._run_lock.release()

    def _prefetch_window(self, shards: np.ndarray) -> None:
        with contextlib.suppress(Exception):  # enter_window() fetches again, and raises in its caller
            self._fetch(shards)

    def _fetch(self, shards: np.ndarray) -> None:
        for shard in map(int, shards):
            with self._lock:
                if shard not in self._datasets:
                    self._datasets[shard] = RowDataset(self._table(shard), self.encoder, compared=self._compared)

    def _table(self, shard: int) -> RowTable:
        """A shard's table, fetched and built by the first process on this machine that needs it."""
        from filelock import FileLock

        name, folder = self.names[shard], self._folder(shard)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                local = folder.with_name(f"{folder.name}.parquet")
                try:
                    self._files.get_file(name, str(local))
                    source = dataclasses.replace(find_source(str(local)), source=name)
                    logger.info("building the table of %s", name)
                    build_table(source, self._spec, folder)
                except OSError as error:
                    raise DataError(
                        f"the shard {name} could not be fetched ({error}); check the address and the free space "
                        f"in {folder.parent}, then resume with --resume auto"
                    ) from error
                finally:
                    local.unlink(missing_ok=True)
            table = RowTable(folder)
            if bad := sum(table.card.rejected.values()):
                listed = table.quarantine
                if self._quarantine is not None:  # the table is deleted with its window, the list is kept
                    listed = self._quarantine / f"{shard:05d}-{Path(name).stem}.jsonl"
                    listed.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(table.quarantine, listed)
                logger.warning("%s: %s; see %s", name, table.card.summary(), listed)
                require_few_bad_rows(name, len(table), bad, table.rejected(), self.max_bad_fraction, listed)
            elif table.card.noticed:
                logger.info("%s: %s", name, table.card.summary())
        return table

    def _folder(self, shard: int) -> Path:
        if shard not in self._folders:
            spec, marks = self._spec, _version_marks(self._files, self.names[shard])
            of_spec = (spec.labels, spec.space, spec.max_explanation_length, spec.end_token, spec.tokenizer)
            depends_on = (FORMAT, self.names[shard], self._footers[shard], marks, *of_spec, repr(spec.columns))
            key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]
            self._folders[shard] = self._cache_dir / f"{shard:05d}-{key}"
        return self._folders[shard]

    def _evict(self, kept: set[int]) -> None:
        """Close all shards but these; if this process owns the cache, delete them and what a killed run left."""
        from filelock import FileLock

        with self._lock:
            for shard in set(self._datasets) - kept:
                del self._datasets[shard]
            if self._run_lock is None:
                return
            kept_names = {self._folder(shard).name for shard in kept}
            for folder in self._cache_dir.glob("*/"):
                if (name := folder.name.removesuffix(".partial")) not in kept_names:
                    with FileLock(self._cache_dir / f"{name}.lock"):
                        shutil.rmtree(folder, ignore_errors=True)


class ShardedOrder:
    """The order of a run over shards; the interface of :class:`clsgen_dist.data.curriculum.stages.RunOrder`."""

    def __init__(self, rows: ShardedRows, stages: Sequence[PlannedStage]) -> None:
        self.rows, self.stages = rows, list(stages)
        self._window: tuple[int, int, np.ndarray] | None = None

    def at(self, stage: PlannedStage, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``[p]`` at a stage's positions from ``start`` up to ``stop``, and the epoch of each."""
        rows, visits = [], []
        self.rows.begin_step()
        before = sum(s.positions for s in self.stages[: self.stages.index(stage)])
        position, end = before + start, before + stop
        while position < end:
            epoch, offset = divmod(position, len(self.rows))
            first, row_p = self._window_at(epoch, offset)
            take = row_p[offset - first : offset - first + end - position]
            rows.append(take)
            visits.append(np.full(len(take), epoch))
            position += len(take)
        row_p, visit_p = np.concatenate(rows), np.concatenate(visits)
        usable_p = self.rows.usable(row_p)
        return row_p[usable_p], visit_p[usable_p]

    def difficulty(self, row_p: np.ndarray) -> float:
        """NaN: the difficulty of streamed rows is not known."""
        del row_p
        return float("nan")

    def visited_before(self, step: int) -> dict[str, Any]:
        """See :func:`clsgen_dist.data.curriculum.stages.visited_before`."""
        return visited_before(self.stages, step)

    def _window_at(self, epoch: int, offset: int) -> tuple[int, np.ndarray]:
        """The window at an offset into an epoch: where it begins, and its rows in order."""
        windows = self.rows.windows(epoch)
        sizes = [int(self.rows.counts[shards].sum()) for shards in windows]
        first = np.concatenate([[0], np.cumsum(sizes)])
        window = int(np.searchsorted(first, offset, side="right")) - 1
        if self._window is None or self._window[:2] != (epoch, window):
            is_last = epoch * len(self.rows) + first[window + 1] >= sum(stage.positions for stage in self.stages)
            following = [*windows, self.rows.windows(epoch + 1)[0]][window + 1]
            self.rows.enter_window(windows[window], following[:0] if is_last else following)
            starts = self.rows.starts
            row_p = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in windows[window]])
            rng = np.random.default_rng([_DOMAIN, self.rows.seed, epoch, 1 + window])
            self._window = (epoch, window, row_p[rng.permutation(len(row_p))])
        else:
            self.rows.mark_in_use(windows[window])
        return int(first[window]), self._window[2]


def _run_cache_dir(run: str) -> Path:
    """The folder of a run's tables on this machine: several machines may share the cache."""
    machine = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    return cache_dir() / "shards" / hashlib.sha256(f"{machine} {Path(run).resolve()}".encode()).hexdigest()[:16]


def _lock_and_clean_cache(home: Path) -> Any:
    """Take the lock that a running run holds, and delete the tables of runs that have ended."""
    from filelock import FileLock, Timeout

    home.parent.mkdir(parents=True, exist_ok=True)
    alive_lock = FileLock(f"{home}.alive")
    try:
        alive_lock.acquire(timeout=30)  # a run just killed may still be ending
    except Timeout:
        raise DataError(
            "another run with the same output_dir is streaming shards on this machine; wait until it ends, or choose "
            "another output_dir"
        ) from None
    for other in home.parent.glob("*/"):
        if other != home:
            with contextlib.suppress(Timeout), FileLock(f"{other}.alive", timeout=0):
                shutil.rmtree(other, ignore_errors=True)
    return alive_lock


def _list_shards(fsspec: Any, pattern: str) -> tuple[Any, list[str]]:
    try:
        files, _, _ = fsspec.get_fs_token_paths(pattern)
        names = sorted(files.glob(files._strip_protocol(pattern)))
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"the shards {pattern} cannot be listed ({error}); check the address") from error
    if not names:
        raise DataError(f"no shard matches {pattern}; check the address, like hf://datasets/owner/name/data/*.parquet")
    return files, names


def _version_marks(files: Any, name: str) -> list[str]:
    """What changes when a shard is replaced: its size, and the store's checksum, version or time."""
    info = files.info(name)
    marks = ("size", "ETag", "etag", "sha256", "checksum", "blob_id", "last_commit", "LastModified", "mtime", "created")
    return [f"{mark} {info[mark]}" for mark in marks if info.get(mark) is not None]


def _read_footer(files: Any, name: str) -> tuple[int, str]:
    """Rows of a Parquet file, and a digest of its footer: sizes, offsets and extremes of all columns."""
    import pyarrow.parquet

    try:
        with files.open(name, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(size - 8)
            (length,) = struct.unpack("<I", file.read(4))
            file.seek(size - 8 - length)
            digest = hashlib.sha256(file.read(length)).hexdigest()
            return int(pyarrow.parquet.ParquetFile(file).metadata.num_rows), digest
    except Exception as error:  # pyarrow raises many kinds for what is not a Parquet file
        raise DataError(
            f"the shard {name} has no Parquet footer ({error}): only Parquet shards can be streamed, since "
            "their row counts are known without reading them; convert it"
        ) from error
