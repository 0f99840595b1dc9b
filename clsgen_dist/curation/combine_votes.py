"""A file with a column of votes for each annotator or labelling function becomes one with soft labels.

A label is written as the reader takes it (:mod:`clsgen_dist.data.reading.label_cells`): ``{"a": 0.9, "b": 0.1}``, or
the name alone where one class has all but 0.05 %. Rows with a label keep it; rows without votes stay without label.

Cost: two passes over the rows; 24 bytes a vote and 16 C bytes a row for C classes.

Shapes: N rows, A voters, C classes.
"""

from __future__ import annotations

import json
import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from clsgen_dist.curation.weak_labels import Floats, Votes, dawid_skene, vote_shares
from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.cells import ClassNames, excerpt, is_missing
from clsgen_dist.data.reading.records import Part, find_source, read_part
from clsgen_dist.data.reading.rejection import Fault
from clsgen_dist.errors import DataError, SettingsError
from clsgen_dist.io.files import atomic_file, require_writable, writing

logger = logging.getLogger(__name__)

Method = Literal["dawid-skene", "shares"]
_LEAST = 5e-4
"""Smaller shares are left out of a label."""
_FEW_VOTES = 3


@dataclass(frozen=True)
class Voter:
    """What is known of a voter."""

    column: str
    votes: int
    accuracy: float | None
    """As the model has it; None for shares."""
    agreement: float
    """Votes for the class that is most probable in the end."""


@dataclass(frozen=True)
class CombineReport:
    """What was combined."""

    rows: int
    had_label: int
    without_votes: int
    contested: int
    """Rows with votes for more than one class."""
    bad: int
    expected: dict[str, float]
    """Rows of each class, expected."""
    voters: list[Voter]


def combine_votes(
    source: str,
    output: Path,
    voters: Sequence[str],
    *,
    columns: Columns,
    method: Method = "dawid-skene",
    abstain: Sequence[str] = (),
) -> CombineReport:
    """Combine the votes of a file.

    Args:
        source: see :func:`clsgen_dist.data.reading.records.find_source`.
        output: JSON lines: all rows in order with their columns, and the label.
        voters: their columns.
        columns: the names of the others.
        method: Dawid and Skene's model, or the shares of the votes.
        abstain: cells that are no vote, besides empty ones, such as -1.

    Raises:
        SettingsError: one voter, or an output that cannot be written.
        DataError: the source cannot be read, or nobody voted.
    """
    if len(set(voters)) < 2:
        raise SettingsError(f"--voters is {list(voters)}, expected two or more columns of votes, like [anna, ben]")
    if twice := [name for name in dict.fromkeys(voters) if list(voters).count(name) > 1]:
        raise SettingsError(f"--voters names {twice[0]!r} twice, which would count its votes twice; name it once")
    if output.suffix.lower() != ".jsonl":
        raise SettingsError(
            f"--output is {output}, expected a name that ends in .jsonl: rows are written as JSON lines"
        )
    part = find_source(source)
    if output.exists() and Path(part.path).exists() and output.samefile(part.path):
        raise SettingsError(f"--output is {output}, the rows themselves; name another file")
    require_writable(output)
    votes, names = _read_votes(part, voters, columns, frozenset(abstain))
    if votes.per_row_N.max() < _FEW_VOTES and method == "dawid-skene":
        logger.warning(
            "no row has %d votes or more, so nothing says who errs; --method shares is recommended", _FEW_VOTES
        )
    fitted = dawid_skene(votes) if method == "dawid-skene" else None
    label_NC = vote_shares(votes) if fitted is None else fitted.posterior_NC
    had_label, bad = _write(part, output, label_NC, votes, names, columns)
    accuracy_A: list[float | None] = [None] * votes.voters if fitted is None else fitted.accuracy_A.tolist()
    has_votes_N = votes.per_row_N > 0
    best_V = np.nan_to_num(label_NC).argmax(axis=1)[votes.row_V]
    return CombineReport(
        rows=votes.rows,
        had_label=had_label,
        without_votes=int((~has_votes_N).sum()),
        contested=int((np.nan_to_num(vote_shares(votes)).max(axis=1)[has_votes_N] < 1).sum()),
        bad=bad,
        expected=dict(zip(names, label_NC[has_votes_N].sum(axis=0).tolist(), strict=True)),
        voters=[
            Voter(
                column,
                int((votes.voter_V == index).sum()),
                accuracy_A[index],
                float((best_V == votes.class_V)[votes.voter_V == index].mean()) if index in votes.voter_V else 0.0,
            )
            for index, column in enumerate(voters)
        ],
    )


def _read_votes(
    part: Part, voters: Sequence[str], columns: Columns, abstain: frozenset[str]
) -> tuple[Votes, list[str]]:
    """The votes, and the classes in order."""
    reader, known, seen, rows = ClassNames(None), dict[str, int](), set[str](), 0
    row_V, voter_V, class_V = array("q"), array("q"), array("q")
    for line, record, _ in read_part(part, columns, every_column=True):
        cells = {} if isinstance(record, Fault) else record
        for index, column in enumerate(voters):
            seen.update({column} & cells.keys())
            try:
                name = reader.read(cells.get(column), [])
            except Fault:
                raise DataError(
                    f"{part.source}:{line}: the vote in {column} is {excerpt(str(cells[column]))!r}, expected one "
                    "class; correct it, or leave it empty"
                ) from None
            if name is not None and name not in abstain:
                row_V.append(rows)
                voter_V.append(index)
                class_V.append(known.setdefault(name, len(known)))
        rows += 1
    if missing := [column for column in voters if column not in seen]:
        raise SettingsError(f"--voters names {missing[0]!r}, which is no column of {part.source}; check its name")
    if not row_V:
        raise DataError(f"{part.source} has no vote in {', '.join(voters)}; check the columns")
    names = sorted(known)
    place = np.array([names.index(name) for name in known])
    return Votes.of(row_V, voter_V, place[np.asarray(class_V)], (rows, len(voters), len(names))), names


def _write(
    part: Part, output: Path, label_NC: Floats, votes: Votes, names: Sequence[str], columns: Columns
) -> tuple[int, int]:
    """Write all rows; how many had a label, how many are bad."""
    per_row_N, had_label, bad = votes.per_row_N, 0, 0
    with writing(output), atomic_file(output, durable=True, errors="backslashreplace") as file:
        for row, (_, record, raw) in enumerate(read_part(part, columns, every_column=True)):
            if isinstance(record, Fault):
                bad += 1
                raw = raw if part.kind == "jsonl" else ""
            elif not is_missing(record.get(columns.label)):
                had_label += 1
                raw = raw if part.kind == "jsonl" else json.dumps(record, ensure_ascii=False, default=str)
            else:
                label = label_cell(label_NC[row], names) if per_row_N[row] else None
                raw = json.dumps({**record, columns.label: label}, ensure_ascii=False, default=str)
            if raw:
                file.write(raw + "\n")
    return had_label, bad


def label_cell(share_C: Floats, names: Sequence[str]) -> str | dict[str, float]:
    """The label that stands for shares of the classes."""
    kept = {name: share for name, share in zip(names, share_C.tolist(), strict=True) if share >= _LEAST}
    if len(kept) == 1:
        return next(iter(kept))
    total = sum(kept.values())
    return {name: round(share / total, 6) for name, share in kept.items()}


def to_text(report: CombineReport, output: str) -> str:
    """The report as plain text."""
    width = max(len("voter"), *(len(voter.column) for voter in report.voters))
    lines = [f"{'voter':{width}}  votes    agrees with the result  accuracy by the model"]
    for voter in report.voters:
        accuracy = "n/a" if voter.accuracy is None else f"{voter.accuracy:.1%}"
        lines.append(f"{voter.column:{width}}  {voter.votes:<7}  {voter.agreement:<22.1%}  {accuracy}")
    lines.append("")
    expected = ", ".join(f"{name} {count:.1f}" for name, count in report.expected.items())
    lines.append(
        f"{report.rows} rows: {report.contested} with votes for several classes, {report.without_votes} without votes, "
        f"{report.had_label} keep the label they had, {report.bad} bad"
    )
    lines.append(f"expected rows of each class: {expected}")
    lines.append(f"written: {output}")
    return "\n".join(lines)
