"""Everything wrong with each row of a source, what only the other rows show included.

    survey_rows    two passes: the classes and repeated ids; then frames of explanations, names in texts, a label model
    checked_rows   a third one: the issues of each row

What is kept between the passes is of constant size: count sketches, counts per class, a sample of rows. Cost per row of
70 words: 0.3 ms for a sketch, 2 ms for the row's own checks, 0.5 ms for the label model; 64 MB for each sketch, and
0.3 GB at most for the sample.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from clsgen_dist.curation.boilerplate import Boilerplate
from clsgen_dist.curation.count_sketch import CountSketch
from clsgen_dist.curation.explanation_checks import explanation_issues, known_answers, row_issues, severity
from clsgen_dist.curation.issues import Issue, IssueCode
from clsgen_dist.curation.label_errors import LabelModel, LabelSample
from clsgen_dist.curation.label_leaks import LabelLeaks, Place
from clsgen_dist.curation.settings import CurationSettings
from clsgen_dist.data.example import Columns, Example
from clsgen_dist.data.reading.ingest import duplicate, iter_rows, resolve_space
from clsgen_dist.data.reading.label_cells import OTHERS, Space
from clsgen_dist.data.reading.records import find_source
from clsgen_dist.data.reading.rejection import RejectedRow
from clsgen_dist.explanations.stated_class import ClassNames

logger = logging.getLogger(__name__)

_BATCH = 512
"""Rows that the label model judges at a time."""
MAX_NAMED = 200
"""Classes; with more, labels are no names but free text, and are not looked for in texts and explanations."""
CheckedRow = tuple[Example | RejectedRow, list[Issue]]


@dataclass(frozen=True)
class RowSource:
    """A source, and how its rows are read."""

    path: str
    columns: Columns
    labels: Sequence[str] | None
    """The classes; None accepts any."""
    space: Space

    def rows(self) -> Iterator[Example | RejectedRow]:
        """The rows in order; ids are not compared."""
        return iter_rows(find_source(self.path), columns=self.columns, labels=self.labels, space=self.space)


@dataclass
class Survey:
    """What the rows of a source show together."""

    source: RowSource
    names: ClassNames
    """Without any where there are too many."""
    index: dict[str, int]
    """Number of each of these classes."""
    ids: CountSketch
    boilerplate: Boilerplate
    leaks: LabelLeaks
    leaking: set[Place] = field(default_factory=set)
    label_model: LabelModel | None = None


def row_source(path: str, columns: Columns, labels: Sequence[str] | None, space: Space) -> RowSource:
    """A source, its label space found from its first rows if it is ``auto``; DataError if it cannot be read."""
    return RowSource(path, columns, labels, resolve_space(path, columns, space))


def survey_rows(source: RowSource, settings: CurationSettings) -> Survey:
    """Read a source twice, for what its rows show together.

    Raises:
        DataError: the source cannot be read.
    """
    ids, found, labelled = CountSketch(), set[str](), 0
    logger.info("%s: classes and ids", source.path)
    for row in source.rows():
        if isinstance(row, Example):
            labelled += row.label is not None
            if len(found) <= MAX_NAMED:
                found |= {name for name in (row.label or OTHERS, *(row.answers or ())) if name != OTHERS}
            if row.has_own_id:
                ids.add(row.id)
    classes = list(source.labels) if source.labels is not None else sorted(found)
    if len(classes) > MAX_NAMED:
        logger.warning("%s has more than %d classes: their names are not looked for", source.path, MAX_NAMED)
        classes = []
    names, index = ClassNames(classes), {name: number for number, name in enumerate(classes)}
    boilerplate = Boilerplate(names, settings.boilerplate_own_words)
    survey = Survey(source, names, index, ids, boilerplate, LabelLeaks(names))
    sample = LabelSample(min(1.0, settings.sample_rows / max(1, labelled)))
    learns = severity(IssueCode.LABEL_ERROR, settings) != "off"
    logger.info("%s: what rows have in common", source.path)
    for row in source.rows():
        if not isinstance(row, Example):
            continue
        for explanation in row.explanations:
            survey.boilerplate.add(row.text, explanation)
        if answers := known_answers(row.label, row.answers, names):
            survey.leaks.add(row.text, answers)
        if learns and row.label is not None and row.label in index:
            sample.add(row.text, index[row.label])
    if severity(IssueCode.LABEL_IN_TEXT, settings) != "off":
        survey.leaking = survey.leaks.leaking(least_rows=settings.leak_rows, least_share=settings.leak_share)
    survey.label_model = LabelModel.fit(
        sample, len(classes), margin=settings.label_error_margin, least_kappa=settings.label_error_agreement
    )
    return survey


def checked_rows(survey: Survey, settings: CurationSettings) -> Iterator[CheckedRow]:
    """Each row of the source with its issues; of rows with equal ids all but the first are rejected."""
    logger.info("%s: issues of each row", survey.source.path)
    rows, first_line = survey.source.rows(), dict[str, int]()
    while batch := list(islice(rows, _BATCH)):
        for place, row in enumerate(batch):
            if isinstance(row, Example) and row.has_own_id and survey.ids.count(row.id) > 1:
                line = first_line.setdefault(row.id, row.line)
                if line != row.line:
                    batch[place] = duplicate(row, survey.source.path, line)
        likelier = _likelier_labels(batch, survey)
        for row in batch:
            if isinstance(row, RejectedRow):
                yield row, []
            else:
                yield row, [*_own_issues(row, survey, settings), *likelier.get(row.line, [])]


def _own_issues(row: Example, survey: Survey, settings: CurationSettings) -> list[Issue]:
    """The issues of a row but for the label model's, each code and detail once."""
    found: list[Issue] = []
    for explanation in row.explanations:
        found += explanation_issues(
            row.text,
            explanation,
            label=row.label,
            answers=row.answers,
            names=survey.names,
            evidence=row.evidence,
            counter_evidence=row.counter_evidence,
            settings=settings,
        )
        if severity(IssueCode.BOILERPLATE, settings) != "off":
            rows = survey.boilerplate.rows(row.text, explanation)
            if rows >= settings.boilerplate_rows:
                found.append(Issue(IssueCode.BOILERPLATE, f"{rows} explanations are the same"))
    if not row.explanations:
        found += row_issues(row.text, label=row.label, answers=row.answers, names=survey.names, settings=settings)
    if survey.leaking:
        leak = survey.leaks.leak(row.text, known_answers(row.label, row.answers, survey.names), survey.leaking)
        if leak and not any(issue.code == IssueCode.LABEL_IN_TEXT for issue in found):
            found.append(Issue(IssueCode.LABEL_IN_TEXT, leak))
    return list(dict.fromkeys(found))


def _likelier_labels(batch: Sequence[Example | RejectedRow], survey: Survey) -> dict[int, list[Issue]]:
    """Label errors by line."""
    if survey.label_model is None:
        return {}
    labels, rows = survey.names.labels, [row for row in batch if isinstance(row, Example) and row.label in survey.index]
    found = survey.label_model.likelier_labels([r.text for r in rows], [survey.index[r.label or ""] for r in rows])
    return {
        row.line: [Issue(IssueCode.LABEL_ERROR, f"{labels[likelier[0]]}, with probability {likelier[1]:.2f}")]
        for row, likelier in zip(rows, found, strict=True)
        if likelier
    }
