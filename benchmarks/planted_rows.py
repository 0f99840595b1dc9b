"""Faults whose place is known, planted in rows of the demo's set; for data_construction.py."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from clsgen_dist.data.demos import breast_cancer

Row = dict[str, Any]


class Fault(StrEnum):
    """What is planted; the value says how."""

    WRONG_LABEL = "wrong label, and an explanation that agrees with it"
    OTHER_CLASS = "explanation of the other class"
    LEAK = "label written into the text"
    BOILERPLATE = "explanation that fits any row"
    INVENTED_NUMBER = "number in the explanation that the text has not"
    COPY = "explanation that repeats the text, or most of it"
    MISSING = "no explanation"


COUNTS = dict.fromkeys(Fault, 24) | {Fault.MISSING: 60}
CODES = {
    Fault.WRONG_LABEL: "label-error",
    Fault.OTHER_CLASS: "names-other-class",
    Fault.LEAK: "label-in-text",
    Fault.BOILERPLATE: "boilerplate",
    Fault.INVENTED_NUMBER: "ungrounded-number",
    Fault.COPY: "copies-input",
}
"""The issue that should be found."""
_BOILERPLATE = (
    "{Label}: the findings are consistent with this diagnosis.",
    "{Label}, as seen by the reporting cytologist.",
    "The overall picture of the sample is {label}.",
)
_LEAKS = ("Diagnosis: {label}.", "The surgeon was told that it is {label}.", "({label})")


@dataclass(frozen=True)
class Planted:
    """A row with its fault, and as it was."""

    raw: Row
    good: Row
    fault: Fault | None


def plant(rows: Sequence[Row], seed: int = 0, counts: dict[Fault, int] | None = None) -> list[Planted]:
    """Plant faults in rows drawn at random; each row has one at most, and the first of its explanations."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    of: dict[int, Fault] = {}
    for fault, count in (counts or COUNTS).items():
        for _ in range(count):
            of[order.pop()] = fault
    planted = []
    for place, row in enumerate(rows):
        good = {**row, "explanation": row["explanations"][place % len(row["explanations"])]}
        del good["explanations"], good["counter_evidence"]
        planted.append(Planted(_spoiled(good, of.get(place), random.Random(place)), good, of.get(place)))
    return planted


def _spoiled(row: Row, fault: Fault | None, rng: random.Random) -> Row:
    label = row["label"]
    other = next(name for name in breast_cancer.LABELS if name != label)
    said = row["explanation"].replace(label.capitalize(), other.capitalize())
    first = breast_cancer.stated_findings(row["explanation"])[0]
    match fault:
        case Fault.WRONG_LABEL:
            return {**row, "label": other, "explanation": said}
        case Fault.OTHER_CLASS:
            return {**row, "explanation": said}
        case Fault.LEAK:
            return {**row, "text": f"{row['text']} {rng.choice(_LEAKS).format(label=label)}"}
        case Fault.BOILERPLATE:
            sentence = rng.choice(_BOILERPLATE).format(Label=label.capitalize(), label=label)
            return {**row, "explanation": sentence}
        case Fault.INVENTED_NUMBER:
            finding = " ".join(first)
            return {**row, "explanation": row["explanation"].replace(finding, f"{finding} ({rng.randint(11, 98)} mm)")}
        case Fault.COPY:
            copied = row["text"].rstrip(".").split(", ")[: rng.randint(5, 8)]
            return {**row, "explanation": f"{label.capitalize()}: {', '.join(copied).lower()}."}
        case Fault.MISSING:
            return {**row, "explanation": None}
    return row
