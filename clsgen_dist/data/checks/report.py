"""The findings of `clsgen data check` as text for a terminal and as JSON for programs; ``page.py`` writes HTML."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clsgen_dist.data.checks.diversity import REMEDY, ClassDiversity
from clsgen_dist.data.checks.finding import SEVERITIES, Finding, Limits, RowRef, first_rows
from clsgen_dist.data.checks.label_checks import class_counts
from clsgen_dist.data.checks.row_statistics import RowStatistics, Split
from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.provenance_cells import Provenance, reported_as, reported_names
from clsgen_dist.io.tables import markdown_table
from clsgen_dist.io.text import quoted, shortened

_MAX_ROWS = 5
_MAX_CLASSES = 50


@dataclass(frozen=True)
class CheckReport:
    """Everything that a report contains."""

    statistics: RowStatistics
    findings: list[Finding]
    limits: Limits
    columns: Columns
    tokenizer: str
    diversity: list[ClassDiversity] = field(default_factory=list)
    """How different the explanations of each class are; empty where that was not asked for."""

    def path(self, split: str) -> str:
        """The source of a split."""
        return next(s.source.path for s in self.statistics.splits if s.source.name == split)

    def where(self, ref: RowRef) -> str:
        """``train.jsonl:17``; with the split's name where the file's would be ambiguous, or there is no file."""
        files = [Path(split.source.path).name for split in self.statistics.splits]
        file = Path(self.path(ref.split)).name
        is_file = Path(self.path(ref.split)).expanduser().is_file() and files.count(file) == 1
        return f"{file if is_file else ref.split}:{ref.line}"

    def verdict(self) -> str:
        """Findings by severity, in words."""
        counts = Counter(finding.severity for finding in self.findings)
        counted = [f"{counts[s]} {s}{'s' * (counts[s] != 1)}" for s in SEVERITIES[:2] if counts[s]]
        return ", ".join(counted) or "no problems found"


def overview(split: Split) -> dict[str, str]:
    """A row of the table of files: column and value."""
    rows = len(split)
    labelled = split.labelled
    explained = sum(count > 0 for count in split.explanations)
    prompts = np.asarray(split.prompt_tokens)
    reasons = np.array([tokens for tokens in split.explanation_tokens if tokens])
    return {
        "split": split.source.name,
        "rows": str(rows),
        "unusable": str(len(split.rejected)),
        "labelled": _share(labelled, rows),
        "explained": _share(explained, rows),
        "prompt tokens, median / 95 % / longest": _spread(prompts),
        "explanation tokens": _spread(reasons),
    }


def classes(splits: Sequence[Split], statistics: RowStatistics) -> list[dict[str, str]]:
    """The table of the largest classes: rows of each split, with their share of the labelled ones."""
    counts = {split.source.name: class_counts(split, statistics) for split in splits}
    labelled = {split.source.name: max(1, split.labelled) for split in splits}
    largest = sorted(statistics.class_names, key=lambda name: -sum(c.get(name, 0) for c in counts.values()))
    return [
        {
            "class": quoted(name),
            **{split: f"{c.get(name, 0)} ({c.get(name, 0) / labelled[split]:.1%})" for split, c in counts.items()},
        }
        for name in largest[:_MAX_CLASSES]
    ]


def provenances(splits: Sequence[Split]) -> list[dict[str, str]]:
    """The table of where explanations came from, with shares of a split's; empty where that is stated nowhere."""
    every: Counter[Provenance] = Counter()
    for split in splits:
        every.update(split.provenance)
    apart = reported_names(every)
    counts: dict[str, dict[str, int]] = {}
    for name, _ in sorted(every.items(), key=lambda item: (item[0] not in apart, item[0] is None, str(item[0]))):
        row = counts.setdefault(reported_as(name, apart), dict.fromkeys((split.source.name for split in splits), 0))
        for split in splits:
            row[split.source.name] += split.provenance[name]
    totals = {split.source.name: split.provenance.total() for split in splits}
    return [
        {"explanations from": shortened(name), **{split: _share(count, totals[split]) for split, count in row.items()}}
        for name, row in counts.items()
        if apart
    ]


def to_text(report: CheckReport) -> str:
    """Tables in Markdown, then each finding with its first rows and the remedy."""
    splits = report.statistics.splits
    parts = [_table([overview(split) for split in splits])]
    if report.statistics.class_names:
        parts.append(_table(classes(splits, report.statistics)))
        if len(report.statistics.class_names) > _MAX_CLASSES:
            parts[-1] += f"\n{len(report.statistics.class_names)} classes; only the largest are listed"
    if sources := provenances(splits):
        parts.append(_table(sources))
    if report.diversity:
        parts.append(f"{_table([row.cells() for row in report.diversity])}\nremedy: {REMEDY}")
    for finding in report.findings:
        lines = [f"{finding.severity:7}  {finding.code} [{', '.join(finding.splits)}]: {finding.what}"]
        if finding.rows and finding.severity != "info":
            more = f" … {len(finding.rows)} rows in all" if len(finding.rows) > _MAX_ROWS else ""
            lines.append(
                "         where: " + "; ".join(_location(report, r) for r in first_rows(finding, _MAX_ROWS)) + more
            )
        if finding.remedy:
            lines.append(f"         remedy: {finding.remedy}")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, report.verdict()])


def to_json(report: CheckReport) -> str:
    """Every finding with every row; fields are only ever added, so that programs can rely on them."""
    splits = [
        {
            "name": split.source.name,
            "source": split.source.path,
            "rows": len(split),
            "unusable": len(split.rejected),
            "classes": class_counts(split, report.statistics),
            "explained": sum(count > 0 for count in split.explanations),
            "explanations": split.provenance.total(),
            "provenance": {name: count for name, count in split.provenance.items() if name is not None},
            "provenance_not_stated": split.provenance[None],
        }
        for split in report.statistics.splits
    ]
    findings = [
        {
            "finding": finding.code,
            "severity": finding.severity,
            "splits": list(finding.splits),
            "what": finding.what,
            "remedy": finding.remedy,
            "count": finding.count,
            "of": finding.of,
            "rows": [_row_json(report, ref) for ref in finding.rows],
        }
        for finding in report.findings
    ]
    document = {"schema": 1, "tokenizer": report.tokenizer, "splits": splits, "findings": findings}
    document["diversity"] = [row.to_json() for row in report.diversity]
    return json.dumps(document, ensure_ascii=True, indent=1) + "\n"


def _row_json(report: CheckReport, ref: RowRef) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "split": ref.split,
        "source": report.path(ref.split),
        "line": ref.line,
        "id": ref.id,
        "label": ref.label,
    }
    if ref.detail:
        fields["detail"] = ref.detail
    if ref.like:
        fields["like"] = _row_json(report, ref.like)
    return fields


def _location(report: CheckReport, ref: RowRef) -> str:
    """Where a row is and what is specific to it, for people."""
    inside = ", ".join(text for text in (ref.id if ref.has_own_id else None, ref.detail) if text)
    if ref.like and ref.label and ref.like.label and ref.label != ref.like.label:
        inside += f"{', ' if inside else ''}{quoted(ref.label)}, not {quoted(ref.like.label)}"
    like = f" = {report.where(ref.like)}" if ref.like else ""
    return f"{report.where(ref)}{like}" + (f" ({inside})" if inside else "")


def _table(rows: Sequence[dict[str, str]]) -> str:
    return markdown_table([list(rows[0]), *(list(row.values()) for row in rows)])


def _share(count: int, total: int) -> str:
    return f"{count} ({count / total:.0%})" if total else "-"


def _spread(lengths: np.ndarray) -> str:
    if not len(lengths):
        return "-"
    median, high = np.percentile(lengths, [50, 95])
    return f"{median:.0f} / {high:.0f} / {lengths.max()}"
