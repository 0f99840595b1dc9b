"""Repeated texts: within a file, where copies weigh their text more; between files, where test rows leak."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from clsgen_dist.data.checks.finding import Finding, Limits, RowRef, row_ref
from clsgen_dist.data.checks.near_duplicates import NearDuplicates
from clsgen_dist.data.checks.row_statistics import RowStatistics, Split
from clsgen_dist.io.text import row_count_phrase


def duplicates_within(statistics: RowStatistics, index: int, near: NearDuplicates, limits: Limits) -> Iterator[Finding]:
    """Exact and near duplicates within one split."""
    split, names = statistics.splits[index], statistics.label_names
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
            f"{row_count_phrase(len(copies), 'repeats', 'repeat')} a text of the file (apart from case and white "
            f"space): there are {len(first)} different texts",
            "delete the copies: each gives its text more weight, in training and in the metrics",
            len(copies),
            len(split),
            copies,
        )
    of_split = (sketch for sketch, where in enumerate(statistics.sketch_split) if where == index)
    matched = [sketch for sketch in of_split if near.partner_RS[sketch, index] >= 0]
    if matched:
        pairs = []
        for sketch in matched:
            like = int(near.partner_RS[sketch, index])
            pairs.append(_pair(statistics, sketch, like, near.jaccard_RS[sketch, index]))
        sizes = Counter(near.group_R[matched].tolist())
        split_by_label = sum(
            bool(pair.like and pair.label and pair.like.label and pair.label != pair.like.label) for pair in pairs
        )
        yield Finding(
            "near-duplicates",
            "warning",
            (split.source.name,),
            f"{_at_least(near)}{len(matched)} of {len(first)} texts are nearly the same as another of the file "
            f"(Jaccard index {limits.near:g} or more), in {len(sizes)} group{'s' * (len(sizes) != 1)}, "
            f"the largest of {max(sizes.values())}"
            + (f"; {split_by_label} have another label than the text they match" if split_by_label else ""),
            "look at some; keep one row of each group, or at least the group in one split",
            len(matched),
            len(split),
            pairs,
        )


def leakage(
    statistics: RowStatistics, earlier: int, later: int, near: NearDuplicates, limits: Limits
) -> Iterator[Finding]:
    """Rows of a later split whose text is also in an earlier one, exactly or nearly."""
    a, b, names = statistics.splits[earlier], statistics.splits[later], statistics.label_names
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
            f"({len(same) / len(b):.1%}): metrics on them measure memorisation",
            f"delete them from {both[0]}, or from {both[1]}",
            len(same),
            len(b),
            same,
        )
    close = []
    for row, sketch in enumerate(b.sketches):
        if b.hashes[row] not in known and near.partner_RS[sketch, earlier] >= 0:
            like = int(near.partner_RS[sketch, earlier])
            pair = _pair(statistics, sketch, like, near.jaccard_RS[sketch, earlier])
            close.append(row_ref(b, row, names, pair.detail, pair.like))
    if close:
        yield Finding(
            "near-leakage",
            "warning",
            both,
            f"{_at_least(near)}{len(close)} of {len(b)} rows of {both[1]} are nearly the same as a row of {both[0]} "
            f"({len(close) / len(b):.1%}; Jaccard index {limits.near:g} or more)",
            "look at some; rows with the same content belong in one split",
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


def _pair(statistics: RowStatistics, sketch: int, like: int, jaccard: float) -> RowRef:
    """The row of a sketch, with the row it resembles."""
    one, other = (
        row_ref(statistics.splits[statistics.sketch_split[s]], statistics.sketch_row[s], statistics.label_names)
        for s in (sketch, like)
    )
    return replace(one, detail=f"Jaccard {jaccard:.2f}", like=other)
