"""The summary of a gate as text for a terminal."""

from __future__ import annotations

from pathlib import Path

from clsgen_dist.curation.gate import REASONS, GateSummary
from clsgen_dist.curation.gate_files import Destination, gate_file
from clsgen_dist.curation.issues import IssueCode
from clsgen_dist.data.reading.rejection import Rejection
from clsgen_dist.io.tables import markdown_table


def to_text(summary: GateSummary, folder: Path) -> str:
    """Rows by destination, then by issue, in Markdown tables."""
    total = summary.rows.total()
    rows = [["rows", "number", "share", "file"]]
    for to in Destination:
        share = f"{summary.rows[to] / total:.1%}" if total else "-"
        rows.append([to, str(summary.rows[to]), share, str(gate_file(folder, to, summary.suffix))])
    parts = [markdown_table(rows)]
    severities = summary.settings["curation"]["severity"]
    issues = [["issue", "severity", "rows", "meaning"]]
    for code, count in sorted(summary.issues.items(), key=lambda item: (-item[1], item[0])):
        issues.append([code, severities[code.replace("-", "_")], str(count), IssueCode(code).words])
    for code, count in sorted(summary.rejections.items(), key=lambda item: (-item[1], item[0])):
        issues.append([code, "reject", str(count), Rejection(code).words])
    parts.append(markdown_table(issues) if len(issues) > 1 else "no issues found")
    parts.append(f"reasons  {folder / REASONS}")
    return "\n\n".join(parts)
