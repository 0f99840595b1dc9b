"""What a row is to its reviewer, what the page sends back, and the decision made of it.

accept    the row stays; evidence may have been marked
mend      an explanation was rewritten, removed or added
relabel   the label was changed; unless the explanation was rewritten too, it is rejected: it argues for another label
reject    the row's explanations are bad
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from clsgen_dist.data.reading.cells import is_blank
from clsgen_dist.errors import UserError

Spans = tuple[tuple[int, int], ...]
"""Characters [start, end) of a text, in order, without overlap."""
MAX_EXPLANATION = 20_000
MAX_NOTE = 5_000
"""Characters."""


class Verdict(StrEnum):
    """What a reviewer decided; the codes are stored and exported."""

    ACCEPT = "accept"
    MEND = "mend"
    RELABEL = "relabel"
    REJECT = "reject"


class ReviewFault(StrEnum):
    """Why a reviewer's request is refused."""

    UNKNOWN_ROW = "unknown_row"
    UNKNOWN_LABEL = "unknown_label"
    WRONG_EVIDENCE = "wrong_evidence"
    WRONG_EXPLANATION = "wrong_explanation"
    WRONG_NAME = "wrong_name"
    WRONG_NOTE = "wrong_note"
    TAKEN = "taken"
    NOTHING_TO_UNDO = "nothing_to_undo"


class ReviewError(UserError, ValueError):
    """A request of a reviewer that cannot be done; ``code`` for programs, the message for people."""

    def __init__(self, code: ReviewFault, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Issue:
    """What a check found doubtful in a row."""

    code: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class ReviewRow:
    """A row as its reviewer sees it; other reviewers' decisions are no part of it."""

    id: str
    text: str
    label: str | None = None
    answers: tuple[tuple[str, float], ...] = ()
    """Several classes, or the shares of votes, by name: see :mod:`clsgen_dist.data.reading.label_cells`."""
    explanations: tuple[str, ...] = ()
    evidence: Spans = ()
    issues: tuple[Issue, ...] = ()
    doubt: float | None = None
    """Higher is shown earlier; None: the number of issues counts."""
    number: int = 0
    """In the store, from 1, in the file's order."""
    readings: int = 1
    """How many reviewers read it."""

    @property
    def has_several_labels(self) -> bool:
        """Whether its label is a set of classes, which is shown, and cannot be changed here."""
        return self.label is None and bool(self.answers)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a reviewer sends; None is what was left as it is."""

    is_rejected: bool = False
    label: str | None = None
    explanations: tuple[str | None, ...] = ()
    """By place in the row; an empty one is removed, one beyond the row's is added."""
    evidence: Spans | None = None
    seconds: float | None = None
    """For how long the row was on the screen."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A reviewer's decision on a row, complete: label, explanations and evidence as they shall be."""

    verdict: Verdict
    label: str | None
    explanations: tuple[str, ...]
    evidence: Spans
    changed: tuple[str, ...] = ()
    """Of label, explanations, evidence: what differs from the row."""
    row: int = 0
    reviewer: str = ""
    time: float = 0.0
    """Seconds since 1970."""
    seconds: float | None = None
    entry: int = 0
    """In the log, from 1."""


def decision_on(row: ReviewRow, answer: Answer, labels: Collection[str]) -> Decision:
    """The decision that an answer means.

    Raises:
        ReviewError: the label is unknown, evidence is outside the text, or an explanation is too long.
    """
    if answer.is_rejected:
        return Decision(
            verdict=Verdict.REJECT,
            label=row.label,
            explanations=row.explanations,
            evidence=row.evidence,
            seconds=answer.seconds,
        )
    label = row.label if answer.label is None or row.has_several_labels else answer.label
    if label is not None and label != row.label and label not in labels:
        raise ReviewError(
            ReviewFault.UNKNOWN_LABEL,
            f"the label is {label[:60]!r}, expected one of {', '.join(sorted(labels)[:20])}; start the review with "
            "--labels to add one",
        )
    explanations = _merged_explanations(row.explanations, answer.explanations)
    evidence = row.evidence if answer.evidence is None else merged_spans(answer.evidence, len(row.text))
    now = {"label": label, "explanations": explanations, "evidence": evidence}
    changed = tuple(name for name, value in now.items() if value != getattr(row, name))
    verdict = Verdict.ACCEPT
    if "explanations" in changed:
        verdict = Verdict.MEND
    if "label" in changed:
        verdict = Verdict.RELABEL
    return Decision(
        verdict=verdict,
        label=label,
        explanations=explanations,
        evidence=evidence,
        changed=changed,
        seconds=answer.seconds,
    )


def _merged_explanations(old: Sequence[str], new: Sequence[str | None]) -> tuple[str, ...]:
    given = [*new, *([None] * (len(old) - len(new)))]
    texts: list[str] = []
    for place, text in enumerate(given):
        if text is None:
            texts += old[place : place + 1]
            continue
        if len(text) > MAX_EXPLANATION or "\0" in text or not _is_unicode(text):
            raise ReviewError(
                ReviewFault.WRONG_EXPLANATION,
                f"explanation {place + 1} has {len(text)} characters, expected {MAX_EXPLANATION} at most, without NUL "
                "and lone surrogates; shorten or retype it",
            )
        if not is_blank(text):
            texts.append(text.strip())
    return tuple(dict.fromkeys(texts))


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def merged_spans(spans: Spans, length: int) -> Spans:
    """Spans in order, those that touch joined; ReviewError for one outside a text of ``length`` characters."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if not 0 <= start < end <= length:
            raise ReviewError(
                ReviewFault.WRONG_EVIDENCE,
                f"evidence is [{start}, {end}), expected characters of a text of {length}; mark it again",
            )
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)


def judged(row: ReviewRow, decision: Decision) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """``(chosen, rejected)`` explanations that a decision means for preference training."""
    if decision.verdict == Verdict.REJECT:
        return (), row.explanations
    if decision.verdict == Verdict.RELABEL and "explanations" not in decision.changed:
        return (), row.explanations
    rejected = tuple(text for text in row.explanations if text not in decision.explanations)
    return decision.explanations, rejected
