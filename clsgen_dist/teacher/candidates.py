"""From a teacher's answer to an explanation that may be kept, or the reason why it is dropped.

An explanation is kept if nothing of it is missing, it states no other class than the row's, and it passes the further
checks. Without the label told, the class that the teacher decided on must be the row's. A paraphrase must also have the
numbers of its original, and other words.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from clsgen_dist.curation.explanation_checks import explanation_issues, severity
from clsgen_dist.curation.issues import IssueCode
from clsgen_dist.curation.settings import CurationSettings
from clsgen_dist.data.checks.near_duplicates import jaccard, normalised, shingles
from clsgen_dist.data.example import Example
from clsgen_dist.data.reading.cells import explanations_of
from clsgen_dist.data.reading.rejection import Fault
from clsgen_dist.decoding.length import whole_sentences
from clsgen_dist.explanations.stated_class import ClassNames
from clsgen_dist.explanations.text_units import Number, numbers, sentence_ends
from clsgen_dist.teacher.journal import Answer
from clsgen_dist.teacher.prompts import split_class_line

FurtherChecks = Callable[[Example, str, ClassNames], Collection[str]]
"""Codes of what else is wrong with an explanation of a row, given the names of the classes."""

NEAR_COPY_JACCARD = 0.8
"""Jaccard index of 5-character shingles from which a paraphrase is a near copy, as in ``clsgen data thin``."""
_NOT_THE_TEACHERS = (IssueCode.LABEL_IN_TEXT, IssueCode.PERSONAL_DATA)
"""Issues of a row's text, which no other explanation mends."""


def explanation_checks(settings: CurationSettings) -> FurtherChecks:
    """The checks of ``clsgen data gate``: codes of the issues for which it would reject a row, or have it reviewed."""

    def check(row: Example, text: str, names: ClassNames) -> list[str]:
        found = explanation_issues(
            row.text,
            text,
            label=row.label,
            answers=row.answers,
            names=names,
            evidence=row.evidence,
            counter_evidence=row.counter_evidence,
            settings=settings,
        )
        grave = [issue.code for issue in found if severity(issue.code, settings) in ("reject", "review")]
        return [code for code in grave if code not in _NOT_THE_TEACHERS]

    return check


class Drop(StrEnum):
    """Why an answer is not kept; the codes are stable."""

    EMPTY = "empty"
    CUT = "cut"
    """It ran into --max_tokens before its first sentence ended."""
    OTHER_CLASS = "other-class"
    NO_CLASS = "no-class"
    """Without the label told, it names none."""
    UNREADABLE = "unreadable"
    """Rows with it would be read otherwise than written: NUL characters, the text of a list, a word for nothing."""
    REPEATED = "repeated"
    """The row has it already."""
    NEAR_COPY = "near-copy"
    """A paraphrase that is nearly the same as an explanation of the row."""
    ADDED_NUMBER = "added-number"
    """A paraphrase with a number that its original has not."""
    LOST_NUMBER = "lost-number"
    """A paraphrase without a number of its original."""


@dataclass(frozen=True)
class Candidate:
    """What became of an answer."""

    text: str
    dropped: tuple[str, ...] = ()
    """Codes of :class:`Drop` and of further checks; none if it is kept."""
    agrees: bool | None = None
    """Whether the teacher decided on the row's classes, where it was not told; None where it names none."""


def read_candidate(
    answer: Answer, row: Example, own: Collection[int], names: ClassNames, *, with_label: bool, checks: FurtherChecks
) -> Candidate:
    """Check an answer.

    Args:
        answer: the teacher's.
        row: its row.
        own: the row's classes.
        names: finds the names of all classes.
        with_label: whether the teacher was told the row's classes.
        checks: what else may be wrong.
    """
    text, decided = answer.content.strip(), None
    if not with_label:
        text, decided = _decided(answer, names)
    agrees = None if decided is None else set(decided) == set(own)
    if answer.finish == "length":
        text = whole_sentences(text) if sentence_ends(text) else ""
        if not text:
            return Candidate("", (Drop.CUT,), agrees)
    if not text:
        return Candidate("", (Drop.EMPTY,), agrees)
    if not _is_readable(text):
        return Candidate(text, (Drop.UNREADABLE,), agrees)
    if not with_label and agrees is None:
        return Candidate(text, (Drop.NO_CLASS,))
    # Of one class, the first named counts: "a cat, as no dog purrs" explains a cat.
    stands_for = next(iter(own)) if row.label is not None else set(own)
    if agrees is False or names.contradicts(text, stands_for):
        return Candidate(text, (Drop.OTHER_CLASS,), agrees)
    return Candidate(text, tuple(checks(row, text, names)), agrees)


def paraphrase_faults(text: str, original: str, known: Sequence[str], names: ClassNames) -> tuple[str, ...]:
    """Codes of what is wrong with a paraphrase.

    Args:
        text: the paraphrase.
        original: what it paraphrases.
        known: the explanations that the row has, the original among them.
        names: finds the names of the classes; numbers in them do not count.
    """
    faults: list[str] = []
    said, there = (numbers(names.masked(one)) for one in (text, original))
    if not _has_all(there, said):
        faults.append(Drop.ADDED_NUMBER)
    if not _has_all(said, there):
        faults.append(Drop.LOST_NUMBER)
    normal, others = normalised(text), [normalised(one) for one in known]
    if normal in others:
        faults.append(Drop.REPEATED)
    elif any(jaccard(shingles(normal), shingles(other)) >= NEAR_COPY_JACCARD for other in others):
        faults.append(Drop.NEAR_COPY)
    return tuple(faults)


def _has_all(there: Sequence[Number], wanted: Sequence[Number]) -> bool:
    return all(any(_are_equal(number, other) for other in there) for number in wanted)


def _are_equal(one: Number, other: Number) -> bool:
    """Whether both are the same quantity: 12 % is 12 percent, 0.12, and 12 in a column of percentages."""
    if one.is_percent == other.is_percent:
        return one.value == other.value
    percent, plain = (one.value, other.value) if one.is_percent else (other.value, one.value)
    return plain in (percent, percent / 100)


def _decided(answer: Answer, names: ClassNames) -> tuple[str, tuple[int, ...] | None]:
    """Explanation and decision: that of ``clsgen serve``, else of the first line, else the first class named."""
    if answer.decision is not None:
        decision = answer.decision if isinstance(answer.decision, list) else [answer.decision]
        return answer.content.strip(), tuple(i for name in decision for i in names.stated(name)[:1])
    line, text = split_class_line(answer.content)
    if line is not None:
        return text, tuple(names.stated(line)) or None
    return text, tuple(names.stated(text)[:1]) or None


def _is_readable(text: str) -> bool:
    """Whether the reader of rows takes the text as it is."""
    try:
        text.encode("utf-8")
        return "\0" not in text and explanations_of((text,), []) == (text,)
    except (Fault, UnicodeEncodeError):
        return False
