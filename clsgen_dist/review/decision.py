"""What a row is to its reviewer, what the page sends back, and the decision made of it.

accept    the row stays; evidence may have been marked
mend      an explanation was rewritten, removed or added
relabel   the row has other classes; unless the explanation was rewritten too, it is rejected: it argues for the old
reject    the row's explanations are bad

Votes become one class where one is chosen. An answer of a multi-label row that no longer claims a class to be known, or
that is no longer a probability, changes the label without relabelling: the explanation argues for the same classes.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from clsgen_dist.data.reading.cells import is_blank
from clsgen_dist.data.reading.label_cells import OTHERS
from clsgen_dist.errors import UserError
from clsgen_dist.review.classes import Answers, canonical, claimed

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
    answers: Answers = ()
    """Several classes, or the shares of votes: see :mod:`clsgen_dist.review.classes`."""
    is_multilabel: bool = False
    explanations: tuple[str, ...] = ()
    evidence: Spans = ()
    """What speaks for the label."""
    counter_evidence: Spans = ()
    """What speaks against it."""
    issues: tuple[Issue, ...] = ()
    doubt: float | None = None
    """Higher is shown earlier; None: the number of issues counts."""
    number: int = 0
    """In the store, from 1, in the file's order."""
    readings: int = 1
    """How many reviewers read it."""
    is_disputed: bool = False
    """Whether its readings disagree, and nobody has settled that yet."""

    @property
    def has_votes(self) -> bool:
        """Whether its label is that of the most of several annotators."""
        return self.label is not None and bool(self.answers)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a reviewer sends; None is what was left as it is."""

    is_rejected: bool = False
    label: str | None = None
    """One class; of rows that have votes, in their place."""
    answers: Mapping[str, float | None] | None = None
    """Of multi-label rows, by class; None is not known. Classes that are not named stay as they are."""
    explanations: tuple[str | None, ...] = ()
    """By place in the row; an empty one is removed, one beyond the row's is added."""
    evidence: Spans | None = None
    counter_evidence: Spans | None = None
    seconds: float | None = None
    """For how long the row was on the screen."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A reviewer's decision on a row, complete: classes, explanations and evidence as they shall be."""

    verdict: Verdict
    label: str | None
    answers: Answers = ()
    explanations: tuple[str, ...]
    evidence: Spans
    counter_evidence: Spans = ()
    changed: tuple[str, ...] = ()
    """Of label, explanations, evidence, counter_evidence: what differs from the row."""
    settles: bool = False
    """Whether it settles a dispute of the row's readers, and is no reading."""
    row: int = 0
    reviewer: str = ""
    time: float = 0.0
    """Seconds since 1970."""
    seconds: float | None = None
    entry: int = 0
    """In the log, from 1."""

    @property
    def classes(self) -> Hashable:
        """What reviewers agree in, or not: one class, or the answers for all."""
        return self.answers if self.label is None else self.label


def disagree(readings: Sequence[Decision]) -> bool:
    """Whether readings differ in the classes, or in whether the row is rejected."""
    return len({(made.verdict == Verdict.REJECT, made.classes) for made in readings}) > 1


def decision_on(row: ReviewRow, answer: Answer, labels: Collection[str]) -> Decision:
    """The decision that an answer means.

    Raises:
        ReviewError: the label is unknown, evidence is outside the text, or an explanation is too long.
    """
    if answer.is_rejected:
        return Decision(
            verdict=Verdict.REJECT,
            label=row.label,
            answers=row.answers,
            explanations=row.explanations,
            evidence=row.evidence,
            counter_evidence=row.counter_evidence,
            seconds=answer.seconds,
        )
    label, answers = _classes(row, answer, labels)
    explanations = _merged_explanations(row.explanations, answer.explanations)
    evidence, counter_evidence = (
        old if new is None else merged_spans(new, len(row.text))
        for old, new in ((row.evidence, answer.evidence), (row.counter_evidence, answer.counter_evidence))
    )
    differs = {
        "label": (label, answers) != (row.label, row.answers),
        "explanations": explanations != row.explanations,
        "evidence": evidence != row.evidence,
        "counter_evidence": counter_evidence != row.counter_evidence,
    }
    verdict = Verdict.MEND if differs["explanations"] else Verdict.ACCEPT
    if claimed(label, answers) != claimed(row.label, row.answers):
        verdict = Verdict.RELABEL
    return Decision(
        verdict=verdict,
        label=label,
        answers=answers,
        explanations=explanations,
        evidence=evidence,
        counter_evidence=counter_evidence,
        changed=tuple(name for name, is_other in differs.items() if is_other),
        seconds=answer.seconds,
    )


def _classes(row: ReviewRow, answer: Answer, labels: Collection[str]) -> tuple[str | None, Answers]:
    """Label and answers of a row as an answer wants them; ReviewError for a class that nobody knows."""
    if row.is_multilabel:
        before, given = dict(row.answers), answer.answers or {}
        for name in given:
            _require_known(name, before, labels)
        return None, canonical({**before, **given}) if given else row.answers
    if answer.label is None:
        return row.label, row.answers
    _require_known(answer.label, (row.label,), labels)
    # Of votes, the class of the most of them can be chosen too: it is then the only one.
    return answer.label, ()


def _require_known(name: str, own: Collection[str | None], labels: Collection[str]) -> None:
    if name == OTHERS or (name not in own and name not in labels):
        raise ReviewError(
            ReviewFault.UNKNOWN_LABEL,
            f"the label is {name[:60]!r}, expected one of {', '.join(sorted(labels)[:20])}; start the review with "
            "--labels to add one",
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
