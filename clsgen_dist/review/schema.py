"""The SQLite file: its tables, how it is opened, and transactions that are on disk when they end.

``decisions`` is a log that is only added to: an undo is one more entry. ``standing`` points to the entry that counts
for a row and a reviewer; it follows from the log, and is changed in the same transaction. ``open`` is how many people a
row waits for: readers, or one who settles what they dispute.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from clsgen_dist.errors import DataError

FORMAT = "2"
WAIT_SECONDS = 30.0
"""For another process that is writing."""
NO_DOUBT = -1e308
"""Where a row has no doubt of its own; it sorts behind every number."""

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    record TEXT NOT NULL,
    text TEXT NOT NULL,
    label TEXT,
    answers TEXT NOT NULL,
    is_multilabel INTEGER NOT NULL,
    explanations TEXT NOT NULL,
    evidence TEXT NOT NULL,
    counter_evidence TEXT NOT NULL,
    issues TEXT NOT NULL,
    issue_count INTEGER NOT NULL,
    doubt REAL NOT NULL,
    readings INTEGER NOT NULL,
    open INTEGER NOT NULL,
    disputed INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS queue ON rows (doubt DESC, issue_count DESC, number) WHERE open > 0;
CREATE INDEX IF NOT EXISTS listing ON rows (doubt DESC, issue_count DESC, number);
CREATE INDEX IF NOT EXISTS disputes ON rows (doubt DESC, issue_count DESC, number) WHERE disputed = 1;
CREATE TABLE IF NOT EXISTS class_names (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS row_classes (name TEXT, row INTEGER, PRIMARY KEY (name, row)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS issue_codes (code TEXT, row INTEGER, PRIMARY KEY (code, row)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS issue_totals (code TEXT PRIMARY KEY, row_count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (
    row INTEGER, reviewer TEXT, browser TEXT NOT NULL, expires REAL NOT NULL, PRIMARY KEY (row, reviewer)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS skips (row INTEGER, reviewer TEXT, PRIMARY KEY (row, reviewer)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS decisions (
    entry INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT UNIQUE,
    undoes INTEGER,
    row INTEGER NOT NULL,
    reviewer TEXT NOT NULL,
    time REAL NOT NULL,
    verdict TEXT,
    content TEXT,
    settles INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS standing (
    row INTEGER, reviewer TEXT, entry INTEGER NOT NULL, PRIMARY KEY (row, reviewer)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_reviewer ON standing (reviewer, entry);
CREATE TABLE IF NOT EXISTS notes (
    row INTEGER, reviewer TEXT, time REAL NOT NULL, text TEXT NOT NULL, PRIMARY KEY (row, reviewer)
) WITHOUT ROWID;
"""


def create_tables(path: Path) -> None:
    """Make the file or open an existing one; DataError if it is something else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with connection(path) as store:
            # Two processes that start at once: the second one waits for the first.
            store.execute("PRAGMA journal_mode = WAL")
            store.executescript(_TABLES)
            with writing(store):
                store.execute("INSERT OR IGNORE INTO facts VALUES ('format', ?)", (FORMAT,))
            (found,) = store.execute("SELECT value FROM facts WHERE name = 'format'").fetchone()
    except (OSError, sqlite3.DatabaseError) as error:
        raise DataError(f"{path} cannot be used as a store of reviews ({error}); name another file") from error
    if found != FORMAT:
        raise DataError(f"{path} has format {found}, expected {FORMAT}; export it with the version that wrote it")


@contextlib.contextmanager
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of its own for each use, so that threads and processes are alike; closed at the end."""
    store = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)
    try:
        store.row_factory = sqlite3.Row
        store.execute("PRAGMA synchronous = FULL")  # in WAL mode the default is not on disk at a commit
        yield store
    finally:
        store.close()


@contextlib.contextmanager
def writing(store: sqlite3.Connection) -> Iterator[None]:
    """A transaction that holds the write lock from its start, so that what it reads stays true; on disk at the end."""
    store.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        store.execute("ROLLBACK")
        raise
    store.execute("COMMIT")
