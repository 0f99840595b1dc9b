"""What ``clsgen data explain`` prints."""

from __future__ import annotations

import numpy as np

from clsgen_dist.evaluation.interval import share_interval
from clsgen_dist.io.text import row_count_phrase
from clsgen_dist.teacher.explain import ExplainReport
from clsgen_dist.teacher.tasks import TaskCode

_WORDS = {
    TaskCode.EXPLAIN: ("explained before", "are explained"),
    TaskCode.PARAPHRASE: ("without explanation", "have paraphrases"),
}
"""What is said of rows that were passed over, and of those with a kept answer."""


def to_text(report: ExplainReport, output: str) -> str:
    """The report as plain text."""
    passed_over, is_done = _WORDS[report.task]
    lines = [
        f"{row_count_phrase(report.rows, 'was', 'were')} read: {report.passed_over} {passed_over}, "
        f"{report.unlabelled} without label, {report.bad} bad; {report.asked_rows} to {report.task}",
        f"{report.explained} of them {is_done}, by {report.kept} of {report.answers} answers of {report.model}",
    ]
    if report.dropped:
        counted = ", ".join(f"{count} {code}" for code, count in report.dropped.most_common())
        lines.append(f"dropped: {counted}")
    if len(report.agreed_D):
        agreed_D = np.asarray(report.agreed_D).astype(bool)
        interval = share_interval(agreed_D, clusters_N=np.asarray(report.row_D))
        is_known = len(set(report.row_D)) > 1
        lines.append(
            f"agreement with the labels: {agreed_D.mean():.1%} of {len(agreed_D)} decisions"
            + (f" (95 %: {interval.low:.1%} to {interval.high:.1%})" if is_known else "")
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
