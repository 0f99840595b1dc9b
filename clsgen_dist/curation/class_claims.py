"""Which class an explanation claims for its row, against the label; and texts that say their label.

A class counts as claimed where its name is not negated (:mod:`clsgen_dist.explanations.stated_class`). Weighing
alternatives is what good explanations do, so an explanation that names the label too contradicts it only if what it
concludes ("so it is benign", "suggests benign", "label: no") is another class, and never the label. Names that are
everyday words ("no", "other") count in conclusions about the label alone. Words are English. Cost: 20 us.
"""

from __future__ import annotations

import re

from clsgen_dist.explanations.stated_class import ClassNames, Mention

_SUBJECT = (
    r"(?:label|class|category|classification|verdict|answer|diagnosis|outcome|decision|prediction|ground truth|gold)"
)
_ASSIGNED = re.compile(rf"\b{_SUBJECT}\s*(?:(?:is|was|should be|must be)\b|:|=|->|→)[\s\"'“‘*`]*$", re.IGNORECASE)
"""What stands before a class that is said to be the label: ``the answer is``, ``label:``."""
_CONCLUDED = re.compile(
    r"\b(?:it's|is|are|suggests?|indicates?|means?|implies|imply|supports?|points? (?:to|towards?)"
    r"|speaks? for|(?:makes?|making) (?:it|this|them)|(?:class(?:ified|ed)|labell?ed|rated|judged|diagnosed) as"
    r"|consistent with|typical (?:of|for)|hence|thus|therefore)"
    r"(?:\s+(?:a|an|the|clearly|probably|likely|therefore|thus|indeed|most|strongly))*[\s\"'“‘*`]*$",
    re.IGNORECASE,
)
_LEAK = re.compile(
    r"(?:\b(?:label|class|category|classification|verdict|answer|diagnosis|outcome|target|gold|y)\s*(?:\]|\))?\s*(?::|=|->|→)"
    r"|\b(?:label|class|category|correct answer|ground truth|final diagnosis) (?:is|was)\b"
    r"|\b(?:labell?ed|classified|annotated|categori[sz]ed) as\b)[\s\"'“‘*`(\[]*(?:an? |the )?$",
    re.IGNORECASE,
)
_BEFORE = 60
"""Characters before a name that are looked at."""


def contradicted_class(explanation: str, label: int, names: ClassNames) -> tuple[int, str] | None:
    """The class that an explanation claims instead of its row's label, and how it is written; None if it does not.

    The class is the label itself where the explanation denies it.
    """
    mentions = names.mentions(explanation)
    assigned = [m for m in mentions if not m.is_negated and _ASSIGNED.search(_before(explanation, m))]
    if assigned:
        if any(m.label == label for m in assigned):
            return None
        return assigned[0].label, _written(explanation, assigned[0])
    mentions = [mention for mention in mentions if not names.is_everyday(mention.label)]
    stated = [mention for mention in mentions if not mention.is_negated]
    if stated and all(mention.label != label for mention in stated):
        return stated[0].label, _written(explanation, stated[0])
    if mentions and not stated:
        denied = [mention for mention in mentions if mention.label == label]
        others = [mention for mention in mentions if mention.label != label]
        return (label, _written(explanation, denied[0], "denied: ")) if denied and not others else None
    concluded = [mention for mention in stated if _CONCLUDED.search(_before(explanation, mention))]
    if concluded and all(mention.label != label for mention in concluded):
        return concluded[0].label, _written(explanation, concluded[0])
    return None


def says_label(text: str, label: int, names: ClassNames) -> str | None:
    """Where a text says what its label is, like ``Label: yes``; None if it does not."""
    for mention in names.mentions(text):
        if mention.label == label and (lead := _LEAK.search(_before(text, mention))):
            return lead[0].lstrip() + text[mention.start : mention.end]
    return None


def _before(text: str, mention: Mention) -> str:
    return text[max(0, mention.start - _BEFORE) : mention.start]


def _written(text: str, mention: Mention, lead: str = "") -> str:
    return lead + text[mention.start : mention.end]
