"""The label columns of a table: names, a class of each row, and the answers of rows with several classes or votes.

Cost: one pass over the labels; 4 bytes per row and class where some row has answers.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa

from clsgen_dist.data.reading.label_cells import OTHERS
from clsgen_dist.data.tables.spec import TableSpec
from clsgen_dist.errors import DataError

# N rows, C classes

_MAX_CLASSES = 2**15 - 2


def class_names(source: str, rows: pa.Table, spec: TableSpec) -> list[str]:
    """The class names given, or those found: sorted, and for ordinal labels by number.

    Args:
        source: for messages.
        rows: columns ``label`` and ``answers`` of the rows that are kept.
        spec: label space and given names.

    Raises:
        DataError: too many classes, or ordinal names whose order is not known.
    """
    if spec.labels is not None:
        names = list(spec.labels)
    else:
        named = [chunk.flatten().field("class") for chunk in rows["answers"].chunks]
        in_answers = pa.chunked_array(named, pa.string()).unique()
        found = {*rows["label"].unique().to_pylist(), *in_answers.to_pylist()} - {None, OTHERS}
        names = sorted(found)
        if spec.space == "ordinal":
            if wrong := next((name for name in names if not re.fullmatch("-?[0-9]+", name)), None):
                raise DataError(
                    f"{source}: data.label_space is ordinal, but the class {wrong!r} is no number that would give it a "
                    "place; name the classes from low to high in data.labels"
                )
            names = sorted(found, key=int)
    if len(names) > _MAX_CLASSES:
        raise DataError(
            f"{source} has {len(names)} classes, the first {names[:3]}; expected at most {_MAX_CLASSES}: "
            "check that data.columns.label names the column of the classes"
        )
    return names


def answers_of(column: pa.ChunkedArray, names: list[str], *, shares: bool) -> np.ndarray | None:
    """``[N, C]`` float32 answers, -1 where not known; None if no row has any.

    ``shares``: they are shares of one label, so a class that is not named has none.
    """
    if column.null_count == len(column):
        return None
    answers_NC = np.full((len(column), len(names)), -1.0, dtype=np.float32)
    index = {name: n for n, name in enumerate(names)}
    row = 0
    for chunk in column.chunks:
        for answers in chunk.to_pylist():
            if answers is not None:
                values = {answer["class"]: answer["answer"] for answer in answers}
                if shares or OTHERS in values:
                    answers_NC[row] = values.pop(OTHERS, 0.0)
                for name, value in values.items():
                    answers_NC[row, index[name]] = value
            row += 1
    return answers_NC


def rarest_class(answers_NC: np.ndarray | None, classes: int, rows: int) -> np.ndarray:
    """``[N]`` one class of each multi-label row, by which rows are grouped: the rarest that it has.

    C for a row that has none of them, -1 for a row without any answer.
    """
    if answers_NC is None:
        return np.full(rows, -1, dtype=np.int16)
    has_NC = answers_NC >= 0.5
    count_C = has_NC.sum(axis=0)
    rarest_N = np.where(has_NC, count_C, rows + 1).argmin(axis=1) if classes else np.zeros(rows, dtype=np.int64)
    label_N = np.where(has_NC.any(axis=1), rarest_N, classes)
    return np.where((answers_NC >= 0).any(axis=1), label_N, -1).astype(np.int16)
