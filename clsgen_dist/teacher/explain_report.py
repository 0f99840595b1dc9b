"""What ``clsgen data explain`` prints."""

from __future__ import annotations

import numpy as np

from clsgen_dist.evaluation.interval import share_interval
from clsgen_dist.io.text import row_count_phrase
from clsgen_dist.teacher.explain import ExplainReport
from clsgen_dist.teacher.rows_to_explain import ExplainedRows
from clsgen_dist.teacher.tasks import TaskCode
from clsgen_dist.teacher.templates import TemplateReport

_WORDS = {
    TaskCode.EXPLAIN: ("explained before", "are explained"),
    TaskCode.PARAPHRASE: ("without explanation", "have paraphrases"),
}
"""What is said of rows that were passed over, and of those with a kept answer."""


def to_text(report: ExplainReport, output: str) -> str:
    """The report as plain text."""
    lines = [
        _read(report, report.task),
        f"{report.explained} of them {_WORDS[report.task][1]}, "
        f"by {report.kept} of {report.answers} answers of {report.model}",
        *_dropped(report),
    ]
    if len(report.agreed_D):
        agreed_D = np.asarray(report.agreed_D).astype(bool)
        interval = share_interval(agreed_D, clusters_N=np.asarray(report.row_D))
        is_known = len(set(report.row_D)) > 1
        lines.append(
            f"agreement with the labels: {agreed_D.mean():.1%} of {len(agreed_D)} decisions"
            + (f" (95 %: {interval.low:.1%} to {interval.high:.1%})" if is_known else "")
        )
    if report.replaced:
        lines.append(
            f"{row_count_phrase(report.replaced, 'had', 'had')} something else in the column of provenance, which is "
            "not in the output; if it is about something else, name another with --columns.provenance"
        )
    if report.refused or report.unanswered:
        lines.append(f"no answer: {report.refused} refused, {report.unanswered} in all tries")
    cost = f", cost {report.cost:.4g}" if report.cost else ""
    lines.append(f"spent: {report.tokens} tokens{cost}")
    if report.is_over_budget:
        lines.append(
            f"stopped at the budget: {report.waiting} questions are open; raise it and run the same command to go on"
        )
    elif report.waiting:
        lines.append(f"{report.waiting} questions are open; run the same command to ask them again")
    lines.append(f"written: {output}")
    return "\n".join(lines)


def templates_to_text(report: TemplateReport, output: str) -> str:
    """The report on templates as plain text."""
    left = [
        (report.without_evidence, "without evidence in the text"),
        (report.without_counter_evidence, "without counter-evidence, which every template wants"),
        (report.without_class, "without a class that applies"),
    ]
    lines = [_read(report, TaskCode.EXPLAIN), f"{report.explained} of them are explained, by templates"]
    if counted := ", ".join(f"{count} {why}" for count, why in left if count):
        lines.append(f"left as they are: {counted}")
    return "\n".join([*lines, *_dropped(report), f"written: {output}"])


def _read(report: ExplainedRows, task: TaskCode) -> str:
    return (
        f"{row_count_phrase(report.rows, 'was', 'were')} read: {report.passed_over} {_WORDS[task][0]}, "
        f"{report.unlabelled} without label, {report.bad} bad; {report.to_explain} to {task}"
    )


def _dropped(report: ExplainedRows) -> list[str]:
    counted = ", ".join(f"{count} {code}" for code, count in report.dropped.most_common())
    return [f"dropped: {counted}"] if counted else []
