"""Answers as JSON lines, CSV or Parquet, beside the columns of the rows that they answer.

    .jsonl    {"id": "a1", "age": 61, "label": "yes", "probabilities": {"no": 0.1, "yes": 0.9}, "explanation": "…"}
    .csv      id,age,label,p_no,p_yes,explanation
    .parquet  the same columns, with types

A stream of answers is read twice for the last two, which state their columns first. Memory: a thousand answers.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from clsgen_dist.errors import SettingsError
from clsgen_dist.io.files import atomic_file

Columns = dict[str, Any]
"""A row's columns, or an answer's: values of JSON."""
_MARKS = ("contradicts", "explanation_cut", "redraws", "truncated")
_GROUPS = (
    *("id", "", "label", "p_", "low_", "high_", "set", "hand_over", "after_", "explanation", "others"),
    *(*_MARKS, "error", "code"),
)
"""Order of the flat columns; the second is what the row had."""
_BATCH = 1000


@dataclass(frozen=True)
class Answer:
    """A row's answer."""

    id: str
    row: Columns
    """The row's own columns, by the names of :class:`InputColumns`."""
    fields: Columns
    """What :meth:`~clsgen_dist.inference.predict.Prediction.to_json` gives, or ``error`` and ``code``."""

    def nested(self) -> Columns:
        """As a line of JSON, which has no NaN."""
        return {"id": self.id, **_finite(self.row), **self.fields}

    def flat(self) -> Columns:
        """With a column for each probability, and for each end of an interval."""
        return {"id": self.id, **self.row, **_flat(self.fields)}


class InputColumns:
    """What a row's own columns are called beside an answer: those named like one of its columns get ``input_`` before.

    So does what such a column could have been renamed to, so that two columns never become one.

    Args:
        labels: the model's classes.
        id_column: the column that the answer's id comes from; it is not repeated if it is called ``id``.
    """

    def __init__(self, labels: Sequence[str], id_column: str) -> None:
        of_class = (f"{what}_{name}" for name in labels for what in ("p", "low", "high"))
        reading = {"label", "set", "hand_over", *of_class}
        self._taken = {*_GROUPS, "probabilities", "interval", "after", *reading, *(f"after_{name}" for name in reading)}
        self._dropped = {"id"} & {id_column}

    def renamed(self, row: Columns) -> Columns:
        """The row's columns under the names that they are written with."""
        return {self._name(name): value for name, value in row.items() if name not in self._dropped}

    def _name(self, name: str) -> str:
        bare = name
        while bare.startswith("input_") and bare not in self._taken:
            bare = bare.removeprefix("input_")
        return f"input_{name}" if bare in self._taken else name


def _finite(value: Any) -> Any:
    """A value of JSON without numbers that strict readers of JSON refuse: they become null."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(fields: Columns, prefix: str = "") -> Columns:
    found: Columns = {}
    for name, value in fields.items():
        if name == "probabilities":
            found |= {f"{prefix}p_{label}": p for label, p in value.items()}
        elif name == "interval":
            found |= {f"{prefix}low_{label}": low for label, (low, _) in value.items()}
            found |= {f"{prefix}high_{label}": high for label, (_, high) in value.items()}
        elif name == "after":
            found |= _flat(value, "after_")
        else:
            found[f"{prefix}{name}"] = value
    return found


def require_answer_format(path: Path) -> None:
    """SettingsError for a file name that stands for no format; one without a suffix stands for JSON lines."""
    if path.suffix and path.suffix not in _WRITERS and (not path.exists() or path.is_file()):
        raise SettingsError(
            f"{path} ends in {path.suffix!r}, expected {', '.join(_WRITERS)}: the name says the format; rename it"
        )


def write_answers(path: Path, answers: Callable[[], Iterator[Answer]]) -> None:
    """Write all answers, or nothing; each call of ``answers`` gives them from the first."""
    _WRITERS.get(path.suffix, _write_jsonl)(path, answers)


def _write_jsonl(path: Path, answers: Callable[[], Iterator[Answer]]) -> None:
    with atomic_file(path, errors="backslashreplace") as file:  # an id may hold what UTF-8 cannot
        for answer in answers():
            file.write(json.dumps(answer.nested(), ensure_ascii=False, default=str) + "\n")


def _write_csv(path: Path, answers: Callable[[], Iterator[Answer]]) -> None:
    columns = list(_columns(answers()))
    with atomic_file(path, errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for answer in answers():
            found = answer.flat()
            writer.writerow([_cell(found.get(name)) for name in columns])


def _cell(value: Any) -> Any:
    return value if value is None or type(value) in (str, int, float) else _text(value)


def _text(value: Any) -> str:
    """Truth values, lists and objects as JSON, dates and decimals as they are written."""
    if isinstance(value, (bool, list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _write_parquet(path: Path, answers: Callable[[], Iterator[Answer]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "str": pa.string(), "none": pa.string()}
    kinds = _columns(answers())
    schema = pa.schema([(name, arrow.get(kind, pa.string())) for name, kind in kinds.items()])
    with atomic_file(path, "wb") as file, pq.ParquetWriter(file, schema) as writer:
        left = (answer.flat() for answer in answers())
        while some := list(islice(left, _BATCH)):
            rows = [{name: _typed(row.get(name), kind) for name, kind in kinds.items()} for row in some]
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _typed(value: Any, kind: str) -> Any:
    if value is None or kind in ("bool", "int"):
        return value
    if kind == "float":
        return float(value)
    return _text(value).encode("utf-8", "backslashreplace").decode()


def _columns(answers: Iterator[Answer]) -> dict[str, str]:
    """The flat columns in order, and what their values are: bool, int, float, str, none, or other (mixed, nested)."""
    kinds: dict[str, str] = {"id": "str"}
    own = dict.fromkeys(["id"])  # a set that keeps its order
    for answer in answers:
        found = answer.flat()
        own |= dict.fromkeys(answer.row)
        for name, value in found.items():
            kinds[name] = _joined(kinds.get(name, "none"), _kind(value))
    places = {name: number for number, name in enumerate(chain(own, kinds))}
    return {name: kinds[name] for name in sorted(kinds, key=lambda name: (_group(name, own), places[name]))}


def _group(name: str, own: dict[str, None]) -> int:
    if name in own and name != "id":
        return _GROUPS.index("")
    return next(
        n for n, group in enumerate(_GROUPS) if name == group or (group.endswith("_") and name.startswith(group))
    )


def _kind(value: Any) -> str:
    if value is None:
        return "none"
    kind = type(value).__name__
    if kind == "int" and abs(value) >= 2**63:
        return "other"
    return kind if kind in ("bool", "int", "float", "str") else "other"


def _joined(first: str, second: str) -> str:
    if "none" in (first, second):
        return second if first == "none" else first
    if {first, second} == {"int", "float"}:
        return "float"
    return first if first == second else "other"


_WRITERS = {".jsonl": _write_jsonl, ".csv": _write_csv, ".parquet": _write_parquet}
