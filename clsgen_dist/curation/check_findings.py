"""The issues of a source's rows as findings of ``clsgen data check``, and how different its explanations are.

Cost: that of :mod:`clsgen_dist.curation.row_checks`; every affected row is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clsgen_dist.curation.diversity import DiversitySamples
from clsgen_dist.curation.explanation_checks import severity
from clsgen_dist.curation.issues import IssueCode
from clsgen_dist.curation.row_checks import checked_rows, survey_rows
from clsgen_dist.curation.row_source import RowSource
from clsgen_dist.curation.settings import CurationSettings
from clsgen_dist.data.checks.diversity import ClassDiversity
from clsgen_dist.data.checks.finding import Finding, RowRef
from clsgen_dist.data.reading.rejection import RejectedRow


@dataclass(frozen=True)
class CheckedSource:
    """What the rows of a source show."""

    findings: list[Finding]
    """One for each issue that occurs."""
    diversity: list[ClassDiversity]
    """Of the largest classes."""


def check_source(split: str, source: RowSource, settings: CurationSettings) -> CheckedSource:
    """Every issue of a source's rows.

    Args:
        split: its name.
        source: the rows; those that cannot be read are passed over.
        settings: thresholds and severities: a ``note`` becomes an info, others a warning.

    Raises:
        DataError: the source cannot be read.
    """
    survey = survey_rows(source, settings)
    samples, found, total = DiversitySamples(survey.names), dict[IssueCode, list[RowRef]](), 0
    for row, issues in checked_rows(survey, settings):
        if isinstance(row, RejectedRow):
            continue
        total += 1
        samples.add(row)
        first_details = {issue.code: issue.detail for issue in reversed(issues)}
        for code, detail in first_details.items():
            ref = RowRef(split, row.line, row.id, row.has_own_id, row.label, detail)
            found.setdefault(code, []).append(ref)
    return CheckedSource(list(_findings(split, found, total, settings)), samples.measure(split))


def _findings(
    split: str, found: dict[IssueCode, list[RowRef]], total: int, settings: CurationSettings
) -> Iterator[Finding]:
    for code in IssueCode:
        if rows := found.get(code):
            yield Finding(
                code,
                "info" if severity(code, settings) == "note" else "warning",
                (split,),
                f"in {len(rows)} of {total} rows {code.words}",
                f"{code.remedy}; `clsgen data gate` moves them to files of their own",
                len(rows),
                total,
                rows,
            )
