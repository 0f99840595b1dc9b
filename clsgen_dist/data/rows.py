"""From the data settings to encoded training and dev rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clsgen_dist.config import DataSettings
from clsgen_dist.data.encode import EncodedRow, Encoder
from clsgen_dist.data.example import Example
from clsgen_dist.data.ingest import Ingested, read_examples
from clsgen_dist.errors import DataError

_DEMO = "demo:"


@dataclass(frozen=True)
class Rows:
    """What a run trains and evaluates on."""

    train: list[EncodedRow]
    dev: list[EncodedRow]
    labels: list[str]
    """Class names in the order of the head's logits."""
    notes: list[str]
    """One line per file: rows kept, rejected, shortened."""


def read_rows(data: DataSettings, encoder: Encoder, quarantine: Path | None) -> Rows:
    """Read, check and encode the training and dev rows; bad rows go to the folder ``quarantine``, if given.

    Raises:
        DataError: too many bad rows, fewer than two classes, or nothing at all to learn.
        FileNotFoundError, ValueError: a source that cannot be read.
    """
    notes: list[str] = []
    train = _read(data, data.train, data.labels, encoder, quarantine and quarantine / "quarantine-train.jsonl")
    if len(train.labels) < 2:
        raise DataError(
            f"{data.train}: found the classes {train.labels}, expected two or more; check data.columns.label "
            f"({data.columns.label!r}), or name the classes in data.labels"
        )
    encoded = [encoder.row(example, train.labels) for example in train.examples]
    notes.append(_note("train", train, encoded))
    dev: list[EncodedRow] = []
    if data.dev is not None:
        held_out = _read(data, data.dev, train.labels, encoder, quarantine and quarantine / "quarantine-dev.jsonl")
        dev = [encoder.row(example, train.labels) for example in held_out.examples]
        notes.append(_note("dev", held_out, dev))
    return Rows(encoded, dev, train.labels, notes)


def row_source(source: str) -> str:
    """The file behind ``demo:NAME/SPLIT``; any other source as it is."""
    if not source.startswith(_DEMO):
        return source
    from clsgen_dist.data.demos import breast_cancer

    name, _, split = source.removeprefix(_DEMO).partition("/")
    if name != breast_cancer.NAME:
        raise DataError(f"{source!r} is no demo set; there is {_DEMO}{breast_cancer.NAME}/SPLIT")
    split, _, seed = split.partition("?seed=")
    return str(breast_cancer.demo_file(split, int(seed or 0)))


def _read(data: DataSettings, source: str, labels: list[str] | None, encoder: Encoder, file: Path | None) -> Ingested:
    def too_long(example: Example) -> str | None:
        longest = max((len(encoder.explanation(e)) for e in example.explanations), default=0)
        if longest <= data.max_explanation_length:
            return None
        return (
            f"explanation of {longest} tokens is longer than data.max_explanation_length {data.max_explanation_length}"
        )

    return read_examples(
        row_source(source),
        columns=data.columns,
        labels=labels,
        max_bad_fraction=data.max_bad_fraction,
        quarantine=file,
        refuse=too_long,
    )


def _note(split: str, ingested: Ingested, encoded: list[EncodedRow]) -> str:
    shortened = sum(row.truncated for row in encoded)
    return f"{split}: {ingested.summary()}; {shortened} shortened in the middle of the text"
