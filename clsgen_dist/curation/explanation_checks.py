"""What one row shows about its explanation, without the other rows.

    names-other-class      :mod:`clsgen_dist.curation.class_claims`
    contradicts-evidence   :mod:`clsgen_dist.curation.evidence_contradiction`
    copies-input           share of runs of four words that are in the text; most words in a row in such runs
    other-language         :mod:`clsgen_dist.curation.language`
    too-short, too-long    words, as :mod:`clsgen_dist.explanations.text_units` counts them
    ungrounded-number      not in the text, not as a percentage, and no number of the text rounds to it
    ungrounded-quote       two words or more in quotation marks that do not follow one another in the text
    label-in-text          the text says ``label: NAME``; names that are the label in all rows: :mod:`.label_leaks`
    personal-data          :mod:`clsgen_dist.curation.personal_data`

Cost: 1 ms per row of 70 words in English, 2 ms in another language.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import groupby

from clsgen_dist.curation.class_claims import contradicted_answer, contradicted_class, says_label
from clsgen_dist.curation.evidence_contradiction import contradicted_evidence
from clsgen_dist.curation.issues import Issue, IssueCode
from clsgen_dist.curation.language import other_language
from clsgen_dist.curation.personal_data import personal_data
from clsgen_dist.curation.settings import CurationSettings, Severity
from clsgen_dist.data.reading.label_cells import OTHERS
from clsgen_dist.explanations.grounding import COPIED_WORDS
from clsgen_dist.explanations.stated_class import ClassNames
from clsgen_dist.explanations.text_units import Number, Offsets, ngrams, numbers, quoted_spans, words
from clsgen_dist.io.text import shortened

_LEAST_COPIED = 5
"""Words of the shortest explanation that can be a copy."""
_QUOTED_WORDS = 2
"""Words of the shortest quote that is looked for; a single word in quotation marks is often a distance taken."""
_CLAIMS = 100
"""Numbers and quotes of an explanation that are looked for."""
_OMISSION = re.compile(r"\[?(?:\.\.\.|…)\]?")


def explanation_issues(
    text: str,
    explanation: str,
    *,
    label: str | None,
    answers: Mapping[str, float] | None = None,
    names: ClassNames,
    evidence: Sequence[Offsets] = (),
    counter_evidence: Sequence[Offsets] = (),
    settings: CurationSettings,
) -> list[Issue]:
    """Everything wrong with one explanation of a row, in the order of :class:`IssueCode`; each code at most once.

    Args:
        text: the row's text.
        explanation: one explanation of its label.
        label: the row's class; None where it has none, or several.
        answers: of a row with several labels, see :mod:`clsgen_dist.data.reading.label_cells`.
        names: the names of the classes. A label that is not among them counts as None.
        evidence: characters ``[start, end)`` of the text that speak for the label.
        counter_evidence: characters that speak against it.
        settings: thresholds; an issue whose severity is off is not looked for.
    """
    found: list[Issue] = []
    on = {code for code in IssueCode if severity(code, settings) != "off"}
    if IssueCode.NAMES_OTHER_CLASS in on and (claim := _contradiction(text, explanation, label, answers, names)):
        found.append(Issue(IssueCode.NAMES_OTHER_CLASS, claim))
    if IssueCode.CONTRADICTS_EVIDENCE in on and (evidence or counter_evidence):
        span = contradicted_evidence(text, explanation, [*evidence, *counter_evidence])
        found += [Issue(IssueCode.CONTRADICTS_EVIDENCE, shortened(span))] if span else []
    if IssueCode.COPIES_INPUT in on and (copied := _copied(text, explanation, settings)):
        found.append(Issue(IssueCode.COPIES_INPUT, copied))
    if IssueCode.OTHER_LANGUAGE in on and (languages := _languages(text, explanation, settings)):
        found.append(Issue(IssueCode.OTHER_LANGUAGE, languages))
    length = len(words(explanation))
    if IssueCode.TOO_SHORT in on and length < settings.min_words:
        found.append(Issue(IssueCode.TOO_SHORT, f"{length} words, the least are {settings.min_words}"))
    if IssueCode.TOO_LONG in on and length > settings.max_words:
        found.append(Issue(IssueCode.TOO_LONG, f"{length} words, the most are {settings.max_words}"))
    found += [issue for issue in _ungrounded(text, explanation, names) if issue.code in on]
    found += row_issues(text, label=label, answers=answers, names=names, settings=settings)
    if IssueCode.PERSONAL_DATA in on and not any(i.code == IssueCode.PERSONAL_DATA for i in found):
        found += [Issue(IssueCode.PERSONAL_DATA, f"{kind} in the explanation") for kind in _personal(explanation)]
    return found


def _contradiction(
    text: str, explanation: str, label: str | None, answers: Mapping[str, float] | None, names: ClassNames
) -> str | None:
    """What an explanation claims against its row's label or labels, in words."""
    known = known_answers(label, answers, names)
    if label is None:
        contradicted = contradicted_answer(text, explanation, known, names) if known else None
        if contradicted is None:
            return None
        name = names.labels[contradicted]
        return f"denies {name}" if known[contradicted] else f"{name}, which the row does not have"
    index = next((index for index, has in known.items() if has), None)
    claimed = None if index is None else contradicted_class(text, explanation, index, names)
    if claimed is None or index is None:
        return None
    return f"denies {label}" if claimed == index else f"{names.labels[claimed]}, not {label}"


def known_answers(label: str | None, answers: Mapping[str, float] | None, names: ClassNames) -> dict[int, bool]:
    """Whether a row has a class, by the class's number, of those where that is known; empty without a label.

    Answers that are neither yes nor no are not known. A label that is not among ``names`` is none.
    """
    if label is not None:
        return {index: name == label for index, name in enumerate(names.labels)} if label in names.labels else {}
    given = dict(answers or {})
    implied = given.get(OTHERS)
    found = {index: given.get(name, implied) for index, name in enumerate(names.labels)}
    return {index: bool(value) for index, value in found.items() if value in (0, 1)}


def row_issues(
    text: str,
    *,
    label: str | None,
    answers: Mapping[str, float] | None = None,
    names: ClassNames,
    settings: CurationSettings,
) -> list[Issue]:
    """What is wrong with a row's text and labels alone; part of what :func:`explanation_issues` finds."""
    found: list[Issue] = []
    if severity(IssueCode.LABEL_IN_TEXT, settings) != "off":
        own = [index for index, has in known_answers(label, answers, names).items() if has]
        said = next(filter(None, (says_label(text, index, names) for index in own)), None)
        found += [Issue(IssueCode.LABEL_IN_TEXT, shortened(said))] if said else []
    if severity(IssueCode.PERSONAL_DATA, settings) != "off":
        found += [Issue(IssueCode.PERSONAL_DATA, f"{kind} in the text") for kind in _personal(text)]
    return found


def severity(code: IssueCode, settings: CurationSettings) -> Severity:
    """What follows from an issue, as the recipe has it."""
    return getattr(settings.severity, code.replace("-", "_"))


def _personal(text: str) -> list[str]:
    kind = personal_data(text)
    return [kind] if kind else []


def _languages(text: str, explanation: str, settings: CurationSettings) -> str | None:
    languages = other_language(
        text,
        explanation,
        least_letters=settings.language_characters,
        confidence=settings.language_confidence,
    )
    return f"{languages[1]}, the text is {languages[0]}" if languages else None


def _copied(text: str, explanation: str, settings: CurationSettings) -> str | None:
    """How much of an explanation is copied, in words; None if it is no copy."""
    said = words(explanation)
    if len(said) < _LEAST_COPIED:
        return None
    there = set(ngrams(words(text), COPIED_WORDS))
    is_copied = [run in there for run in ngrams(said, COPIED_WORDS)]
    share = sum(is_copied) / len(is_copied)
    if share >= settings.max_copied_share:
        return f"{share:.0%} of its runs of {COPIED_WORDS} words"
    longest = max((sum(1 for _ in same) for copied, same in groupby(is_copied) if copied), default=0) + COPIED_WORDS - 1
    return f"{longest} words in a row" if longest >= settings.max_copied_run else None


def _ungrounded(text: str, explanation: str, names: ClassNames) -> Iterator[Issue]:
    """The first number and the first quote of an explanation that are not in the text; class names are no claims."""
    of_classes = [(mention.start, mention.end) for mention in names.mentions(explanation)]

    def is_claim(start: int, end: int) -> bool:
        return not any(begin <= start and end <= stop for begin, stop in of_classes[:_CLAIMS])

    said = [number for number in numbers(explanation)[:_CLAIMS] if is_claim(number.start, number.end)]
    there = numbers(text) if said else []
    values = {is_percent: _comparable(there, is_percent) for is_percent in {number.is_percent for number in said}}
    for number in said:
        if not _has_value(values[number.is_percent], number.value, _unit(explanation, number)):
            yield Issue(IssueCode.UNGROUNDED_NUMBER, shortened(explanation[number.start : number.end].strip()))
            break
    for start, end in quoted_spans(explanation)[:_CLAIMS]:
        if is_claim(start, end) and not _has_parts(text, explanation[start:end]):
            yield Issue(IssueCode.UNGROUNDED_QUOTE, shortened(explanation[start:end]))
            return


def _comparable(there: Sequence[Number], is_percent: bool) -> list[Decimal]:
    """The values of a text's numbers, in order, as a percentage (12 for 0.12) or as a plain number (0.12 for 12 %)."""
    other = [number.value for number in there if number.is_percent != is_percent]
    converted = (value * 100 if is_percent else value / 100 for value in other)
    return sorted([*(number.value for number in there), *converted])


def _unit(explanation: str, number: Number) -> Decimal:
    """What the last place of a number is worth, as it is written."""
    places = explanation[number.start : number.end].rstrip("%perchnt ").partition(".")[2]
    return Decimal(10) ** -len(places)


def _has_value(ordered: Sequence[Decimal], wanted: Decimal, unit: Decimal) -> bool:
    """Whether one of the numbers rounds to the one wanted."""
    at = bisect_left(ordered, wanted - unit / 2)
    return at < len(ordered) and ordered[at] <= wanted + unit / 2


def _has_parts(text: str, quote: str) -> bool:
    """Whether the text has the parts of a quote around its ``...``; short parts are passed over."""
    there = f" {' '.join(words(text))} "
    parts = [words(part) for part in _OMISSION.split(quote)]
    return all(len(part) < _QUOTED_WORDS or f" {' '.join(part)} " in there for part in parts)
