"""What ``clsgen data self-label`` prints."""

from __future__ import annotations

from clsgen_dist.io.text import row_count_phrase
from clsgen_dist.self_training.self_label import SelfLabelReport, SelfLabelSettings


def to_text(report: SelfLabelReport, settings: SelfLabelSettings, output: str) -> str:
    """The report as plain text."""
    counts, kept = report.counts, report.kept.total()
    of_class = ", ".join(f"{c.name} {c.right} of {c.confident}" for c in report.guard.classes)
    lines = [f"guard: {report.guard.text(settings.confidence)}", f"right by class: {of_class}"]
    if report.comparison:
        lines.append(report.comparison.text())
    lines += [
        "",
        f"{row_count_phrase(counts.rows, 'was', 'were')} read: {counts.labelled} with a label, {counts.explained} with "
        f"an explanation of their own, {counts.bad} bad; {counts.unlabelled} to label",
        f"not kept: {report.unsure} below {settings.confidence:g}, {report.above_share} beyond their class's share, "
        f"{report.no_answer} without an answer",
        f"kept: {kept}" + "".join(f", {name} {count}" for name, count in sorted(report.kept.items())),
    ]
    if settings.explain:
        dropped = ", ".join(f"{count} {code}" for code, count in report.dropped.most_common())
        lines.append(f"explained: {report.explained} of them" + (f"; dropped: {dropped}" if dropped else ""))
    if settings.soft:
        lines.append(f"labels are probabilities: train on them with --data.label_space {report.label_space}")
    return "\n".join([*lines, f"written: {output}"])
