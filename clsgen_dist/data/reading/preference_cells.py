"""What reviewers thought of explanations: which they rejected.

    explanation "…", verdict "rejected"      one verdict on the row's explanations
    chosen "…", rejected "…"                 a pair, or a list of each

What was chosen is an explanation like any other. ``verdict`` is about the columns ``explanation`` and ``explanations``;
without one they count as accepted. In the conversational form, a list of messages, the last one's content counts.

Cost: some microseconds per row that has such cells.
"""

from __future__ import annotations

from typing import Any

from clsgen_dist.data.reading.cells import MISSING_WORDS, Notice, Notices, excerpt, explanations_of, is_missing
from clsgen_dist.data.reading.rejection import Fault, Rejection

_VERDICTS = {
    True: ("accepted", "accept", "true", "1", "1.0", "yes", "chosen", "good", "up", "correct"),
    False: ("rejected", "reject", "false", "0", "0.0", "no", "bad", "down", "wrong"),
}
_IS_ACCEPTED = {word: accepted for accepted, words in _VERDICTS.items() for word in words}


def judged_explanations(
    explanations: tuple[str, ...], verdict: Any, chosen: Any, rejected: Any, notices: Notices
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The explanations that count as good, and those that were rejected; one that is both is not rejected.

    Raises:
        Fault: a cell cannot be read.
    """
    accepted = _is_accepted(verdict)
    good = (*(explanations if accepted else ()), *explanations_of([_last_message(chosen)], notices))
    bad = (*(() if accepted else explanations), *explanations_of([_last_message(rejected)], notices))
    known = {text.strip() for text in good}
    for text in bad:
        if text.strip() in known:
            notices.append((Notice.TIED_EXPLANATION, excerpt(text)))
    return tuple(dict.fromkeys(good)), tuple(dict.fromkeys(text for text in bad if text.strip() not in known))


def _is_accepted(verdict: Any) -> bool:
    if is_missing(verdict) or (isinstance(verdict, str) and verdict.strip() in MISSING_WORDS):
        return True
    accepted = _IS_ACCEPTED.get(str(verdict).strip().casefold())
    if accepted is None:
        words = " or ".join(f"{words[0]!r}" for words in _VERDICTS.values())
        raise Fault(Rejection.WRONG_VERDICT, f"{excerpt(str(verdict))!r}, expected {words}")
    return accepted


def _last_message(cell: Any) -> Any:
    """The content of the last of several messages; any other cell as it is."""
    if hasattr(cell, "tolist"):
        cell = cell.tolist()
    if isinstance(cell, list) and cell and isinstance(cell[-1], dict) and "content" in cell[-1]:
        return cell[-1]["content"]
    return cell
