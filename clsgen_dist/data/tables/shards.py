"""Sets larger than the disk: Parquet shards that come and go, in an order as fixed as that of rows at hand.

    epoch e: shards shuffled by (seed, e) ──▶ windows of W shards ──▶ the window's rows shuffled by (seed, e, window)

Only the windows in use are on the disk: one is fetched (any address that fsspec opens: ``hf://``, ``s3://``, ``gs://``,
a folder), read, checked and tokenised into tables, shard by shard, while the one before is trained on, and deleted when
no rank needs it any more. Positions are counted in rows of the shards as their footers give them, so that the order is
known before a byte of the rows is read, and does not depend on ranks or restarts. A row that is then rejected leaves
its place in the step empty, and is counted and quarantined.

The tables lie in a folder of the user's cache that belongs to one run on one machine. It goes when the run ends; what a
killed run left goes when it is resumed, or when any other run starts. Its ranks read and delete under one lock per
shard, and what was opened before stays readable, as it is mapped.

Cost: the disk of three windows in tokens, and of those that the last few steps were in; the footers of all shards at
the start. Ids are compared within a shard.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from clsgen_dist.data.curriculum.stages import PlannedStage, visited_before
from clsgen_dist.data.encode import Encoder, Ids
from clsgen_dist.data.pack import Sample
from clsgen_dist.data.reading.records import find_source
from clsgen_dist.data.reading.rejection import refuse_if_too_bad
from clsgen_dist.data.tables.build import FORMAT, TableSpec, build_table
from clsgen_dist.data.tables.dataset import RowDataset
from clsgen_dist.data.tables.table import RowTable
from clsgen_dist.errors import DataError
from clsgen_dist.io.cache import cache_dir

# N rows of all shards, p positions

_DOMAIN = 0x5A4D
_FOOTERS_AT_ONCE = 32
_STEPS_KEPT = 8
"""Steps whose windows stay: ranks make them ready a few in advance, and not all at one pace."""


class ShardedRows:
    """Rows of many shards, by global number; a shard's are there once its window was entered.

    Args:
        pattern: address of Parquet shards, with ``*``.
        spec: what makes a shard's table; its label space must be given.
        encoder: the prompt.
        window: shards of a window.
        seed: of the order.
        max_bad_fraction: more rejected rows than this share of a shard raise.
        run: what tells this run from others on this machine, like its output folder.
        quarantine: folder for the lists of rejected rows, one a shard; None on all ranks but one.
        owns_cache: whether this process deletes windows that are over (one per machine).
        say: told when a window is fetched and when rows are rejected.

    Raises:
        DataError: no shard, or one that is no Parquet file.
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
        say: Callable[[str], None],
    ) -> None:
        import fsspec

        self.encoder, self.window, self.seed, self.max_bad_fraction = encoder, window, seed, max_bad_fraction
        self._spec, self._quarantine, self._say = spec, quarantine, say
        self._files, self.names = _find(fsspec, pattern)
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            footers = list(pool.map(lambda name: _footer_of(self._files, name), self.names))
        self.counts = np.array([rows for rows, _ in footers], dtype=np.int64)
        self._footers = [digest for _, digest in footers]
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._sets: dict[int, RowDataset] = {}
        self._folders: dict[int, Path] = {}
        self._needed: deque[set[int]] = deque([set()], maxlen=_STEPS_KEPT)
        self._lock = threading.Lock()
        self._coming: threading.Thread | None = None
        self._home = _home(run)
        self._house = _clean_cache(self._home) if owns_cache else None

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def name(self) -> str:
        """Where the rows come from."""
        return f"{self.names[0]} and {len(self.names) - 1} more shards"

    def longest(self, max_prompt_length: int | None = None) -> int:
        """Tokens that a row may have at most: no row is known before it is here."""
        return (max_prompt_length or self.encoder.max_prompt_length) + self._spec.max_explanation_length

    @property
    def fingerprint(self) -> str:
        """Tells these shards in this prompt from any other."""
        prompt = self.encoder.build_prompt(np.zeros(0, dtype=np.int32)).tobytes()
        names = [Path(name).name for name in self.names]  # shards may be copied elsewhere
        shards = [names, self._footers, self.window, self.encoder.max_prompt_length]
        return hashlib.sha256(json.dumps(shards).encode() + prompt).hexdigest()

    # --- the interface of RowDataset, over the shards that are here

    def usable(self, row_p: np.ndarray) -> np.ndarray:
        """``[p]`` whether each row was read without fault."""
        return np.array([self._place(int(row))[1] >= 0 for row in row_p], dtype=bool)

    def sample(self, row: int, showing: int = 0, max_prompt_length: int | None = None) -> Sample:
        """As :meth:`RowDataset.sample`."""
        rows, at = self._place(row)
        return rows.sample(at, showing, max_prompt_length)

    def lengths(self, row_p: np.ndarray, visit_p: np.ndarray, max_prompt_length: int | None = None) -> Ids:
        """As :meth:`RowDataset.lengths`."""
        found = []
        for row, showing in zip(row_p, visit_p, strict=True):
            rows, at = self._place(int(row))
            found.append(rows.lengths(np.array([at]), np.array([showing]), max_prompt_length)[0])
        return np.array(found, dtype=np.int64)

    def id(self, row: int) -> str:
        """The row's id."""
        rows, at = self._place(row)
        return rows.id(at)

    def _place(self, row: int) -> tuple[RowDataset, int]:
        """A row's shard and its number there; -1 for a rejected row."""
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        rows = self._sets[shard]
        line = row - int(self.starts[shard]) + 1
        lines = rows.table.lines()
        at = int(np.searchsorted(lines, line))
        return rows, at if at < len(lines) and lines[at] == line else -1

    # --- windows

    def begin_step(self) -> None:
        """What steps long past needed may go."""
        self._needed.append(set())

    def windows(self, epoch: int) -> list[np.ndarray]:
        """The shards of each window of an epoch, in order."""
        order = np.random.default_rng([_DOMAIN, self.seed, epoch]).permutation(len(self.names))
        return [order[at : at + self.window] for at in range(0, len(order), self.window)]

    def enter(self, shards: np.ndarray, following: np.ndarray) -> None:
        """Have a window's shards here too, begin to fetch the following one's, and let go of what is over."""
        if self._coming is not None:
            self._coming.join()
        self._fetch(shards)
        self.keep(shards)
        self._let_go(set.union(*self._needed, map(int, following)))
        self._coming = threading.Thread(target=self._try_to_fetch, args=(following,), daemon=True)
        self._coming.start()

    def keep(self, shards: np.ndarray) -> None:
        """The step in course needs these shards, which are here."""
        self._needed[-1].update(map(int, shards))

    def close(self) -> None:
        """The run is over: nothing of it stays on the disk. All ranks of this machine must be done."""
        if self._coming is not None:
            self._coming.join()
        self._let_go(set())
        if self._house is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._house.release()

    def _try_to_fetch(self, shards: np.ndarray) -> None:
        with contextlib.suppress(Exception):  # enter() meets it again, where it can be told
            self._fetch(shards)

    def _fetch(self, shards: np.ndarray) -> None:
        for shard in map(int, shards):
            with self._lock:
                if shard not in self._sets:
                    self._sets[shard] = RowDataset(self._table(shard), self.encoder)

    def _table(self, shard: int) -> RowTable:
        """A shard's table, fetched and built by the first process on this machine that asks."""
        from filelock import FileLock

        name, folder = self.names[shard], self._folder(shard)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                local = folder.with_name(f"{folder.name}.parquet")
                try:
                    self._files.get_file(name, str(local))
                    whole = dataclasses.replace(find_source(str(local)), source=name)
                    build_table(whole, self._spec, folder, self._say)
                except OSError as error:
                    raise DataError(
                        f"the shard {name} could not be fetched ({error}); check the address and the room "
                        f"in {folder.parent}, then go on with --resume auto"
                    ) from error
                finally:
                    local.unlink(missing_ok=True)
            table = RowTable(folder)
            if bad := sum(table.card.rejected.values()):
                listed = table.quarantine
                if self._quarantine is not None:  # the table goes when its window is over, the list stays
                    listed = self._quarantine / f"{shard:05d}-{Path(name).stem}.jsonl"
                    listed.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(table.quarantine, listed)
                self._say(f"{name}: {table.card.summary()}; see {listed}")
                refuse_if_too_bad(name, len(table), bad, table.rejected(), self.max_bad_fraction, listed)
            elif table.card.noticed:
                self._say(f"{name}: {table.card.summary()}")
        return table

    def _folder(self, shard: int) -> Path:
        if shard not in self._folders:
            spec, marks = self._spec, _marks_of(self._files, self.names[shard])
            of_spec = (spec.labels, spec.max_explanation_length, spec.end_token, spec.tokenizer)
            made_of = (FORMAT, self.names[shard], self._footers[shard], marks, *of_spec, repr(spec.columns))
            key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
            self._folders[shard] = self._home / f"{shard:05d}-{key}"
        return self._folders[shard]

    def _let_go(self, kept: set[int]) -> None:
        """Close all shards but these and, as the one who keeps house, delete them, and what a killed run left."""
        from filelock import FileLock

        with self._lock:
            for shard in set(self._sets) - kept:
                del self._sets[shard]
            if self._house is None:
                return
            stay = {self._folder(shard).name for shard in kept}
            for folder in self._home.glob("*/"):
                if folder.name.removesuffix(".partial") not in stay:
                    with FileLock(self._home / f"{folder.name.removesuffix('.partial')}.lock"):
                        shutil.rmtree(folder, ignore_errors=True)


class ShardedOrder:
    """The order of a run over shards; the interface of :class:`clsgen_dist.data.curriculum.stages.RunOrder`."""

    def __init__(self, rows: ShardedRows, stages: Sequence[PlannedStage]) -> None:
        self.rows, self.stages = rows, list(stages)
        self._window: tuple[int, int, np.ndarray] | None = None

    def at(self, stage: PlannedStage, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``[p]`` at a stage's positions from ``start`` up to ``stop``, and which epoch each is of."""
        rows, visit_counts = [], []
        self.rows.begin_step()
        before = sum(s.positions for s in self.stages[: self.stages.index(stage)])
        position, end = before + start, before + stop
        while position < end:
            epoch, place = divmod(position, len(self.rows))
            begins, row_p = self._enter(epoch, place)
            take = row_p[place - begins : place - begins + end - position]
            rows.append(take)
            visit_counts.append(np.full(len(take), epoch))
            position += len(take)
        row_p, visit_p = np.concatenate(rows), np.concatenate(visit_counts)
        usable_p = self.rows.usable(row_p)
        return row_p[usable_p], visit_p[usable_p]

    def difficulty(self, row_p: np.ndarray) -> float:
        """Not known for rows that come and go."""
        del row_p
        return float("nan")

    def visited_before(self, step: int) -> dict[str, Any]:
        """See :func:`clsgen_dist.data.curriculum.stages.visited_before`."""
        return visited_before(self.stages, step)

    def _enter(self, epoch: int, place: int) -> tuple[int, np.ndarray]:
        """The window of an epoch that holds a place: where it begins, and its rows in order."""
        windows = self.rows.windows(epoch)
        sizes = [int(self.rows.counts[shards].sum()) for shards in windows]
        begins = np.concatenate([[0], np.cumsum(sizes)])
        window = int(np.searchsorted(begins, place, side="right")) - 1
        if self._window is None or self._window[:2] != (epoch, window):
            over = epoch * len(self.rows) + begins[window + 1] >= sum(stage.positions for stage in self.stages)
            following = [*windows, self.rows.windows(epoch + 1)[0]][window + 1]
            self.rows.enter(windows[window], following[:0] if over else following)
            starts = self.rows.starts
            row_p = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in windows[window]])
            rng = np.random.default_rng([_DOMAIN, self.rows.seed, epoch, 1 + window])
            self._window = (epoch, window, row_p[rng.permutation(len(row_p))])
        else:
            self.rows.keep(windows[window])
        return int(begins[window]), self._window[2]


def _home(run: str) -> Path:
    """The folder of a run's tables: no other run's, and no other machine's where the cache is shared."""
    machine = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    return cache_dir() / "shards" / hashlib.sha256(f"{machine} {Path(run).resolve()}".encode()).hexdigest()[:16]


def _clean_cache(home: Path) -> Any:
    """Take the lock that says that a run is alive, and delete the tables of runs that are not."""
    from filelock import FileLock, Timeout

    home.parent.mkdir(parents=True, exist_ok=True)
    mine = FileLock(f"{home}.alive")
    try:
        mine.acquire(timeout=30)  # a run just killed may still be ending
    except Timeout:
        raise DataError(
            "another run with the same output_dir is streaming shards on this machine; wait for its end, or choose "
            "another output_dir"
        ) from None
    for other in home.parent.glob("*/"):
        if other != home:
            with contextlib.suppress(Timeout), FileLock(f"{other}.alive", timeout=0):
                shutil.rmtree(other, ignore_errors=True)
    return mine


def _find(fsspec: Any, pattern: str) -> tuple[Any, list[str]]:
    try:
        files, _, _ = fsspec.get_fs_token_paths(pattern)
        names = sorted(files.glob(files._strip_protocol(pattern)))
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"the shards {pattern} cannot be listed ({error}); check the address") from error
    if not names:
        raise DataError(f"no shard matches {pattern}; check the address, like hf://datasets/owner/name/data/*.parquet")
    return files, names


def _marks_of(files: Any, name: str) -> list[str]:
    """What changes when a shard is written anew in its place: size, and the store's own mark or time."""
    info = files.info(name)
    marks = ("size", "ETag", "etag", "sha256", "checksum", "blob_id", "last_commit", "LastModified", "mtime", "created")
    return [f"{mark} {info[mark]}" for mark in marks if info.get(mark) is not None]


def _footer_of(files: Any, name: str) -> tuple[int, str]:
    """Rows of a Parquet file, and a digest of its footer: sizes, places and extremes of all its columns."""
    import pyarrow.parquet

    try:
        with files.open(name, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(size - 8)
            (length,) = struct.unpack("<I", file.read(4))
            file.seek(size - 8 - length)
            digest = hashlib.sha256(file.read(length)).hexdigest()
            return int(pyarrow.parquet.ParquetFile(file).metadata.num_rows), digest
    except Exception as error:  # pyarrow raises many kinds for what is no Parquet file
        raise DataError(
            f"the shard {name} has no Parquet footer ({error}): sets are streamed from Parquet shards only, since "
            "their row counts are known without reading them; convert it"
        ) from error
