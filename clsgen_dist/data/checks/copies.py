"""Texts that occur again: within a file, where a copy counts its text once more; between files, where it leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from clsgen_dist.data.checks.finding import Finding, Limits, RowRef, row_ref, rows_are
from clsgen_dist.data.checks.measure import Measured, Split
from clsgen_dist.data.checks.near import NearDuplicates


def copies_within(measured: Measured, index: int, near: NearDuplicates, limits: Limits) -> Iterator[Finding]:
    split, names = measured.splits[index], measured.label_names
    first: dict[int, int] = {}
    copies = []
    for row, digest in enumerate(split.hashes):
        if first.setdefault(digest, row) != row:
            copies.append(row_ref(split, row, names, like=row_ref(split, first[digest], names)))
    if copies:
        yield Finding(
            "exact-duplicates",
            "warning",
            (split.source.name,),
            f"{rows_are(len(copies), 'repeats', 'repeat')} a text of the file (but for case and space): there are "
            f"{len(first)} different texts",
            "delete the copies: each counts its text once more, in training and in the figures",
            len(copies),
            len(split),
            copies,
        )
    mine = [s for s, where in enumerate(measured.sketch_split) if where == index and near.partner_RS[s, index] >= 0]
    if mine:
        places = []
        for sketch in mine:
            like = int(near.partner_RS[sketch, index])
            places.append(_pair(measured, sketch, like, near.likeness_RS[sketch, index]))
        sizes = Counter(near.group_R[mine].tolist())
        split_by_label = sum(
            bool(place.like and place.label and place.like.label and place.label != place.like.label)
            for place in places
        )
        yield Finding(
            "near-duplicates",
            "warning",
            (split.source.name,),
            f"{_at_least(near)}{len(mine)} of {len(first)} texts are nearly the same as another of the file "
            f"(Jaccard index {limits.near:g} or more), in {len(sizes)} group{'s' * (len(sizes) != 1)}, "
            f"the largest of {max(sizes.values())}"
            + (f"; {split_by_label} have another label than their like" if split_by_label else ""),
            "look at some; keep one of each group, and keep a group's rows in one split",
            len(mine),
            len(split),
            places,
        )


def leakage(measured: Measured, earlier: int, later: int, near: NearDuplicates, limits: Limits) -> Iterator[Finding]:
    a, b, names = measured.splits[earlier], measured.splits[later], measured.label_names
    known: dict[int, int] = {}
    for row, digest in enumerate(a.hashes):
        known.setdefault(digest, row)
    same = [
        row_ref(b, row, names, like=row_ref(a, known[digest], names))
        for row, digest in enumerate(b.hashes)
        if digest in known
    ]
    both = (a.source.name, b.source.name)
    if same:
        yield Finding(
            "leakage",
            "error",
            both,
            f"{len(same)} of {len(b)} rows of {both[1]} have the same text as a row of {both[0]} "
            f"({len(same) / len(b):.1%}): what is measured there is memory",
            f"delete them from {both[0]}, or from {both[1]}",
            len(same),
            len(b),
            same,
        )
    close = []
    for row, sketch in enumerate(b.sketches):
        if b.hashes[row] not in known and near.partner_RS[sketch, earlier] >= 0:
            like = int(near.partner_RS[sketch, earlier])
            place = _pair(measured, sketch, like, near.likeness_RS[sketch, earlier])
            close.append(row_ref(b, row, names, place.detail, place.like))
    if close:
        yield Finding(
            "near-leakage",
            "warning",
            both,
            f"{_at_least(near)}{len(close)} of {len(b)} rows of {both[1]} are nearly the same as a row of {both[0]} "
            f"({len(close) / len(b):.1%}; Jaccard index {limits.near:g} or more)",
            "look at some; rows that say the same belong in one split",
            len(close),
            len(b),
            close,
        )


def leakage_matrix(findings: Sequence[Finding], splits: Sequence[Split]) -> dict[tuple[str, str], tuple[int, int]]:
    """Rows of the second split with the same and with nearly the same text in the first; a split with itself too."""
    matrix = {(a.source.name, b.source.name): (0, 0) for j, b in enumerate(splits) for a in splits[: j + 1]}
    for finding in findings:
        key = (finding.splits[0], finding.splits[-1]) if finding.splits else ("", "")
        if finding.code in ("leakage", "exact-duplicates"):
            matrix[key] = (finding.count, matrix[key][1])
        elif finding.code in ("near-leakage", "near-duplicates"):
            matrix[key] = (matrix[key][0], finding.count)
    return matrix


def _at_least(near: NearDuplicates) -> str:
    return "at least " if near.is_lower_bound else ""


def _pair(measured: Measured, sketch: int, like: int, jaccard: float) -> RowRef:
    """The row of a sketch, with the row it is like."""
    one, other = (
        row_ref(measured.splits[measured.sketch_split[s]], measured.sketch_row[s], measured.label_names)
        for s in (sketch, like)
    )
    return RowRef(one.split, one.line, one.id, one.label, f"Jaccard {jaccard:.2f}", other)
