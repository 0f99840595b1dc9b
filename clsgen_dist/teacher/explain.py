"""A teacher explains rows, or paraphrases their explanations, within a budget, and across kills.

First all questions that are not in the journal are asked, some at a time; each answer is in the journal before the next
takes its place. Then the rows are written, with what the journal has. So the output is complete for whatever has been
answered, and the same command goes on where it stopped.

Cost: three passes over the rows; a request an answer. Memory: 150 bytes an answer, and the questions on
their way.

Shapes: D decisions that the teacher took without being told.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from clsgen_dist.data.example import Columns, Example
from clsgen_dist.data.reading.label_cells import Space
from clsgen_dist.errors import ServerError, SettingsError
from clsgen_dist.teacher.budget import Budget, Limits
from clsgen_dist.teacher.candidates import FurtherChecks
from clsgen_dist.teacher.client import RefusedError, Teacher, UnansweredError
from clsgen_dist.teacher.journal import Answer, Journal, request_key
from clsgen_dist.teacher.rows_to_explain import ExplainedRows, RowsToExplain
from clsgen_dist.teacher.tasks import ExplainTask, ParaphraseTask, Prompt, Task, TaskCode
from clsgen_dist.track.progress import Progress

logger = logging.getLogger(__name__)

_CHARACTERS = 4
"""Characters per token, where a server does not count."""
_HOPELESS = 20
"""Questions without any answer, one after the other, from which the server counts as gone."""


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """Whom to ask, what, and how much."""

    url: str
    model: str | None = None
    is_self: bool = False
    """The model being trained, behind ``clsgen serve``: it is sent the text alone."""
    with_label: bool = True
    styles: tuple[str, ...] = ("short",)
    candidates: int = 1
    """Answers of each style."""
    temperature: float | None = 0.7
    max_tokens: int = 256
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    seed: int | None = 0
    concurrency: int = 8
    timeout: float = 120.0
    tries: int = 6
    limits: Limits = field(default_factory=Limits)
    columns: Columns = field(default_factory=Columns)
    labels: tuple[str, ...] | None = None
    space: Space = "auto"
    journal: Path | None = None
    """None: beside the output."""
    paraphrases: int = 0
    """Paraphrases of each explanation, instead of explanations of rows without any."""

    def __post_init__(self) -> None:
        if self.paraphrases and (
            self.is_self or not self.with_label or self.styles != ("short",) or self.candidates > 1
        ):
            raise SettingsError(
                f"--paraphrase is {self.paraphrases}: explanations are written in other words, by a teacher, so many "
                "times each; leave out --teacher self, --without_label, --styles and --candidates"
            )


@dataclass
class ExplainReport(ExplainedRows):
    """What was asked, kept and spent."""

    task: TaskCode = TaskCode.EXPLAIN
    answers: int = 0
    refused: int = 0
    unanswered: int = 0
    waiting: int = 0
    """Questions that were not asked, since the budget was used up, or were asked in vain."""
    is_over_budget: bool = False
    agreed_D: array[int] = field(default_factory=lambda: array("b"))
    """1 for each answer that decided, without being told, as the row's label says; else 0."""
    row_D: array[int] = field(default_factory=lambda: array("q"))
    """Its row."""
    tokens: int = 0
    cost: float = 0.0
    model: str = ""


@dataclass
class _Counts:
    refused: int = 0
    unanswered: int = 0
    in_a_row: int = 0
    is_over_budget: bool = False
    fatal: Exception | None = None


class Explainer:
    """One run over one file."""

    def __init__(
        self, source: str, settings: TeacherSettings, checks: FurtherChecks = lambda row, text, names: ()
    ) -> None:
        self._rows, self._settings = RowsToExplain(source, settings.columns, settings.labels, settings.space), settings
        self._task = self._find_task(checks)
        self._model = self._url = ""

    def run(self, output: Path) -> ExplainReport:
        """Ask, then write.

        Raises:
            DataError: no row has a label.
            SettingsError: output or journal cannot be written; the server refuses every question.
            ServerError: the server is gone; what was answered is written.
        """
        self._rows.require_output(output)
        kept = self._settings.journal or output.with_name(output.name + ".journal")
        if output.exists() and not kept.exists():
            raise SettingsError(f"{output} exists, and not by this command: {kept} is missing; name another --output")
        with Journal(kept) as journal:
            budget = Budget(self._settings.limits, journal)
            counts = asyncio.run(self._ask_all(journal, budget))
            report = self._write(output, journal)
            report.refused, report.unanswered = counts.refused, counts.unanswered
            report.is_over_budget, report.model = counts.is_over_budget, self._model
            report.tokens, report.cost = budget.tokens, budget.cost()
        if counts.fatal:
            raise counts.fatal
        return report

    # --- which rows, which questions -----------------------------------------------------------------------------

    def _find_task(self, checks: FurtherChecks) -> Task:
        settings, names = self._settings, self._rows.names
        if settings.paraphrases:
            return ParaphraseTask(names=names, checks=checks, draws=settings.paraphrases)
        return ExplainTask(
            names=names,
            checks=checks,
            draws=settings.candidates,
            styles=settings.styles,
            with_label=settings.with_label,
            is_self=settings.is_self,
            is_multilabel=self._rows.space == "multilabel",
        )

    def _requests(self, prompts: Sequence[Prompt]) -> Iterator[tuple[str, dict[str, Any], Prompt]]:
        """Key and body of each question about a row."""
        settings = self._settings
        for prompt in prompts:
            for draw in range(self._task.draws):
                body: dict[str, Any] = {
                    "model": self._model,
                    "messages": [{"role": "user", "content": prompt.content}],
                    settings.token_limit: settings.max_tokens,
                }
                if settings.temperature is not None:
                    body["temperature"] = settings.temperature
                if settings.seed is not None:
                    body["seed"] = settings.seed + draw
                yield request_key(self._url, {**body, "candidate": draw}), body, prompt

    def _questions(self, journal: Journal) -> Iterator[tuple[str, dict[str, Any]]]:
        """Those that the journal has no answer to, each once."""
        asked: set[str] = set()
        for row in self._rows:
            if isinstance(row, Example):
                for key, body, _ in self._requests(self._task.prompts(row)):
                    if key not in journal and key not in asked:
                        asked.add(key)
                        yield key, body

    # --- asking ---------------------------------------------------------------------------------------------------

    async def _ask_all(self, journal: Journal, budget: Budget) -> _Counts:
        settings, counts = self._settings, _Counts()

        def lost(prompt: str) -> None:
            journal.add_lost(round(budget.estimate(prompt)), 0)

        teacher = Teacher(settings.url, settings.model, timeout=settings.timeout, tries=settings.tries, on_lost=lost)
        self._url = teacher.url
        try:
            await teacher.find_model()
            self._model = teacher.model
            total = sum(1 for _ in self._questions(journal))
            with Progress(total, enabled=True, unit="answer", label="explain", rate=True) as progress:
                await self._ask_some(teacher, journal, budget, counts, progress)
        finally:
            await teacher.close()
        return counts

    async def _ask_some(
        self, teacher: Teacher, journal: Journal, budget: Budget, counts: _Counts, progress: Progress
    ) -> None:
        """Ask until all is answered, the budget is used up, or the server is gone."""
        settings = self._settings
        pending: set[asyncio.Task[None]] = set()

        async def ask(key: str, body: dict[str, Any]) -> None:
            prompt = body["messages"][0]["content"]
            try:
                answer = _with_usage(await teacher.ask(body), prompt)
                journal.add(key, answer)
                budget.learn(prompt, answer.prompt_tokens)
                counts.in_a_row = 0
            except RefusedError as error:
                counts.refused += 1
                counts.in_a_row += 1
                self._note(counts, error)
            except UnansweredError as error:
                counts.unanswered += 1
                counts.in_a_row += 1
                self._note(counts, error)
            except (ServerError, SettingsError) as error:
                counts.fatal = counts.fatal or error
            finally:
                budget.release(key)
            numbers: dict[str, float] = {"tokens": budget.tokens}
            if budget.cost():
                numbers["cost"] = budget.cost()
            progress.update(1, **numbers)

        for key, body in self._questions(journal):
            prompt = body["messages"][0]["content"]
            while pending and (len(pending) >= settings.concurrency or not budget.fits(prompt, settings.max_tokens)):
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            if counts.fatal:
                break
            if not budget.fits(prompt, settings.max_tokens):
                counts.is_over_budget = True
                break
            budget.reserve(key, prompt, settings.max_tokens)
            pending.add(asyncio.create_task(ask(key, body)))
        if pending:
            # What is on its way may be paid for; but a server that is gone is not waited for through all tries.
            done, late = await asyncio.wait(pending, timeout=settings.timeout if counts.fatal else None)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            for task in done:
                task.result()

    def _note(self, counts: _Counts, error: ServerError) -> None:
        """Log the first failures; after many without an answer between them, the server is gone."""
        if counts.refused + counts.unanswered <= 3:
            logger.warning("%s", error)
        if counts.in_a_row >= _HOPELESS and counts.fatal is None:
            counts.fatal = ServerError(
                f"{counts.in_a_row} questions one after the other had no answer; the last: {error}. What was answered "
                "is written and kept; run the same command again when the server is well"
            )

    # --- writing --------------------------------------------------------------------------------------------------

    def _write(self, output: Path, journal: Journal) -> ExplainReport:
        """All rows in order, with the answers that are kept."""
        report = ExplainReport(task=self._task.code)
        origin = f"{'self' if self._settings.is_self else 'teacher'}:{self._model}"
        self._rows.write(output, lambda row: self._kept_answers(row, journal, report), origin, report)
        return report

    def _kept_answers(self, row: Example, journal: Journal, report: ExplainReport) -> list[str] | None:
        """What the journal has for a row and is kept; None for a row that nothing is asked about."""
        prompts = self._task.prompts(row)
        if not prompts:
            return None
        kept: list[str] = []
        for key, _, prompt in self._requests(prompts):
            answer = journal.get(key)
            if answer is None:
                report.waiting += 1
                continue
            report.answers += 1
            candidate = self._task.read(answer, row, prompt, [*row.explanations, *kept])
            if candidate.agrees is not None:
                report.agreed_D.append(candidate.agrees)
                report.row_D.append(report.rows)
            if candidate.dropped:
                report.dropped.update(map(str, candidate.dropped))
            else:
                kept.append(candidate.text)
        return kept


def _with_usage(answer: Answer, prompt: str) -> Answer:
    """The answer with token counts, from characters where the server gives none."""
    if answer.prompt_tokens >= 0 and answer.completion_tokens >= 0:
        return answer
    read, written = (max(1, len(text) // _CHARACTERS) for text in (prompt, answer.content))
    return replace(answer, prompt_tokens=read, completion_tokens=written)
