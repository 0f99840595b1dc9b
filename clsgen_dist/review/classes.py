"""What a row, or a decision on it, says of its classes, in every label space.

    single, ordinal   label "yes", no answers; votes: the largest share's class as label, all shares as answers
    multilabel        no label; answers by class: 1 yes, 0 no, a probability, None not known

Answers of several labels that have :data:`OTHERS` are complete: a class without an answer is a no. In others it is not
known. They are in canonical form: by name, without what follows from that. How they are written in a file of rows:
:mod:`clsgen_dist.data.reading.label_cells`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from clsgen_dist.data.reading.label_cells import OTHERS

Answers = tuple[tuple[str, float | None], ...]
_CLAIMED = 0.5
"""Least probability of a class that a row is taken to have."""


def canonical(answers: Mapping[str, float | None]) -> Answers:
    """Answers in the form in which equal ones are equal."""
    implied = 0.0 if OTHERS in answers else None
    return tuple(sorted((name, value) for name, value in answers.items() if name == OTHERS or value != implied))


def by_class(answers: Answers, labels: Iterable[str]) -> dict[str, float | None]:
    """The answer for each class: those of ``labels`` in their order, then others that are named."""
    given = dict(answers)
    implied = given.pop(OTHERS, None)
    return {name: given.get(name, implied) for name in dict.fromkeys([*labels, *given])}


def claimed(label: str | None, answers: Answers) -> tuple[str, ...]:
    """The classes that a row has: its label, or those that are more likely than not."""
    if label is not None:
        return (label,)
    return tuple(name for name, value in answers if value is not None and value >= _CLAIMED)


def label_cell(label: str | None, answers: Answers, labels: Iterable[str]) -> Any:
    """A decision as the cell of a label column, in a form that the row reader takes.

    Several labels are a list of names where every class is a plain yes or no, else an object; None where none is known.
    """
    if label is not None:
        return label
    given = dict(answers)
    if OTHERS in given and all(value == 1 for name, value in answers if name != OTHERS):
        return [name for name in given if name != OTHERS]
    return {name: _plain(value) for name, value in by_class(answers, labels).items()} if answers else None


def _plain(value: float | None) -> float | bool | None:
    return bool(value) if value in (0, 1) else value
