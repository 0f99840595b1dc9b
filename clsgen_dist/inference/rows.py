"""Rows of users through an exported model: which are usable, and as arrays for metrics."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from clsgen_dist.data.example import Columns, Example
from clsgen_dist.data.reading.ingest import Ingested, read_examples, unique_rows
from clsgen_dist.data.reading.label_cells import OTHERS
from clsgen_dist.data.reading.rejection import format_locations
from clsgen_dist.errors import DataError
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.prediction import Prediction

# N rows, C classes

logger = logging.getLogger(__name__)


def labelled_rows(
    predictor: Predictor,
    source: str,
    columns: Columns | None = None,
    max_bad_fraction: float = 0.01,
    *,
    explanations: bool = False,
) -> Ingested:
    """The labelled rows of a source, in the model's label space.

    Their explanations are read if wanted, as references: a row whose explanation is bad is used without it.

    Raises:
        DataError: the rows cannot be read, none has a label, or none has a column of ``columns.groups``.
    """
    columns = dataclasses.replace(columns or Columns(), difficulty=None)
    rows = read_examples(
        source,
        columns=columns.without_explanations(),
        labels=predictor.card.labels,
        max_bad_fraction=max_bad_fraction,
        quarantine=None,
        require_target=False,
        setting="--max_bad_fraction",
        space=predictor.card.label_space,
    )
    if rows.rejected:
        logger.warning("%s: %d bad rows left out: %s", source, len(rows.rejected), format_locations(rows.rejected))
    labelled = [example for example in rows.examples if example.is_labelled]
    if not labelled:
        raise DataError(f"{source} has no labelled row; name the label column with --columns.label")
    for index, name in enumerate(columns.groups):
        if not any(example.groups[index] for example in labelled):
            raise DataError(f"{source} has no value in the group column {name!r}; fix --columns.groups")
    if columns.cluster and not any(example.cluster for example in labelled):
        raise DataError(f"{source} has no value in the cluster column {columns.cluster!r}; fix --columns.cluster")
    if explanations:
        given = _references(predictor, source, columns)
        labelled = [dataclasses.replace(e, **given.get((e.file, e.line), {})) for e in labelled]
    if len(labelled) < len(rows.examples):
        logger.info("%s: %d rows without label left out", source, len(rows.examples) - len(labelled))
    return dataclasses.replace(rows, examples=labelled)


def _references(predictor: Predictor, source: str, columns: Columns) -> dict[tuple[str, int], dict[str, Any]]:
    """The explanations of the rows that have good ones, and where they came from, by file and line."""
    card = predictor.card
    rows = unique_rows(source, columns=columns, labels=card.labels, require_target=False, space=card.label_space)
    return {
        (row.file, row.line): {"explanations": row.explanations, "provenance": row.provenance}
        for row in rows
        if isinstance(row, Example) and row.explanations
    }


def labels_of(predictor: Predictor, examples: Sequence[Example]) -> np.ndarray:
    """``[N]`` class of each row (of votes, the one with most); multi-label: answers ``[N, C]``, NaN where not known."""
    names = predictor.card.labels
    if predictor.space.kind != "multilabel":
        return np.array([names.index(str(example.label)) for example in examples])
    answers = [example.answers or {} for example in examples]
    return np.array([[given.get(name, given.get(OTHERS, np.nan)) for name in names] for given in answers])


def logits_and_labels(
    predictor: Predictor, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> tuple[np.ndarray, np.ndarray]:
    """Uncalibrated class logits ``[N, K]``, and labels as :func:`labels_of` gives them."""
    return np.array([prediction.logits for prediction in predictions]), labels_of(predictor, examples)
