"""The summary of a gate as text for a terminal."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from clsgen_dist.curation.gate import REASONS, GateSummary
from clsgen_dist.curation.gate_files import Destination, gate_file
from clsgen_dist.curation.issues import IssueCode
from clsgen_dist.data.reading.provenance_cells import reported_as, reported_names
from clsgen_dist.data.reading.rejection import Rejection
from clsgen_dist.io.tables import markdown_table
from clsgen_dist.io.text import shortened


def to_text(summary: GateSummary, folder: Path) -> str:
    """Rows by destination, then by issue, in Markdown tables."""
    total = summary.rows.total()
    rows = [["rows", "number", "share", "file"]]
    for to in Destination:
        share = f"{summary.rows[to] / total:.1%}" if total else "-"
        rows.append([to, str(summary.rows[to]), share, str(gate_file(folder, to, summary.suffix))])
    parts = [markdown_table(rows)]
    if len(sources := _by_provenance(summary)) > 1:
        parts.append(markdown_table(sources))
    severities = summary.settings["curation"]["severity"]
    issues = [["issue", "severity", "rows", "meaning"]]
    for code, count in sorted(summary.issues.items(), key=lambda item: (-item[1], item[0])):
        issues.append([code, severities[code.replace("-", "_")], str(count), IssueCode(code).words])
    for code, count in sorted(summary.rejections.items(), key=lambda item: (-item[1], item[0])):
        issues.append([code, "reject", str(count), Rejection(code).words])
    parts.append(markdown_table(issues) if len(issues) > 1 else "no issues found")
    parts.append(f"reasons  {folder / REASONS}")
    return "\n\n".join(parts)


def _by_provenance(summary: GateSummary) -> list[list[str]]:
    """The table of rows by where their explanations came from; the header alone where none says so."""
    apart = reported_names(Counter({name: rows.total() for name, rows in summary.provenance.items()}))
    by_name: dict[str, Counter[str]] = {name: Counter() for name in apart}
    for name, rows in summary.provenance.items():
        by_name.setdefault(reported_as(name, apart), Counter()).update(rows)
    table = [["explanations from", "rows", *Destination]]
    for name, rows in by_name.items() if apart else ():
        total = rows.total()
        table.append([shortened(name), str(total), *(f"{rows[to]} ({rows[to] / total:.1%})" for to in Destination)])
    return table
