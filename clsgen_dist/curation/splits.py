"""One file of rows becomes train, dev, calibration and test, without leakage between them.

Rows with the same text, nearly the same text (:mod:`clsgen_dist.data.checks.near_duplicates`) or the same group are
one component, which goes to one split. After the assignment, each split is searched again for near duplicates of the
others: the search compares the nearest rows of two splits, so it may find what the search in one heap missed; these
components are joined, and all are assigned anew. The files are read again before they take their names.

Cost: two passes to read, one to write; memory as :mod:`clsgen_dist.curation.row_facts` says.

Shapes: R usable rows, T distinct texts, K components.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clsgen_dist.curation.assignment import assign_by_time, assign_stratified, require_rows_everywhere
from clsgen_dist.curation.row_facts import NO_GROUP, RowFacts, read_facts, split_rows
from clsgen_dist.curation.split_files import split_name, split_suffix, write_splits
from clsgen_dist.data.checks.near_duplicates import near_duplicates, normalised, text_hash
from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.ingest import resolve_space
from clsgen_dist.data.reading.label_cells import Space
from clsgen_dist.data.reading.records import Part, find_source
from clsgen_dist.data.reading.rejection import RejectedRow, require_few_bad_rows
from clsgen_dist.errors import DataError, SettingsError

logger = logging.getLogger(__name__)

_ROUNDS = 5
"""Searches for near duplicates between splits, at most."""
UNLABELLED = "(no label)"


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """How rows are divided."""

    fractions: dict[str, float]
    """Shares of the splits, which sum to 1, the earliest first."""
    by_group: str | None = None
    by_time: str | None = None
    near: float | None = 0.8
    """Jaccard index from which two texts are near duplicates; None: only copies are kept together."""
    seed: int = 0
    columns: Columns = field(default_factory=Columns)
    space: Space = "auto"
    max_bad_fraction: float = 0.01


@dataclass(frozen=True)
class SplitReport:
    """What was written."""

    source: str
    files: dict[str, str]
    """File of each split, within the folder."""
    sizes: dict[str, int]
    classes: dict[str, dict[str, int]]
    """Rows of each class in each split; a row with several classes counts for each."""
    components: int
    largest: int
    """Rows of the largest component."""
    copies: int
    """Rows whose text another row has too, exactly."""
    near_copies: int
    """Distinct texts that nearly equal another."""
    groups: int
    without_group: int
    rejected: int
    times: dict[str, tuple[float, float]]
    """Earliest and latest row of each split; empty without time."""


def split_file(source: str, folder: Path, settings: SplitSettings) -> SplitReport:
    """Divide a source into files in a new folder.

    Args:
        source: see :func:`clsgen_dist.data.reading.records.find_source`.
        folder: must not exist, or be empty; it appears when all is written and checked.
        settings: how.

    Raises:
        DataError: the source cannot be read, has too many bad rows, or too few components.
        SettingsError: the folder has files already, or a column does not exist.
    """
    require_new_folder(folder)
    part = find_source(source)
    settings = replace(settings, space=resolve_space(source, settings.columns, settings.space))
    facts = read_facts(
        source,
        columns=settings.columns,
        by_group=settings.by_group,
        by_time=settings.by_time,
        space=settings.space,
        near=settings.near is not None,
    )
    require_few_bad_rows(
        source,
        len(facts),
        len(facts.rejected),
        facts.rejected,
        settings.max_bad_fraction,
        None,
        "--max_bad_fraction",
    )
    if settings.by_group and not facts.group_names:
        raise SettingsError(
            f"--by_group is {settings.by_group}, but no row of {source} has a value in this column; check its name"
        )
    split_R, component_R, near_copies = _assign(facts, settings)
    report = _report(source, part, facts, settings, split_R, component_R, near_copies)
    require_rows_everywhere(report.sizes, report.components, report.largest)
    with write_splits(part, folder, list(settings.fractions), facts, split_R, report, settings) as files:
        for index, file in enumerate(files):
            _verify(file, facts, np.flatnonzero(split_R == index), settings)
    return report


def require_new_folder(folder: Path) -> None:
    """SettingsError if there is something at this place already."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise SettingsError(f"{folder} exists already and is not overwritten; delete it, or name another --output")


def _assign(facts: RowFacts, settings: SplitSettings) -> tuple[NDArray[np.int8], NDArray[np.int64], int]:
    """``[R]`` split and component of each row, and the number of near copies."""
    text_R, group_R = np.asarray(facts.texts), np.asarray(facts.groups)
    texts = int(text_R.max()) + 1 if len(text_R) else 0
    link_T, near_copies = np.arange(texts), 0
    if settings.near is not None:
        near = near_duplicates(facts.sketches, [0] * texts, 1, settings.near)
        link_T, near_copies = near.group_R, int((near.partner_RS[:, 0] >= 0).sum())
    links = [(np.arange(texts), link_T)]
    for _ in range(_ROUNDS):
        component_R = _components(text_R, group_R, links, texts, len(facts.group_names))
        split_R = _assign_components(facts, component_R, settings)
        if settings.near is None:
            break
        split_T = np.zeros(texts, dtype=np.int64)
        split_T[text_R] = split_R
        near = near_duplicates(facts.sketches, split_T.tolist(), len(settings.fractions), settings.near)
        foreign_TS = (near.partner_RS >= 0) & (split_T[:, None] != np.arange(len(settings.fractions)))
        if not foreign_TS.any():
            break
        first_L, _ = np.nonzero(foreign_TS)
        links.append((first_L, near.partner_RS[foreign_TS]))
        logger.info("%d near duplicates more were found between splits, and are joined", len(first_L))
    else:
        raise DataError(
            f"near duplicates lie in different splits after {_ROUNDS} assignments; raise --near, so that fewer texts "
            "count as the same"
        )
    return split_R, component_R, near_copies


def _components(
    text_R: NDArray[np.int64],
    group_R: NDArray[np.int64],
    links: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    texts: int,
    groups: int,
) -> NDArray[np.int64]:
    """``[R]`` the component of each row: texts and groups are nodes; rows with a group, and links, are edges."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    grouped = group_R != NO_GROUP
    first = np.concatenate([text_R[grouped], *(a for a, _ in links)])
    second = np.concatenate([texts + group_R[grouped], *(b for _, b in links)])
    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(texts + groups, texts + groups))
    _, node = connected_components(graph, directed=False)
    _, component_R = np.unique(node[text_R], return_inverse=True)
    return component_R.astype(np.int64)


def _assign_components(facts: RowFacts, component_R: NDArray[np.int64], settings: SplitSettings) -> NDArray[np.int8]:
    """``[R]`` the split of each row."""
    shares = list(settings.fractions.values())
    components = int(component_R.max()) + 1
    size_K = np.bincount(component_R, minlength=components)
    # By the texts, not by place, so that the order of the rows does not matter.
    key_K = np.full(components, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(key_K, component_R, _shuffled(np.asarray(facts.hashes, dtype=np.uint64), settings.seed))
    if settings.by_time:
        time_K = np.full(components, -np.inf)
        np.maximum.at(time_K, component_R, np.asarray(facts.times))
        return assign_by_time(time_K, size_K, key_K, shares)[component_R]
    classes = {name: i for i, name in enumerate(sorted({name for names in facts.sets for name in names or ("",)}))}
    # Rows that stand alone share the counts of their labels: a dictionary for each would be most of the memory.
    alone = [dict.fromkeys((classes[name] for name in names or ("",)), 1) for names in facts.sets]
    classes_K: list[dict[int, int]] = [{} if size > 1 else alone[0] for size in size_K.tolist()]
    for component, label_set in zip(component_R.tolist(), facts.label_sets, strict=True):
        if size_K[component] == 1:
            classes_K[component] = alone[label_set]
            continue
        counts = classes_K[component]
        for name in alone[label_set]:
            counts[name] = counts.get(name, 0) + 1
    return assign_stratified(classes_K, size_K, key_K, shares)[component_R]


def _shuffled(hash_R: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Other random numbers for each seed (SplitMix64)."""
    mixed = hash_R + np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    result: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return result


def _report(
    source: str,
    part: Part,
    facts: RowFacts,
    settings: SplitSettings,
    split_R: NDArray[np.int8],
    component_R: NDArray[np.int64],
    near_copies: int,
) -> SplitReport:
    names, sets, time_R = list(settings.fractions), list(facts.sets), np.asarray(facts.times)
    classes: dict[str, dict[str, int]] = {}
    times: dict[str, tuple[float, float]] = {}
    for index, name in enumerate(names):
        is_here = split_R == index
        counts: Counter[str] = Counter()
        for label_set, rows in Counter(np.asarray(facts.label_sets)[is_here].tolist()).items():
            counts.update(dict.fromkeys(sets[label_set] or (UNLABELLED,), rows))
        classes[name] = dict(sorted(counts.items()))
        if len(time_R) and is_here.any():
            times[name] = (float(time_R[is_here].min()), float(time_R[is_here].max()))
    sizes = np.bincount(split_R, minlength=len(names)).tolist()
    return SplitReport(
        source=source,
        files={name: split_name(name, split_suffix(part)) for name in names},
        sizes=dict(zip(names, sizes, strict=True)),
        classes=classes,
        components=int(component_R.max()) + 1,
        largest=int(np.bincount(component_R).max()),
        copies=len(facts) - len(set(facts.texts)),
        near_copies=near_copies,
        groups=len(facts.group_names),
        without_group=sum(group == NO_GROUP for group in facts.groups),
        rejected=len(facts.rejected),
        times=times,
    )


def _verify(file: Path, facts: RowFacts, rows: NDArray[np.int64], settings: SplitSettings) -> None:
    """Read a written file again: it has these rows, with these texts and groups, in this order, and no other.

    The splits of the texts were compared before, so nothing leaks if each file has its own texts.
    """
    written = split_rows(
        str(file), columns=settings.columns, by_group=settings.by_group, by_time=settings.by_time, space=settings.space
    )
    expected = iter(rows.tolist())
    for row in _examples(written, file):
        at = next(expected, None)
        group = facts.group_names.get(row.groups[0] or "", NO_GROUP)
        if at is None or text_hash(normalised(row.text)) != facts.hashes[at] or group != facts.groups[at]:
            raise DataError(
                f"{file.name}:{row.line} is not the row that was put there; did the source change meanwhile? "
                "Nothing was written, start again"
            )
    if next(expected, None) is not None:
        raise DataError(f"{file.name} has fewer rows than were put there; nothing was written, start again")


def _examples(rows: Iterator[Any], file: Path) -> Iterator[Any]:
    for row in rows:
        if isinstance(row, RejectedRow):
            raise DataError(f"{file.name}:{row.line}: {row.reason}, in a row that was read before; start again")
        yield row
