"""Reads label cells of every label space: one name, a set of names, votes, probabilities.

    space        cell                                   label     answers
    single       "yes"                                  yes       -
                 ["yes", "yes", "no"]  (votes)          yes       yes 2/3, no 1/3
                 {"yes": 2, "no": 1}, {"yes": 0.7, …}   yes       the shares, scaled to sum to 1
    ordinal      as single
    multilabel   ["a", "b"], "a"                        -         a 1, b 1, every other class 0
                 []                                     -         every class 0
                 {"a": true, "b": 0.3, "c": null}       -         a 1, b 0.3; c and the others are not known

With ``auto`` a list or an object is refused, and the message names the spaces that read it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

from clsgen_dist.data.reading.cells import ClassNames, Notice, Notices, excerpt, is_missing, list_in_text, literal
from clsgen_dist.data.reading.rejection import Fault, Rejection

Space = Literal["auto", "single", "multilabel", "ordinal"]
Answers = dict[str, float]
"""By class; :data:`OTHERS` stands for all classes that are not named."""
OTHERS = ""
_OBJECT = re.compile(r"\{.*:.*\}|\{\s*\}", re.DOTALL)
_CLOSE = 1e-3
"""Shares that sum to 1 within this are taken as written with few digits."""


class LabelReader:
    """Reads the cells of a label column.

    Args:
        names: the classes; None accepts any.
        space: the label space.
    """

    def __init__(self, names: Sequence[str] | None, space: Space = "auto") -> None:
        self.space = space
        self._names = ClassNames(names)

    def read(self, cell: Any, notices: Notices) -> tuple[str | None, Answers | None]:
        """Label and answers of a cell, None where there is none; Fault if it cannot be read."""
        value = _structured(cell)
        if self.space == "auto" or not isinstance(value, (list, tuple, Mapping)):
            name = self._names.read(cell, notices)
            if self.space != "multilabel":
                return name, None
            return None, None if name is None else {name: 1.0, OTHERS: 0.0}
        if isinstance(value, Mapping):
            numbers = {self._name(key, notices): _number(key, item) for key, item in value.items()}
            if len(numbers) < len(value):
                raise Fault(Rejection.WRONG_ANSWERS, f"{excerpt(str(cell))} names a class twice")
            if all(number is None for number in numbers.values()):
                return None, None
            return self._known(cell, numbers) if self.space == "multilabel" else self._shares(cell, numbers, notices)
        items = [item for item in value if not is_missing(item)]
        if self.space == "multilabel" and _is_multi_hot(items, self._names.names):
            return None, self._of_vector(cell, items)
        found = [self._name(item, notices) for item in items]
        if self.space == "multilabel":
            return None, {**dict.fromkeys(found, 1.0), OTHERS: 0.0}
        return self._shares(cell, dict(Counter(found)), notices) if found else (None, None)

    def _of_vector(self, cell: Any, items: Sequence[Any]) -> Answers:
        """The answers of a vector of zeros and ones, by the order of the classes."""
        names = self._names.names
        if names is None or len(names) != len(items):
            raise Fault(
                Rejection.WRONG_ANSWERS,
                f"{excerpt(str(cell))} looks like a multi-hot vector of {len(items)} classes; list them in data.labels "
                "in this order, or write the names of the classes that the row has",
            )
        return {name: float(item) for name, item in zip(names, items, strict=True)}

    def _name(self, item: Any, notices: Notices) -> str:
        if (name := self._names.read(item, notices)) is None:
            raise Fault(Rejection.WRONG_ANSWERS, f"{item!r} is no class name")
        return name

    def _known(self, cell: Any, numbers: Mapping[str, float | None]) -> tuple[None, Answers | None]:
        answers = {name: number for name, number in numbers.items() if number is not None}
        if wrong := next((name for name, number in answers.items() if not 0 <= number <= 1), None):
            raise Fault(
                Rejection.WRONG_ANSWERS,
                f"{wrong!r} is {answers[wrong]:g} in {excerpt(str(cell))}, expected true, false, null or a "
                "probability from 0 to 1; for votes set data.label_space to single",
            )
        return None, answers or None

    def _shares(
        self, cell: Any, numbers: Mapping[str, float | None], notices: Notices
    ) -> tuple[str | None, Answers | None]:
        """Votes or probabilities as shares of 1, and the class with the largest."""
        values = {name: number or 0.0 for name, number in numbers.items()}
        total = sum(values.values())
        if values and (min(values.values()) < 0 or not 0 < total < math.inf):
            raise Fault(
                Rejection.WRONG_ANSWERS,
                f"{excerpt(str(cell))}, expected votes or probabilities of 0 or more, not all 0, whose sum a "
                "float can hold; leave the cell empty if the label is not known",
            )
        if not values:
            return None, None
        whole = all(value == int(value) for value in values.values())
        if not whole and abs(total - 1) > _CLOSE:
            notices.append((Notice.SCALED_PROBABILITIES, excerpt(str(cell))))
        shares = {name: value / total for name, value in sorted(values.items()) if value > 0}
        label = max(shares, key=lambda name: shares[name])
        return label, shares if len(shares) > 1 else None


def detect_space(cells: Sequence[Any]) -> tuple[Space, Any]:
    """The label space that ``auto`` stands for, and a cell that decided; single where no cell is a list or object.

    A list is a set of classes. Objects are single labels where the numbers of each sum to 1 and some are true
    fractions; other objects answer each class apart.
    """
    objects: list[tuple[Any, list[Any]]] = []
    for cell in cells:
        try:
            value = _structured(cell)
        except Fault:  # rejected when it is read
            continue
        if isinstance(value, (list, tuple)):
            return "multilabel", cell
        if isinstance(value, Mapping):
            known = [item for item in value.values() if not is_missing(item)]
            objects += [(cell, known)] if known else []
    if not objects:
        return "single", None
    for cell, known in objects:
        numbers = [number for item in known if not isinstance(item, bool) and (number := _finite(item)) is not None]
        if len(numbers) < len(known) or abs(sum(numbers) - 1) > 10 * _CLOSE:
            return "multilabel", cell
    fraction = next((cell for cell, known in objects if any(0 < float(item) < 1 for item in known)), None)
    return ("multilabel", objects[0][0]) if fraction is None else ("single", fraction)


def _structured(cell: Any) -> Any:
    """The list or object that a text (CSV has no other way to write one) or pairs stand for; else the cell."""
    if isinstance(cell, (list, tuple)) and cell and all(isinstance(i, tuple) and len(i) == 2 for i in cell):
        return dict(cell)  # how Arrow gives a map
    if not isinstance(cell, str):
        return cell
    text = cell.strip()
    if _OBJECT.fullmatch(text):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = literal(text)
        if not isinstance(value, dict):
            raise Fault(Rejection.WRONG_ANSWERS, f"{excerpt(text)} cannot be read as an object; write it as JSON")
        return value
    items = list_in_text(cell) if text[:1] in "[(" else None
    return cell if items is None else items


def _is_multi_hot(items: Sequence[Any], names: Sequence[str] | None) -> bool:
    """Whether a list is a vector of zeros and ones, and not the names of classes called 0 and 1."""
    digits = [item for item in items if item in (0, 1) and not isinstance(item, str)]
    if not items or len(digits) < len(items) or {"0", "1"} & set(names or ()):
        return False
    return len(set(items)) < len(items) or (names is not None and len(names) == len(items))


def _number(name: Any, value: Any) -> float | None:
    """A class's answer: a number, a truth value; None where it is not known."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if (number := _finite(value)) is None:
        raise Fault(Rejection.WRONG_ANSWERS, f"{name!r} is {value!r}, expected a number, true, false or null")
    return number


def _finite(value: Any) -> float | None:
    """A number or truth value that a float can hold; None for anything else."""
    if not isinstance(value, (bool, int, float, Decimal)):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):  # a long integer; a signalling NaN
        return None
    return number if math.isfinite(number) else None
