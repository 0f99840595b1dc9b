"""All checks of some files: each is read once, and looked at alone and together with the others.

Cost: 100,000 short rows in three files in about 20 s on one core, of which loading libraries and tokenizer takes 5.
"""

from __future__ import annotations

from collections.abc import Sequence

from clsgen_dist.data.checks.cell_checks import cells
from clsgen_dist.data.checks.exact_duplicates import duplicates_within, leakage
from clsgen_dist.data.checks.finding import SEVERITIES, Finding, Limits
from clsgen_dist.data.checks.format import explanations, lengths, unreadable
from clsgen_dist.data.checks.label_checks import conflicts, label_names, labels, missing_names, unseen_classes
from clsgen_dist.data.checks.near_duplicates import NearDuplicates, Template, near_duplicates
from clsgen_dist.data.checks.report import CheckReport
from clsgen_dist.data.checks.row_statistics import RowStatistics, Source, measure
from clsgen_dist.data.encode import Encoder
from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.label_cells import Space

_ALL_TEMPLATE = 0.95
"""More of a typical text than this shared by nearly every row: they may all be copies of one."""


def check_rows(
    sources: Sequence[Source],
    *,
    columns: Columns,
    class_names: Sequence[str] | None,
    encoder: Encoder,
    tokenizer: str,
    limits: Limits,
    space: Space = "auto",
) -> CheckReport:
    """Every problem of the rows, with what the report says about them.

    Args:
        sources: the splits, as :func:`clsgen_dist.data.checks.row_statistics.sources_of` names them; the training rows
            are those named ``train``, else the first.
        columns: the names of their columns.
        class_names: the recipe's label space; None accepts the labels that are found.
        encoder: counts tokens, template and question included.
        tokenizer: its name, for the report.
        limits: what training would allow.
        space: the recipe's label space.

    Raises:
        DataError: a source does not exist, or has no text column.
    """
    train = next((index for index, source in enumerate(sources) if source.name == "train"), 0)
    statistics = measure(sources, columns=columns, labels=class_names, encoder=encoder, space=space)
    near = near_duplicates(statistics.sketches, statistics.sketch_split, len(sources), limits.near)
    problems = find_problems(statistics, near, limits, train)
    return CheckReport(statistics, problems, limits, columns=columns, tokenizer=tokenizer)


def find_problems(statistics: RowStatistics, near: NearDuplicates, limits: Limits, train: int) -> list[Finding]:
    """Every finding, errors first; ``train`` is the index of the split that would be trained on."""
    findings: list[Finding] = []
    for index, split in enumerate(statistics.splits):
        findings += unreadable(split, limits)
        if len(split):
            findings += labels(split, statistics, is_train=index == train)
            findings += missing_names(split, statistics)
            findings += cells(split, statistics.label_names)
            findings += explanations(split, statistics.label_names, limits)
            findings += lengths(split, statistics.label_names, limits)
            findings += duplicates_within(statistics, index, near, limits)
    findings += label_names(statistics)
    findings += unseen_classes(statistics, train, limits)
    findings += conflicts(statistics)
    for later in range(1, len(statistics.splits)):
        for earlier in range(later):
            findings += leakage(statistics, earlier, later, near, limits)
    if statistics.template.share:
        findings.append(_shared_template(statistics.template, [split.source.name for split in statistics.splits]))
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _shared_template(template: Template, splits: Sequence[str]) -> Finding:
    suspicious = template.share > _ALL_TEMPLATE
    return Finding(
        "shared-template",
        "warning" if suspicious else "info",
        tuple(splits),
        f"{template.share:.0%} of a typical text is the same in nearly every row; it is left out when texts are "
        "compared for near duplicates",
        "see that the rows differ in more than a counter" if suspicious else "",
    )
