"""What a teacher is asked about a row, and which answers are kept: explanations, or paraphrases of those there are.

The rest of a run (asking, journal, budget, writing) does not know which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from clsgen_dist.data.example import Example
from clsgen_dist.explanations.stated_class import ClassNames
from clsgen_dist.teacher.candidates import Candidate, Drop, FurtherChecks, paraphrase_faults, read_candidate
from clsgen_dist.teacher.journal import Answer
from clsgen_dist.teacher.prompts import Question, message, paraphrase_message
from clsgen_dist.teacher.rows_to_explain import class_indices, is_to_explain


class TaskCode(StrEnum):
    """The tasks; the codes are stable."""

    EXPLAIN = "explain"
    PARAPHRASE = "paraphrase"


@dataclass(frozen=True)
class Prompt:
    """A message to the teacher."""

    content: str
    original: str = ""
    """The explanation that is to be paraphrased."""


class Task(Protocol):
    """What is asked about rows."""

    @property
    def code(self) -> TaskCode:
        """Which task it is."""

    @property
    def draws(self) -> int:
        """Answers to each prompt."""

    def prompts(self, row: Example) -> list[Prompt]:
        """What is asked about a row; nothing if it does not need it, or has no label to check answers against."""

    def read(self, answer: Answer, row: Example, prompt: Prompt, known: Sequence[str]) -> Candidate:
        """What becomes of an answer; ``known`` are the explanations that the row has by now."""


@dataclass(frozen=True, kw_only=True)
class ExplainTask:
    """Explain the labels of rows without explanation."""

    names: ClassNames
    checks: FurtherChecks
    draws: int
    styles: Sequence[str]
    with_label: bool
    is_self: bool
    """The model being trained is asked: it is sent the text alone."""
    is_multilabel: bool
    code: TaskCode = TaskCode.EXPLAIN

    def prompts(self, row: Example) -> list[Prompt]:
        """One for each style."""
        if not is_to_explain(row):
            return []
        if self.is_self:
            return [Prompt(row.text)]
        quotes = tuple(row.text[start:end] for start, end in row.evidence)
        question = Question(text=row.text, classes=row.classes, quotes=quotes)
        return [
            Prompt(
                message(
                    question,
                    style,
                    with_label=self.with_label,
                    labels=self.names.labels,
                    several=self.is_multilabel,
                )
            )
            for style in self.styles
        ]

    def read(self, answer: Answer, row: Example, prompt: Prompt, known: Sequence[str]) -> Candidate:
        """Kept if it states the row's class, passes the checks and is new."""
        with_label = self.with_label and not self.is_self
        own = class_indices(row, self.names)
        candidate = read_candidate(answer, row, own, self.names, with_label=with_label, checks=self.checks)
        if not candidate.dropped and candidate.text in known:
            return replace(candidate, dropped=(Drop.REPEATED,))
        return candidate


@dataclass(frozen=True, kw_only=True)
class ParaphraseTask:
    """Write each explanation of labelled rows in other words."""

    names: ClassNames
    checks: FurtherChecks
    draws: int
    code: TaskCode = TaskCode.PARAPHRASE

    def prompts(self, row: Example) -> list[Prompt]:
        """One for each explanation; the text is not sent."""
        if not row.is_labelled:
            return []
        return [Prompt(paraphrase_message(original), original) for original in row.explanations]

    def read(self, answer: Answer, row: Example, prompt: Prompt, known: Sequence[str]) -> Candidate:
        """Kept if it also has the numbers of its original, no others, and is no copy of what the row has."""
        own = class_indices(row, self.names)
        candidate = read_candidate(answer, row, own, self.names, with_label=True, checks=self.checks)
        if candidate.dropped:
            return candidate
        return replace(candidate, dropped=paraphrase_faults(candidate.text, prompt.original, known, self.names))
