"""Groups of rows: by the user's columns, and by where the rows' reference explanations came from.

A row whose references came from several, such as a person and a teacher, is in the group of each, and there its
explanation is compared with the references of that group alone. A row without references is in none. Provenance is
reported when the rows have more than one; the 20 most frequent names have a group each, all others one together.

Cost: a group's scores are a part of those of all rows; only the overlap with references is measured again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from clsgen_dist.data.example import Columns, Example
from clsgen_dist.data.reading.provenance_cells import Provenance, add_counts, reported_as, reported_names
from clsgen_dist.evaluation.subgroups import MIN_ROWS, rows_by_group
from clsgen_dist.explanations.estimates import RowScores, in_clusters
from clsgen_dist.explanations.references import reference_scores

# N rows

PROVENANCE = "provenance"
"""The groups by where explanations came from, whatever that column is called."""
GroupNames = Sequence[str | tuple[str, ...] | None]
"""Of each row: the group that it is in, or all of them."""


@dataclass(frozen=True)
class ExplanationGroup:
    """What the explanations of a group's rows say."""

    name: str
    rows: int
    scores: dict[str, RowScores]
    """By measure: ``contradictions``, ``statements``, ``numbers``, ``words``; with references ``rouge_l``, ``chrf``."""


@dataclass(frozen=True)
class ExplanationGroups:
    """Groups by name."""

    measured: list[ExplanationGroup]
    too_small: dict[str, int]
    """Rows of the groups with fewer than :data:`~clsgen_dist.evaluation.subgroups.MIN_ROWS` of them."""


def groups_of(examples: Sequence[Example], columns: Columns) -> dict[str, GroupNames]:
    """The groups that rows are in, by column."""
    found: dict[str, GroupNames] = {
        name: [example.groups[index] for example in examples] for index, name in enumerate(columns.groups)
    }
    counts: Counter[Provenance] = Counter()
    for example in examples:
        add_counts(counts, set(example.provenance))
    apart = set(reported_names(counts))
    of_row = [tuple(sorted({reported_as(name, apart) for name in example.provenance})) for example in examples]
    if len({name for names in of_row for name in names}) > 1:
        found[PROVENANCE] = of_row
    return found


def explanation_groups(
    examples: Sequence[Example],
    explanations: Sequence[str],
    scores: Mapping[str, RowScores],
    columns: Columns,
    clusters_N: np.ndarray | None = None,
) -> dict[str, ExplanationGroups]:
    """The scores of each group's explanations, by column.

    Args:
        examples: the rows.
        explanations: one a row.
        scores: of all rows, by measure, in their clusters.
        columns: the names of the rows' columns.
        clusters_N: an id for each row; rows of the same id are alike.
    """
    found: dict[str, ExplanationGroups] = {}
    for column, group_N in groups_of(examples, columns).items():
        by_name = rows_by_group(group_N)
        found[column] = ExplanationGroups([], {n: len(rows) for n, rows in by_name.items() if len(rows) < MIN_ROWS})
        for name, rows in by_name.items():
            if name in found[column].too_small:
                continue
            own = {measure: _part(of_all, rows) for measure, of_all in scores.items()}
            if column == PROVENANCE:
                references = [_references(examples[row], name, by_name) for row in rows]
                overlap = reference_scores([explanations[row] for row in rows], references)
                overlap = in_clusters(overlap, None if clusters_N is None else clusters_N[rows])
                own |= {"rouge_l": overlap.rouge_l, "chrf": overlap.chrf}
            found[column].measured.append(ExplanationGroup(name, len(rows), own))
    return found


def _part(scores: RowScores, rows: np.ndarray) -> RowScores:
    clusters_N = scores.clusters_N
    return replace(scores, values_N=scores.values_N[rows], clusters_N=None if clusters_N is None else clusters_N[rows])


def _references(example: Example, group: str, apart: Container[str]) -> list[str]:
    """A row's references that make it one of the group."""
    pairs = zip(example.explanations, example.provenance, strict=True)
    return [text for text, provenance in pairs if reported_as(provenance, apart) == group]
