"""What ``clsgen data split`` prints: sizes, classes, times, and what was kept together."""

from __future__ import annotations

from datetime import UTC, datetime

from clsgen_dist.curation.splits import SplitReport
from clsgen_dist.io.text import row_count_phrase, shortened

_MAX_CLASSES = 12
_LARGE = 0.1
"""A component of more than this share of the rows is reported."""
_DATES = (2e8, 1e10)
"""Numbers taken for seconds since 1970, from 1976 to 2286."""


def to_text(report: SplitReport, folder: str) -> str:
    """The report as plain text."""
    rows = sum(report.sizes.values())
    names = list(report.sizes)
    classes = list(dict.fromkeys(name for split in names for name in report.classes[split]))
    totals = {name: sum(report.classes[split].get(name, 0) for split in names) for name in classes}
    shown = sorted(classes, key=lambda name: -totals[name])[:_MAX_CLASSES]
    header = ["split", "rows", "share", *(shortened(name, 24) for name in shown)]
    table = [header]
    for split in names:
        size = report.sizes[split]
        shares = (
            f"{report.classes[split].get(name, 0)} ({report.classes[split].get(name, 0) / size:.1%})" for name in shown
        )
        table.append([split, str(size), f"{size / rows:.1%}", *shares])
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    if len(classes) > len(shown):
        lines.append(f"and {len(classes) - len(shown)} more classes, in split.json")
    lines += [f"{split}: from {_time(first)} to {_time(last)}" for split, (first, last) in report.times.items()]
    lines.append("")
    lines.append(
        f"{report.components} components stay together: {row_count_phrase(report.copies, 'repeats', 'repeat')} "
        f"a text, {report.near_copies} texts nearly equal another"
        + (f", {report.groups} groups ({report.without_group} rows without)" if report.groups else "")
    )
    if report.largest > _LARGE * rows:
        lines.append(
            f"warning: the largest component has {report.largest} of {rows} rows ({report.largest / rows:.0%})"
        )
    if report.rejected:
        lines.append(f"{row_count_phrase(report.rejected, 'is', 'are')} bad, and in quarantine.jsonl")
    lines.append("checked: no text, near copy or group is in two splits")
    lines.append(f"written: {folder}/: {', '.join(report.files.values())}, split.json")
    return "\n".join(lines)


def _time(value: float) -> str:
    if _DATES[0] < value < _DATES[1]:
        return datetime.fromtimestamp(value, UTC).isoformat(" ").removesuffix("+00:00")
    return f"{value:g}"
