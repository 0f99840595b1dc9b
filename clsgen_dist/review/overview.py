"""What a store says of the work: progress and pace, lists of rows, pairs of readings.

Pace counts time at work: a gap of more than five minutes between two decisions is a break.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from operator import itemgetter

from clsgen_dist.review.decision import Decision, ReviewRow, Verdict, disagree
from clsgen_dist.review.schema import connection
from clsgen_dist.review.store import Filter, Store
from clsgen_dist.review.stored import decision_of, row_of

BREAK_SECONDS = 300.0
_RECENT = 200
"""Decisions that pace is measured on."""


class Status(StrEnum):
    """What became of a row."""

    UNDECIDED = "undecided"
    PARTLY_READ = "partly_read"
    """A second reading is missing."""
    DECIDED = "decided"
    DISPUTED = "disputed"
    """Its readings disagree, and wait for somebody who settles that."""
    SETTLED = "settled"
    """Its readings disagreed, and a third person has decided."""


@dataclass(frozen=True)
class Progress:
    """How far a review is."""

    rows: int
    readings: int
    """Needed in all."""
    read: int
    disputed: int
    """Rows that wait for somebody who settles them."""
    by_me: int
    left_for_me: int
    """Rows that this reviewer may still get."""
    rows_per_hour: float | None
    """Of this reviewer, while at work; None before there are two decisions."""

    @property
    def hours_left(self) -> float | None:
        """At this reviewer's pace."""
        return self.left_for_me / self.rows_per_hour if self.rows_per_hour else None


@dataclass(frozen=True)
class Listed:
    """A row in a list: what everybody may know of it, and the reviewer's own decision."""

    row: ReviewRow
    open: int
    decided_by: tuple[str, ...]
    own: Verdict | None


def progress(store: Store, reviewer: str) -> Progress:
    """How far the review is, as this reviewer sees it."""
    with connection(store.path) as opened:
        # Only what people did is counted; the totals of the rows, of which there may be millions, are kept.
        totals = dict(map(tuple, opened.execute("SELECT name, value FROM facts WHERE name IN ('rows', 'readings')")))
        rows, readings = int(totals.get("rows", 0)), int(totals.get("readings", 0))
        read, mine = opened.execute(
            "SELECT count(*) FILTER (WHERE NOT settles), count(*) FILTER (WHERE standing.reviewer = ?) "
            "FROM standing JOIN decisions USING (entry)",
            (reviewer,),
        ).fetchone()
        (disputed,) = opened.execute("SELECT count(*) FROM rows WHERE disputed = 1").fetchone()
        (not_left,) = opened.execute(
            "SELECT count(DISTINCT standing.row) FROM standing JOIN rows ON number = standing.row "
            "WHERE open = 0 OR reviewer = ?",
            (reviewer,),
        ).fetchone()
        times = [
            time
            for (time,) in opened.execute(
                "SELECT time FROM standing JOIN decisions USING (entry) WHERE standing.reviewer = ? "
                "ORDER BY entry DESC LIMIT ?",
                (reviewer, _RECENT),
            )
        ]
    return Progress(rows, readings, read, disputed, mine, rows - not_left, pace(times))


def latest(store: Store, reviewer: str) -> tuple[str, int, Verdict] | None:
    """Id, number and verdict of the reviewer's last decision that stands, which an undo takes back."""
    with connection(store.path) as opened:
        found = opened.execute(
            "SELECT rows.id, rows.number, decisions.verdict FROM standing JOIN decisions USING (entry) "
            "JOIN rows ON rows.number = standing.row WHERE standing.reviewer = ? ORDER BY entry DESC LIMIT 1",
            (reviewer,),
        ).fetchone()
    return (found["id"], found["number"], Verdict(found["verdict"])) if found else None


def pace(times: list[float]) -> float | None:
    """Decisions an hour from their times, latest first, without breaks."""
    gaps = [later - earlier for later, earlier in itertools.pairwise(times)]
    worked = [gap for gap in gaps if 0 <= gap <= BREAK_SECONDS]
    return len(worked) * 3600 / sum(worked) if sum(worked) > 0 else None


def listed(
    store: Store,
    reviewer: str,
    chosen: Filter,
    *,
    decided_by: str | None = None,
    page: int = 1,
    size: int = 50,
) -> tuple[list[Listed], int]:
    """One page of rows in the queue's order, and how many there are in all."""
    terms, values = chosen.sql()
    if decided_by is not None:
        terms += " AND EXISTS (SELECT 1 FROM standing WHERE standing.row = rows.number AND reviewer = :by)"
        values["by"] = decided_by
    with connection(store.path) as opened:
        (count,) = opened.execute(f"SELECT count(*) FROM rows WHERE TRUE{terms}", values).fetchone()
        found = opened.execute(
            f"SELECT * FROM rows WHERE TRUE{terms} ORDER BY doubt DESC, issue_count DESC, number "
            "LIMIT :size OFFSET :at",
            {**values, "size": size, "at": (page - 1) * size},
        ).fetchall()
        rows = []
        for one in found:
            by = opened.execute(
                "SELECT standing.reviewer, verdict FROM standing JOIN decisions USING (entry) WHERE standing.row = ?",
                (one["number"],),
            ).fetchall()
            own = next((Verdict(verdict) for name, verdict in by if name == reviewer), None)
            rows.append(Listed(row_of(one), one["open"], tuple(sorted(name for name, _ in by)), own))
    return rows, count


def reviewers(store: Store) -> list[str]:
    """Everybody whose decisions stand."""
    with connection(store.path) as opened:
        return [name for (name,) in opened.execute("SELECT DISTINCT reviewer FROM standing ORDER BY reviewer")]


def issue_codes(store: Store) -> list[tuple[str, int]]:
    """The codes of issues with their number of rows, the most frequent first."""
    with connection(store.path) as opened:
        query = "SELECT code, row_count FROM issue_totals ORDER BY row_count DESC, code LIMIT 200"
        return [(code, count) for code, count in opened.execute(query)]


@dataclass(frozen=True)
class Read:
    """A row with all that was decided on it."""

    row: ReviewRow
    record: str
    """As JSON."""
    decisions: tuple[Decision, ...]
    """Those that stand, in the order in which they were made."""
    notes: tuple[tuple[str, str], ...]
    """Reviewer and text."""

    @property
    def readings(self) -> tuple[Decision, ...]:
        """The decisions of its readers."""
        return tuple(made for made in self.decisions if not made.settles)

    @property
    def settlement(self) -> Decision | None:
        """The decision of the one who settled a dispute."""
        return next((made for made in self.decisions if made.settles), None)

    @property
    def status(self) -> Status:
        """How far the row is."""
        if self.settlement is not None:
            return Status.SETTLED
        if not self.decisions:
            return Status.UNDECIDED
        if len(self.decisions) < self.row.readings:
            return Status.PARTLY_READ
        return Status.DISPUTED if disagree(self.decisions) else Status.DECIDED

    @property
    def outcome(self) -> Decision | None:
        """The decision that counts: what settled it; of readings that agree the later that changed something."""
        if self.status != Status.DECIDED:
            return self.settlement
        return max(self.decisions, key=lambda made: (bool(made.changed), made.entry))


def all_rows(store: Store) -> Iterator[Read]:
    """Every row in the file's order with its decisions; one consistent state, read as it streams."""
    with connection(store.path) as opened:
        opened.execute("BEGIN")
        made: dict[int, list[Decision]] = defaultdict(list)
        for entry in opened.execute("SELECT decisions.* FROM standing JOIN decisions USING (entry) ORDER BY entry"):
            made[entry["row"]].append(decision_of(entry))
        notes: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for note in opened.execute("SELECT * FROM notes ORDER BY reviewer"):
            notes[note["row"]].append((note["reviewer"], note["text"]))
        for found in opened.execute("SELECT * FROM rows ORDER BY number"):
            number = found["number"]
            yield Read(row_of(found), found["record"], tuple(made.get(number, ())), tuple(notes.get(number, ())))


def blind_readings(store: Store) -> list[dict[str, Decision]]:
    """For each row of several readings, what its reviewers had decided when it was first read completely.

    What they change later, after they may have seen or discussed the other's decision, is not blind.
    """
    with connection(store.path) as opened:
        log = opened.execute(
            "SELECT decisions.*, rows.readings FROM decisions JOIN rows ON number = decisions.row "
            "WHERE rows.readings > 1 AND NOT settles ORDER BY entry"
        ).fetchall()
    made: dict[int, dict[str, list[Decision]]] = defaultdict(lambda: defaultdict(list))
    complete: dict[int, dict[str, Decision]] = {}
    for entry in log:
        row, reviewer = entry["row"], entry["reviewer"]
        if row in complete:
            continue
        if entry["undoes"] is None:
            made[row][reviewer].append(decision_of(entry))
        else:
            made[row][reviewer] = [one for one in made[row][reviewer] if one.entry != entry["undoes"]]
        standing = {name: decisions[-1] for name, decisions in made[row].items() if decisions}
        if len(standing) >= entry["readings"]:
            complete[row] = standing
    return list(complete.values())


@dataclass(frozen=True)
class DifferingRow:
    """A row whose readings differ."""

    number: int
    id: str
    readings: tuple[Decision, ...]
    settlement: Decision | None


def differing_rows(store: Store) -> list[DifferingRow]:
    """Rows that were read completely, and whose readings differ, whether that is settled or not."""
    with connection(store.path) as opened:
        found = opened.execute(
            "SELECT rows.id, rows.readings, decisions.* FROM rows JOIN standing ON standing.row = rows.number "
            "JOIN decisions USING (entry) WHERE rows.readings > 1 ORDER BY rows.number, entry"
        ).fetchall()
    rows = []
    for (number, row_id, needed), entries in itertools.groupby(found, key=itemgetter("row", "id", "readings")):
        made = [decision_of(entry) for entry in entries]
        readings = tuple(one for one in made if not one.settles)
        if len(readings) >= needed and disagree(readings):
            rows.append(DifferingRow(number, row_id, readings, next((one for one in made if one.settles), None)))
    return rows
