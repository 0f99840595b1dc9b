"""Which class an explanation claims for its row, against the label; and texts that say their label.

A class counts as claimed where its name is not negated (:mod:`clsgen_dist.explanations.stated_class`). Weighing
alternatives is what good explanations do, so an explanation that names the label too contradicts it only if what it
concludes ("so it is benign", "suggests benign", "label: no") is another class, and never the label. Names that the text
has may be quoted from it, and count in conclusions alone; names that are everyday words ("no", "other"), letters or
numbers only where they are said to be the label, or answer ("No, since ..."). Words are English. Cost: 20 us.

Of a row with several labels, each class is a claim of its own: one that the row is known not to have may be named
beside those that it has, not concluded; one that it has may not only be denied. Lists of what is absent are usual
there ("no fever, cough or rash"): behind a negation, nothing in its sentence is claimed. Classes that are not known are
not contradicted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from clsgen_dist.explanations.stated_class import ClassNames, Mention

_SUBJECT = (
    r"(?:label|class|category|classification|verdict|answer|diagnosis|outcome|decision|prediction|ground truth|gold)"
)
_ASSIGNED = re.compile(rf"\b{_SUBJECT}\s*(?:(?:is|was|should be|must be)\b|:|=|->|→)[\s\"'“‘*`]*$", re.IGNORECASE)
"""What stands before a class that is said to be the label: ``the answer is``, ``label:``."""
_ANSWERS = ("yes", "no", "true", "false", "maybe")
_ANSWERED = re.compile(r"(?:^|\b(?:so|thus|hence|therefore)[,:]?)\s*$", re.IGNORECASE)
_ENDED = re.compile(r"\s*(?:[,.;:!]|$)")
"""What stands before and behind an answer: ``No, since ...``, ``so: yes.``"""
_CONCLUDED = re.compile(
    r"\b(?:it's|is|are|suggests?|indicates?|means?|implies|imply|supports?|points? (?:to|towards?)"
    r"|speaks? for|(?:makes?|making) (?:it|this|them)|(?:class(?:ified|ed)|labell?ed|rated|judged|diagnosed) as"
    r"|consistent with|typical (?:of|for)|hence|thus|therefore)"
    r"(?:\s+(?:a|an|the|clearly|probably|likely|therefore|thus|indeed|most|strongly))*[\s\"'“‘*`]*$",
    re.IGNORECASE,
)
_LEAK = re.compile(
    r"(?:\b(?:labels?|class(?:es)?|categor(?:y|ies)|tags?|classification|verdict|answer|diagnosis|outcome|target|gold|y)\s*(?:\]|\))?\s*(?::|=|->|→)"
    r"|\b(?:label|class|category|correct answer|ground truth|final diagnosis) (?:is|was)\b"
    r"|\b(?:labell?ed|classified|annotated|categori[sz]ed) as\b)[\s\"'“‘*`(\[]*(?:an? |the )?$",
    re.IGNORECASE,
)
_DENYING = re.compile(r"\b(?:no|not|without|neither|nor|none|nothing|never|absent|lacks?)\b[^.;!?]*$", re.IGNORECASE)
"""The rest of a sentence behind a negation."""
_BEFORE = 60
_SENTENCE = 300
"""Characters before a name that are looked at."""


def contradicted_class(text: str, explanation: str, label: int, names: ClassNames) -> int | None:
    """The class that an explanation claims instead of its row's label; the label itself where it is denied.

    None if the explanation contradicts nothing.
    """
    mentions = names.mentions(explanation)
    assigned = [m.label for m in mentions if not m.is_negated and _is_assigned(explanation, m)]
    if assigned or _is_vague(label, names):
        return assigned[0] if assigned and label not in assigned else None
    mentions = [mention for mention in mentions if not _is_vague(mention.label, names)]
    stated = [mention for mention in mentions if not mention.is_negated]
    if not stated:
        return label if mentions and all(mention.label == label for mention in mentions) else None
    concluded = [mention.label for mention in stated if _CONCLUDED.search(_before(explanation, mention))]
    if any(mention.label == label for mention in stated):
        return concluded[0] if concluded and label not in concluded else None
    quoted = {mention.label for mention in names.mentions(text)} - set(concluded)
    return next((mention.label for mention in stated if mention.label not in quoted), None)


def contradicted_answer(text: str, explanation: str, answers: Mapping[int, bool], names: ClassNames) -> int | None:
    """The class whose answer an explanation contradicts, of a row with several labels; None if it contradicts none.

    Args:
        text: the row's text.
        explanation: one explanation of its labels.
        answers: whether the row has a class, of those where that is known.
        names: the names of the classes.
    """
    mentions = names.mentions(explanation)
    assigned = {m.label for m in mentions if not m.is_negated and _is_assigned(explanation, m)}
    mentions = [m for m in mentions if m.label in assigned or not _is_vague(m.label, names)]
    stated = [m for m in mentions if not m.is_negated]
    concluded = {m.label for m in stated if _CONCLUDED.search(_before(explanation, m))}
    quoted = {m.label for m in names.mentions(text)}
    has_right_name = any(answers.get(m.label) for m in stated)
    for mention in stated:
        may_be_named = has_right_name or mention.label in quoted
        is_claimed = mention.label in assigned or (
            not _is_denied(explanation, mention) and (mention.label in concluded or not may_be_named)
        )
        if is_claimed and answers.get(mention.label) is False:
            return mention.label
    named = {m.label for m in stated}
    return next((m.label for m in mentions if answers.get(m.label) and m.label not in named), None)


def says_label(text: str, label: int, names: ClassNames) -> str | None:
    """Where a text says what its label is, like ``Label: yes``; None if it does not."""
    for mention in names.mentions(text):
        if mention.label == label and (lead := _LEAK.search(_before(text, mention))):
            return lead[0].lstrip() + text[mention.start : mention.end]
    return None


def _is_assigned(explanation: str, mention: Mention) -> bool:
    """Whether a class is said to be the label, or is the answer to a question."""
    before = _before(explanation, mention)
    if _ASSIGNED.search(before):
        return True
    is_answer = explanation[mention.start : mention.end].casefold() in _ANSWERS
    return is_answer and bool(_ANSWERED.search(before)) and bool(_ENDED.match(explanation, mention.end))


def _is_denied(explanation: str, mention: Mention) -> bool:
    """Whether a negation stands before a name, anywhere in its sentence."""
    return bool(_DENYING.search(explanation[max(0, mention.start - _SENTENCE) : mention.start]))


def _before(text: str, mention: Mention) -> str:
    return text[max(0, mention.start - _BEFORE) : mention.start]


def _is_vague(label: int, names: ClassNames) -> bool:
    """Whether a name mostly means something else: an everyday word, a letter, a number."""
    name = names.labels[label].strip()
    return names.is_everyday(label) or len(name) == 1 or name.isdigit()
