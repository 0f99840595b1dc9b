"""Everything wrong with each row of a source, what only the other rows show included.

    survey_rows    two passes: the classes and repeated ids; then frames of explanations, names in texts, a label model
    checked_rows   a third one: the issues of each row

What is kept between the passes is of constant size: count sketches, counts per class, a sample of rows. Processes look
at pieces of the source (:mod:`clsgen_dist.curation.row_source`) and say what they found in them; this one puts it
together in the order of the rows, so nothing depends on their number. Cost per row of 70 words, over all passes: 1.1 ms
of one core; 64 MB for each sketch, and 0.3 GB at most for the sample.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from clsgen_dist.curation.boilerplate import Boilerplate, frame_of
from clsgen_dist.curation.count_sketch import CountSketch
from clsgen_dist.curation.explanation_checks import explanation_issues, known_answers, row_issues, severity
from clsgen_dist.curation.issues import Issue, IssueCode
from clsgen_dist.curation.label_errors import LabelModel, LabelSample
from clsgen_dist.curation.label_leaks import LabelLeaks, Place
from clsgen_dist.curation.row_source import Piece, RowSource
from clsgen_dist.curation.settings import CurationSettings
from clsgen_dist.data.example import Example
from clsgen_dist.data.reading.ingest import duplicate
from clsgen_dist.data.reading.label_cells import OTHERS
from clsgen_dist.data.reading.rejection import RejectedRow
from clsgen_dist.data.tables.workers import map_in_order
from clsgen_dist.explanations.stated_class import ClassNames

logger = logging.getLogger(__name__)

_BATCH = 512
"""Rows that the label model judges at a time."""
MAX_NAMED = 200
"""Classes; with more, labels are no names but free text, and are not looked for in texts and explanations."""
CheckedRow = tuple[Example | RejectedRow, list[Issue]]


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


def survey_rows(source: RowSource, settings: CurationSettings) -> Survey:
    """Read a source twice, for what its rows show together.

    Raises:
        DataError: the source cannot be read.
    """
    ids, found, labelled = CountSketch(), set[str](), 0
    logger.info("%s: classes and ids", source.path)
    for piece in map_in_order(partial(_names_of_piece, source), *source.pieces()):
        labelled += piece.labelled
        if len(found) <= MAX_NAMED:
            found |= piece.found
        for row_id in piece.ids:
            ids.add(row_id)
    classes = list(source.labels) if source.labels is not None else sorted(found)
    if len(classes) > MAX_NAMED:
        logger.warning("%s has more than %d classes: their names are not looked for", source.path, MAX_NAMED)
        classes = []
    names, index = ClassNames(classes), {name: number for number, name in enumerate(classes)}
    boilerplate = Boilerplate(names, settings.boilerplate_own_words)
    survey = Survey(source, names, index, ids, boilerplate, LabelLeaks(names))
    learns = severity(IssueCode.LABEL_ERROR, settings) != "off"
    sample = LabelSample(min(1.0, settings.sample_rows / max(1, labelled)) if learns else 0.0)
    logger.info("%s: what rows have in common", source.path)
    common_of = partial(_common_of_piece, source, names, sample.bound, settings.boilerplate_own_words)
    for common in map_in_order(common_of, *source.pieces()):
        for frame in common.frames:
            survey.boilerplate.add(frame)
        survey.leaks.merge(common.leaks)
        sample.merge(common.sample)
    if severity(IssueCode.LABEL_IN_TEXT, settings) != "off":
        survey.leaking = survey.leaks.leaking(least_rows=settings.leak_rows, least_share=settings.leak_share)
    survey.label_model = LabelModel.fit(
        sample, len(classes), margin=settings.label_error_margin, least_kappa=settings.label_error_agreement
    )
    return survey


@dataclass
class _NamesOfPiece:
    """The classes, ids and number of labelled rows of a piece."""

    found: set[str] = field(default_factory=set)
    ids: list[str] = field(default_factory=list)
    labelled: int = 0


def _names_of_piece(source: RowSource, piece: Piece) -> _NamesOfPiece:
    names = _NamesOfPiece()
    for row in source.rows(piece):
        if isinstance(row, Example):
            names.labelled += row.label is not None
            if len(names.found) <= MAX_NAMED:
                names.found |= {name for name in (row.label or OTHERS, *(row.answers or ())) if name != OTHERS}
            if row.has_own_id:
                names.ids.append(row.id)
    return names


@dataclass
class _CommonOfPiece:
    """What the rows of a piece may have in common with others."""

    frames: list[str]
    leaks: LabelLeaks
    sample: LabelSample


def _common_of_piece(
    source: RowSource, names: ClassNames, bound: float, most_own_words: float, piece: Piece
) -> _CommonOfPiece:
    common = _CommonOfPiece([], LabelLeaks(names), LabelSample(bound))
    index = {name: number for number, name in enumerate(names.labels)}
    for row in source.rows(piece):
        if not isinstance(row, Example):
            continue
        frames = (frame_of(row.text, explanation, names, most_own_words) for explanation in row.explanations)
        common.frames += [frame for frame in frames if frame is not None]
        if answers := known_answers(row.label, row.answers, names):
            common.leaks.add(row.text, answers)
        if row.label is not None and row.label in index:
            common.sample.add(row.text, index[row.label])
    common.sample.count_terms()
    return common


def checked_rows(survey: Survey, settings: CurationSettings) -> Iterator[CheckedRow]:
    """Each row of the source with its issues; of rows with equal ids all but the first are rejected."""
    logger.info("%s: issues of each row", survey.source.path)
    first_line: dict[str, int] = {}
    pieces, workers = survey.source.pieces()
    with _for_workers(survey, workers) as shared:
        for checked in map_in_order(partial(_checked_piece, shared, settings), pieces, workers):
            for row, issues in checked:
                line = row.line
                if isinstance(row, Example) and row.has_own_id and survey.ids.count(row.id) > 1:
                    line = first_line.setdefault(row.id, row.line)
                if isinstance(row, Example) and line != row.line:
                    yield duplicate(row, survey.source.path, line), []
                else:
                    yield row, issues


@contextlib.contextmanager
def _for_workers(survey: Survey, workers: int) -> Iterator[Survey | str]:
    """A survey as it is passed to workers: a file, whose arrays they all map, as sketches and models are large."""
    if workers < 2:
        yield survey
        return
    import joblib

    with tempfile.TemporaryDirectory(prefix="clsgen-") as folder:
        file = os.path.join(folder, "survey")
        joblib.dump(survey, file)
        yield file


@functools.lru_cache(1)
def _read_survey(file: str) -> Survey:
    import joblib

    survey: Survey = joblib.load(file, mmap_mode="r")
    return survey


def _checked_piece(shared: Survey | str, settings: CurationSettings, piece: Piece) -> list[CheckedRow]:
    """The rows of a piece with their issues; ids are not compared."""
    survey = _read_survey(shared) if isinstance(shared, str) else shared
    rows, checked = survey.source.rows(piece), list[CheckedRow]()
    while batch := list(islice(rows, _BATCH)):
        likelier = _likelier_labels(batch, survey)
        for row in batch:
            found = _own_issues(row, survey, settings) if isinstance(row, Example) else []
            checked.append((row, [*found, *likelier.get(row.line, [])]))
    return checked


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
