"""The store of a review: rows in a queue, leases, decisions, undo, skips and notes.

    claim   the next row is leased to a reviewer: nobody else gets it while the lease lasts
    decide  the decision is added to the log; on disk when the call returns
    undo    one more entry, after which the decision before counts, or none

A row that needs two readings is given to two reviewers, who never see each other's decision. If these disagree, the row
waits for a third one, who settles it. A lease belongs to a reviewer in one browser: two people who both forgot to say
their name do not get the same row. Every call is one transaction on a connection of its own: threads and processes may
call at once.

Cost: one look into an index for a claim, one flush of the disk for a decision; both together 36 ms with 50,000 rows, on
2 cores with a load of 6. No call but a filtered one reads all rows.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any

from clsgen_dist.review.decision import (
    MAX_NOTE,
    Answer,
    Decision,
    ReviewError,
    ReviewFault,
    ReviewRow,
    decision_on,
    disagree,
)
from clsgen_dist.review.schema import connection, create_tables, writing
from clsgen_dist.review.stored import content_of, decision_of, insert, row_of

LEASE_SECONDS = 1800.0
"""For how long a row is kept for a reviewer who has opened it."""
MAX_NAME = 60
"""Characters of a reviewer's name."""
_BATCH = 1000
_OTHERS = "SELECT count(*) FROM leases WHERE leases.row = rows.number AND leases.expires > :now"
_FREE = f"""rows.open > ({_OTHERS} AND leases.reviewer <> :me)
            AND 0 = ({_OTHERS} AND leases.reviewer = :me AND leases.browser <> :browser)"""
_NOT_MINE = "NOT EXISTS (SELECT 1 FROM standing WHERE standing.row = rows.number AND standing.reviewer = :me)"
_NOT_SKIPPED = "NOT EXISTS (SELECT 1 FROM skips WHERE skips.row = rows.number AND skips.reviewer = :me)"


class State(StrEnum):
    """How far a row is."""

    UNDECIDED = "undecided"
    """Readings are missing, or somebody who settles it."""
    DISPUTED = "disputed"
    """Its readings disagree, and nobody has settled that yet."""
    DECIDED = "decided"


_STATE_TERMS = {
    State.UNDECIDED: " AND rows.open > 0",
    State.DISPUTED: " AND rows.disputed = 1",
    State.DECIDED: " AND rows.open = 0",
}


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which rows are looked at; None is any."""

    label: str | None = None
    """A class that the row has."""
    issue: str | None = None
    state: State | None = None

    def sql(self) -> tuple[str, dict[str, Any]]:
        """Conditions to add to others, with their values."""
        terms, values = "", {}
        if self.label is not None:
            terms += " AND EXISTS (SELECT 1 FROM row_classes WHERE name = :label AND row_classes.row = rows.number)"
            values["label"] = self.label
        if self.issue is not None:
            terms += " AND EXISTS (SELECT 1 FROM issue_codes WHERE code = :issue AND issue_codes.row = rows.number)"
            values["issue"] = self.issue
        if self.state is not None:
            terms += _STATE_TERMS[self.state]
        return terms, values


class Store:
    """The rows and decisions of one file.

    Args:
        path: SQLite file, made if it does not exist.
        clock: seconds since 1970.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = path, clock
        create_tables(path)

    # --- rows ------------------------------------------------------------------------------------------------------

    def add(self, rows: Iterable[tuple[ReviewRow, str]]) -> tuple[int, int]:
        """Add rows, each with its record as JSON; those whose id is there already are left as they are.

        Returns:
            How many were added, and how many were there.

        Raises:
            DataError: a row that is there has another text.
        """
        added = known = 0
        with connection(self.path) as store:
            waiting = iter(rows)
            while batch := list(islice(waiting, _BATCH)):
                new_rows = new_readings = 0
                with writing(store):
                    for row, record in batch:
                        is_new = insert(store, row, record)
                        added, known = added + is_new, known + (not is_new)
                        new_rows, new_readings = new_rows + is_new, new_readings + is_new * row.readings
                    for name, count in (("rows", new_rows), ("readings", new_readings)):
                        store.execute(
                            "INSERT INTO facts VALUES (:name, :count) ON CONFLICT (name) DO UPDATE "
                            "SET value = CAST(value AS INTEGER) + :count",
                            {"name": name, "count": count},
                        )
        return added, known

    def row(self, number: int) -> ReviewRow:
        """A row; ReviewError if there is none."""
        with connection(self.path) as store:
            return _row(store, number)

    def facts(self) -> dict[str, str]:
        """What is known of the whole review: labels, columns, source."""
        with connection(self.path) as store:
            return dict(map(tuple, store.execute("SELECT name, value FROM facts")))

    def set_fact(self, name: str, value: str) -> None:
        """Keep a fact."""
        with connection(self.path) as store, writing(store):
            store.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def labels(self) -> list[str]:
        """The classes that can be chosen: those given, then those that rows have."""
        given = json.loads(self.facts().get("labels", "[]"))
        with connection(self.path) as store:
            found = [name for (name,) in store.execute("SELECT name FROM class_names ORDER BY name")]
        return list(dict.fromkeys([*given, *found]))

    # --- the queue -------------------------------------------------------------------------------------------------

    def claim(self, reviewer: str, chosen: Filter | None = None, browser: str = "") -> ReviewRow | None:
        """The reviewer's next row, leased; the one already leased comes first. None: nothing is left for them."""
        terms, values = (chosen or Filter()).sql()
        now = self._clock()
        values |= {"me": reviewer, "browser": browser, "now": now, "until": now + LEASE_SECONDS}
        order = "ORDER BY rows.doubt DESC, rows.issue_count DESC, rows.number LIMIT 1"
        free = f"SELECT number FROM rows WHERE rows.open > 0 AND {_FREE} AND {_NOT_MINE}"
        mine = f"""SELECT number FROM rows JOIN leases ON leases.row = number
                   WHERE rows.open > 0 AND leases.reviewer = :me AND leases.browser = :browser AND leases.expires > :now
                   AND {_NOT_MINE} AND {_NOT_SKIPPED}"""
        with connection(self.path) as store, writing(store):
            store.execute("DELETE FROM leases WHERE expires <= :now", values)
            for query in (mine, f"{free} AND {_NOT_SKIPPED}", free):
                found = store.execute(f"{query}{terms} {order}", values).fetchone()
                if found:
                    break
            else:
                return None
            _lease(store, found["number"], values)
            return _row(store, found["number"])

    def claim_row(self, reviewer: str, number: int, browser: str = "") -> bool:
        """Whether the reviewer may decide on this row; it is then leased to them, unless they have decided before."""
        now = self._clock()
        values = {"me": reviewer, "browser": browser, "now": now, "until": now + LEASE_SECONDS, "row": number}
        with connection(self.path) as store, writing(store):
            _row(store, number)
            if not _may_decide(store, values):
                return False
            if not _has_decided(store, values):  # a lease would keep the second reader away
                _lease(store, number, values)
            return True

    def release(self, browser: str) -> None:
        """Free the rows that are open in a browser, whose reviewer changes."""
        with connection(self.path) as store, writing(store):
            store.execute("DELETE FROM leases WHERE browser = ?", (browser,))

    def skip(self, reviewer: str, number: int) -> None:
        """Put a row behind all others for this reviewer, and free it for others."""
        with connection(self.path) as store, writing(store):
            _row(store, number)
            store.execute("INSERT OR IGNORE INTO skips VALUES (?, ?)", (number, reviewer))
            store.execute("DELETE FROM leases WHERE row = ? AND reviewer = ?", (number, reviewer))

    # --- decisions -------------------------------------------------------------------------------------------------

    def decide(self, reviewer: str, number: int, answer: Answer, key: str | None = None, browser: str = "") -> Decision:
        """Record a decision; on disk when this returns.

        Args:
            reviewer: name.
            number: of the row.
            answer: what the reviewer sends.
            key: made by the sender; the same one sent again changes nothing, and has the same result.
            browser: where the row was opened.

        Raises:
            ReviewError: the answer cannot be, or the row was given to others since the lease ended.
        """
        labels, now = self.labels(), self._clock()
        values = {"me": reviewer, "browser": browser, "now": now, "row": number}
        with connection(self.path) as store, writing(store):
            known = store.execute("SELECT * FROM decisions WHERE key = ? AND key IS NOT NULL", (key,)).fetchone()
            if known:
                return decision_of(known)
            row = _row(store, number)
            if not _may_decide(store, values):
                raise ReviewError(
                    ReviewFault.TAKEN,
                    f"row {row.id} was given to another reviewer, since it was not decided on within "
                    f"{LEASE_SECONDS / 60:.0f} minutes here, or was decided meanwhile; take the next one",
                )
            before = _standing(store, number, reviewer)
            settles = row.is_disputed if before is None else before.settles
            decision = decision_on(row, answer, labels)
            made = replace(decision, row=number, reviewer=reviewer, time=now, settles=settles)
            entry = store.execute(
                "INSERT INTO decisions (key, row, reviewer, time, verdict, content, settles) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key, number, reviewer, now, made.verdict, content_of(made), settles),
            ).lastrowid
            store.execute("INSERT OR REPLACE INTO standing VALUES (?, ?, ?)", (number, reviewer, entry))
            _settle(store, number, reviewer)
        return replace(made, entry=entry or 0)

    def undo(self, reviewer: str, browser: str = "") -> ReviewRow:
        """Take back the reviewer's last decision that stands; its row is leased to them again, if it waits for anybody.

        Raises:
            ReviewError: none stands.
        """
        now = self._clock()
        with connection(self.path) as store, writing(store):
            last = store.execute(
                "SELECT row, entry FROM standing WHERE reviewer = ? ORDER BY entry DESC LIMIT 1", (reviewer,)
            ).fetchone()
            if last is None:
                raise ReviewError(ReviewFault.NOTHING_TO_UNDO, f"{reviewer} has no decision that could be taken back")
            number, entry = last
            store.execute(
                "INSERT INTO decisions (undoes, row, reviewer, time) VALUES (?, ?, ?, ?)",
                (entry, number, reviewer, now),
            )
            before = store.execute(
                """SELECT max(entry) FROM decisions AS d WHERE row = ? AND reviewer = ? AND undoes IS NULL
                   AND NOT EXISTS (SELECT 1 FROM decisions AS u WHERE u.undoes = d.entry)""",
                (number, reviewer),
            ).fetchone()[0]
            if before is None:
                store.execute("DELETE FROM standing WHERE row = ? AND reviewer = ?", (number, reviewer))
            else:
                store.execute(
                    "UPDATE standing SET entry = ? WHERE row = ? AND reviewer = ?", (before, number, reviewer)
                )
            _settle(store, number, reviewer)
            values = {"me": reviewer, "browser": browser, "now": now, "until": now + LEASE_SECONDS, "row": number}
            if before is None and _may_decide(store, values):
                _lease(store, number, values)
            return _row(store, number)

    def standing(self, number: int, reviewer: str) -> Decision | None:
        """The decision of one reviewer on a row that counts."""
        with connection(self.path) as store:
            return _standing(store, number, reviewer)

    def readings(self, number: int) -> list[Decision]:
        """All decisions on a row that count, in the order in which they were made: for who settles a dispute."""
        with connection(self.path) as store:
            return _all_standing(store, number)

    def log(self) -> list[dict[str, Any]]:
        """Every entry, undone ones and undos too, in the order in which they were made."""
        with connection(self.path) as store:
            return [dict(entry) for entry in store.execute("SELECT * FROM decisions ORDER BY entry")]

    # --- notes -----------------------------------------------------------------------------------------------------

    def set_note(self, reviewer: str, number: int, text: str) -> None:
        """Keep a reviewer's note on a row; an empty one is removed."""
        if len(text) > MAX_NOTE or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            raise ReviewError(
                ReviewFault.WRONG_NOTE,
                f"the note has {len(text)} characters, expected {MAX_NOTE} at most, without NUL and lone surrogates; "
                "shorten or retype it",
            )
        with connection(self.path) as store, writing(store):
            _row(store, number)
            store.execute("DELETE FROM notes WHERE row = ? AND reviewer = ?", (number, reviewer))
            if text.strip():
                store.execute("INSERT INTO notes VALUES (?, ?, ?, ?)", (number, reviewer, self._clock(), text.strip()))

    def note(self, reviewer: str, number: int) -> str:
        """A reviewer's note on a row, empty without one."""
        with connection(self.path) as store:
            found = store.execute(
                "SELECT text FROM notes WHERE row = ? AND reviewer = ?", (number, reviewer)
            ).fetchone()
        return found["text"] if found else ""


def checked_name(name: str) -> str:
    """A reviewer's name, without white space around it; ReviewError if it cannot be one."""
    name = " ".join(name.split())
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise ReviewError(
            ReviewFault.WRONG_NAME,
            f"the name has {len(name)} characters, expected 1 to {MAX_NAME}, all of them printable; choose another",
        )
    return name


def _row(store: sqlite3.Connection, number: int) -> ReviewRow:
    is_number = 0 < number < 2**63  # what SQLite can hold
    found = store.execute("SELECT * FROM rows WHERE number = ?", (number if is_number else 0,)).fetchone()
    if found is None:
        raise ReviewError(ReviewFault.UNKNOWN_ROW, f"there is no row {number}; open the list of rows")
    return row_of(found)


def _lease(store: sqlite3.Connection, number: int, values: dict[str, Any]) -> None:
    query = "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)"
    store.execute(query, (number, values["me"], values["browser"], values["until"]))


def _all_standing(store: sqlite3.Connection, number: int) -> list[Decision]:
    query = "SELECT decisions.* FROM standing JOIN decisions USING (entry) WHERE standing.row = ? ORDER BY entry"
    return [decision_of(found) for found in store.execute(query, (number,))]


def _standing(store: sqlite3.Connection, number: int, reviewer: str) -> Decision | None:
    return next((made for made in _all_standing(store, number) if made.reviewer == reviewer), None)


def _has_decided(store: sqlite3.Connection, values: dict[str, Any]) -> bool:
    query = "SELECT EXISTS (SELECT 1 FROM standing WHERE row = :row AND reviewer = :me)"
    return bool(store.execute(query, values).fetchone()[0])


def _may_decide(store: sqlite3.Connection, values: dict[str, Any]) -> bool:
    """Whether the row is the reviewer's by a decision or a lease, or free."""
    query = f"SELECT EXISTS (SELECT 1 FROM rows WHERE number = :row AND {_FREE})"
    return _has_decided(store, values) or bool(store.execute(query, values).fetchone()[0])


def _settle(store: sqlite3.Connection, number: int, reviewer: str) -> None:
    """What follows from a change of the standing decisions on a row."""
    made = _all_standing(store, number)
    readings = [one for one in made if not one.settles]
    is_settled = len(readings) < len(made)
    missing = 0 if is_settled else max(0, _row(store, number).readings - len(readings))
    is_disputed = not missing and not is_settled and disagree(readings)
    open_for = missing + is_disputed
    store.execute("UPDATE rows SET open = ?, disputed = ? WHERE number = ?", (open_for, is_disputed, number))
    for table in ("leases", "skips"):
        store.execute(f"DELETE FROM {table} WHERE row = ? AND reviewer = ?", (number, reviewer))
