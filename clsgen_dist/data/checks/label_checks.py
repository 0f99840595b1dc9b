"""Findings on labels: one class, few rows, imbalance, misspelt names, and texts with two labels."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from clsgen_dist.data.checks.finding import Finding, Limits, RowRef, row_ref
from clsgen_dist.data.checks.near_duplicates import normalised
from clsgen_dist.data.checks.row_statistics import RowStatistics, Split
from clsgen_dist.data.reading.cells import MISSING_WORDS
from clsgen_dist.io.text import counts_phrase, quoted, row_count_phrase

_FEW_ROWS = 20
"""Rows of a class; with fewer, a single row changes recall by more than five points."""
_UNBALANCED = 10
"""Reported when the largest class has this many times the rows of the smallest."""


def class_counts(split: Split, statistics: RowStatistics) -> dict[str, int]:
    """Rows of each class that the split has."""
    counts: Counter[str] = Counter()
    for label, rows in Counter(split.labels).items():
        if label >= 0:
            counts.update(dict.fromkeys(statistics.classes(label), rows))
    return {name: counts[name] for name in statistics.class_names if counts[name]}


_MAX_GROUPS = 10
_MISSING = frozenset(word.casefold() for word in MISSING_WORDS)
_MAX_NAMES = 200
"""With more classes, names are not compared for typos, which takes quadratic time."""


_LOOKALIKES = str.maketrans("асԁеһіјкмոорԛѕтѵԝхуαικνορτυχ", "acdehijkmnopqstvwxyaikvoptux")
"""Lower-case Cyrillic, Greek and Armenian letters that look like Latin ones (Unicode TS 39)."""


def _skeleton(name: str) -> str:
    """Equal for names that look alike (a skeleton in the sense of Unicode TS 39)."""
    return normalised(name).translate(_LOOKALIKES)


def _merge_alike(counts: dict[str, int]) -> dict[str, int]:
    """The counts with classes whose names look alike merged, under the most frequent name."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(counts, key=lambda name: -counts[name]):
        groups[_skeleton(name)].append(name)
    return {group[0]: sum(counts[name] for name in group) for group in groups.values()}


def labels(split: Split, statistics: RowStatistics, *, is_train: bool) -> Iterator[Finding]:
    """Missing labels, a single class, imbalance."""
    name = (split.source.name,)
    counts = _merge_alike(class_counts(split, statistics))
    labelled = split.labelled
    if len(counts) < (1 if statistics.sets else 2):
        fact = f"all {labelled} labelled rows are {quoted(next(iter(counts)))}" if counts else "no row has a label"
        yield Finding(
            "one-class",
            "error" if is_train else "warning",
            name,
            f"{fact}: "
            + ("a classifier needs two classes" if is_train else "AUROC and calibration cannot be measured"),
            "check --columns.label" if not counts else "add rows of the other classes",
            labelled,
            len(split),
        )
        return
    if labelled < len(split):
        yield Finding(
            "unlabelled",
            "info",
            name,
            f"{row_count_phrase(len(split) - labelled, 'has', 'have')} no label: they train the explanation only",
            count=len(split) - labelled,
            of=len(split),
            rows=[row_ref(split, row) for row, label in enumerate(split.labels) if label < 0],
        )
    few = {label: count for label, count in counts.items() if count < _FEW_ROWS}
    if few:
        yield Finding(
            "few-rows",
            "warning",
            name,
            f"fewer than {_FEW_ROWS} rows of a class: {counts_phrase(few)}",
            "add rows: so few are memorised" if is_train else "add rows: metrics on so few have very wide intervals",
            sum(few.values()),
            labelled,
        )
    rarest, commonest = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[commonest] >= _UNBALANCED * counts[rarest]:
        yield Finding(
            "imbalance",
            "warning",
            name,
            f"{counts[commonest]} rows of {quoted(commonest)} for {counts[rarest]} of {quoted(rarest)} "
            f"({counts[commonest] / counts[rarest]:.0f} to 1): a model that always predicts {quoted(commonest)} is "
            f"right in {counts[commonest] / labelled:.0%} of the rows",
            f"collect more rows of {quoted(rarest)}; judge by AUROC and F1, never by accuracy",
            counts[rarest],
            labelled,
        )


def label_names(statistics: RowStatistics) -> Iterator[Finding]:
    """Class names that look alike or occur once."""
    names = statistics.class_names
    index_of = {name: index for index, name in enumerate(names)}
    totals: Counter[int] = Counter()
    for split in statistics.splits:
        totals.update({index_of[name]: rows for name, rows in class_counts(split, statistics).items()})
    same: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        if totals[index]:
            same[_skeleton(name)].append(index)
    similar = [(sorted(group, key=lambda i: -totals[i]), "look alike") for group in same.values()]
    folded = sorted(same, key=lambda key: -max(totals[i] for i in same[key]))
    for place, key in enumerate(folded if len(folded) <= _MAX_NAMES else []):
        near = [
            other
            for other in difflib.get_close_matches(key, folded[:place], n=1, cutoff=0.85)
            if 20 * totals[same[key][0]] <= max(totals[i] for i in same[other]) and not any(c.isdigit() for c in key)
        ]
        similar += [
            ([max(same[other], key=lambda i: totals[i]), *same[key]], "may be one class, misspelt") for other in near
        ]
    similar = [(group, how) for group, how in similar if len(group) > 1]
    if len(similar) > _MAX_GROUPS:
        yield Finding(
            "label-names",
            "warning",
            tuple(split.source.name for split in statistics.splits),
            f"{len(similar)} groups of labels look alike, or differ by a typo; {_MAX_GROUPS} of them follow",
            "check that data.columns.label names the column of the classes, and spell each class in one way",
        )
    for group, how in similar[:_MAX_GROUPS]:
        rare = {names[i] for i in group[1:]}
        rows = [ref for split in statistics.splits for ref in _rows_of(split, rare, statistics)]
        yield Finding(
            "label-names",
            "warning",
            tuple(dict.fromkeys(place.split for place in rows)),
            f"the labels {counts_phrase({names[i]: totals[i] for i in group})} {how}, and would be separate classes",
            f"write {quoted(names[group[0]])} in these rows, or list the true classes in data.labels",
            len(rows),
            sum(totals.values()),
            rows,
        )


def missing_names(split: Split, statistics: RowStatistics) -> Iterator[Finding]:
    """Classes called like a missing value."""
    found = class_counts(split, statistics)
    suspects = {name: count for name, count in found.items() if name.casefold() in _MISSING}
    if suspects and not statistics.labels_are_listed:
        rows = _rows_of(split, set(suspects), statistics)
        yield Finding(
            "missing-class",
            "warning",
            (split.source.name,),
            f"the class {counts_phrase(suspects)} may stand for a missing label; it is read as a class",
            "leave these cells empty, if they have no label",
            len(rows),
            len(split),
            rows,
        )


def unseen_classes(statistics: RowStatistics, train: int, limits: Limits) -> Iterator[Finding]:
    """Classes of other splits that the training rows lack."""
    known = set(class_counts(statistics.splits[train], statistics))
    if not known:
        return
    for split in statistics.splits:
        unseen = {name: n for name, n in class_counts(split, statistics).items() if name not in known}
        if unseen:
            rows = _rows_of(split, set(unseen), statistics)
            too_many = len(rows) + len(split.rejected) > limits.max_bad_fraction * split.total
            yield Finding(
                "unseen-class",
                "error" if too_many else "warning",
                (split.source.name,),
                f"{row_count_phrase(len(rows), 'has', 'have')} a class that "
                f"{statistics.splits[train].source.name} does not have: {counts_phrase(unseen)}",
                "fix the labels, or move rows of the class to the training file",
                len(rows),
                len(split),
                rows,
            )


def _rows_of(split: Split, classes: set[str], statistics: RowStatistics) -> list[RowRef]:
    """The rows of a split with one of these classes."""
    wanted = {n for n in range(len(statistics.label_names)) if classes & set(statistics.classes(n))}
    return [row_ref(split, row, statistics.label_names) for row, label in enumerate(split.labels) if label in wanted]


def conflicts(statistics: RowStatistics) -> Iterator[Finding]:
    """Equal texts with different labels."""
    hashes, splits, rows = _all_rows(statistics)
    labels = np.concatenate([np.asarray(split.labels, dtype=np.int64) for split in statistics.splits])
    conflicting: list[RowRef] = []
    texts, across = 0, 0
    for group in _repeated(hashes, labels >= 0):
        if len(set(labels[group].tolist())) > 1:
            texts += 1
            across += len(set(splits[group].tolist())) > 1
            places = [row_ref(statistics.splits[splits[i]], rows[i], statistics.label_names) for i in group]
            first = {place.label: place for place in reversed(places)}
            conflicting += [replace(p, like=next(q for label, q in first.items() if label != p.label)) for p in places]
    if conflicting:
        yield Finding(
            "label-conflict",
            "error",
            tuple(dict.fromkeys(place.split for place in conflicting)),
            f"{texts} {'text has' if texts == 1 else 'texts have'} two labels or more"
            + (f" ({across} of them across files)" if across else "")
            + f": {len(conflicting)} rows",
            "decide on one label for each, or delete these rows",
            len(conflicting),
            len(hashes),
            conflicting,
        )


def _all_rows(statistics: RowStatistics) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Hash, split and row of all rows."""
    splits = statistics.splits
    return (
        np.concatenate([np.asarray(split.hashes, dtype=np.uint64) for split in splits]),
        np.repeat(np.arange(len(splits)), [len(split) for split in splits]),
        np.concatenate([np.arange(len(split)) for split in splits]),
    )


def _repeated(hashes: NDArray[np.uint64], among: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """Indices of each hash that occurs more than once, in order."""
    places = np.flatnonzero(among)
    order = places[np.argsort(hashes[places], kind="stable")]
    ends = np.flatnonzero(np.diff(hashes[order])) + 1
    yield from sorted((group for group in np.split(order, ends) if len(group) > 1), key=lambda group: group[0])
