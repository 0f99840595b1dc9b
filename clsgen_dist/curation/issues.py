"""What can be wrong with a row: a stable code, and what is specific to the row."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class IssueCode(StrEnum):
    """What is wrong; the codes are stable, the words are not."""

    NAMES_OTHER_CLASS = "names-other-class"
    CONTRADICTS_EVIDENCE = "contradicts-evidence"
    COPIES_INPUT = "copies-input"
    BOILERPLATE = "boilerplate"
    OTHER_LANGUAGE = "other-language"
    TOO_SHORT = "too-short"
    TOO_LONG = "too-long"
    UNGROUNDED_NUMBER = "ungrounded-number"
    UNGROUNDED_QUOTE = "ungrounded-quote"
    LABEL_IN_TEXT = "label-in-text"
    LABEL_ERROR = "label-error"
    PERSONAL_DATA = "personal-data"

    @property
    def words(self) -> str:
        """The code in words."""
        return _WORDS[self]

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return _REMEDIES[self]


_WORDS = {
    IssueCode.NAMES_OTHER_CLASS: "the explanation states another class than the label",
    IssueCode.CONTRADICTS_EVIDENCE: "the explanation contradicts the row's evidence",
    IssueCode.COPIES_INPUT: "the explanation copies the text",
    IssueCode.BOILERPLATE: "the explanation is that of many rows, and says nothing of the text",
    IssueCode.OTHER_LANGUAGE: "the explanation is in another language than the text",
    IssueCode.TOO_SHORT: "the explanation is too short",
    IssueCode.TOO_LONG: "the explanation is too long",
    IssueCode.UNGROUNDED_NUMBER: "the explanation has a number that is not in the text",
    IssueCode.UNGROUNDED_QUOTE: "the explanation quotes what is not in the text",
    IssueCode.LABEL_IN_TEXT: "the text gives the label away",
    IssueCode.LABEL_ERROR: "other rows speak for another label",
    IssueCode.PERSONAL_DATA: "there is personal data",
}

_REMEDIES = {
    IssueCode.NAMES_OTHER_CLASS: "correct the label, or the explanation",
    IssueCode.CONTRADICTS_EVIDENCE: "correct the explanation, or the evidence",
    IssueCode.COPIES_INPUT: "say why the text has this label, in fewer words than its own",
    IssueCode.BOILERPLATE: "say what is specific to each text, or leave these explanations out",
    IssueCode.OTHER_LANGUAGE: "explain in the language of the text",
    IssueCode.TOO_SHORT: "say more, or leave them out; the limit is curation.min_words",
    IssueCode.TOO_LONG: "shorten them; the limit is curation.max_words",
    IssueCode.UNGROUNDED_NUMBER: "correct the numbers: the model would learn to invent them",
    IssueCode.UNGROUNDED_QUOTE: "quote the text as it is: the model would learn to invent quotes",
    IssueCode.LABEL_IN_TEXT: "delete the label from the text: the model would learn to look for it",
    IssueCode.LABEL_ERROR: "look at these labels first",
    IssueCode.PERSONAL_DATA: "delete it, or replace it by a placeholder",
}


@dataclass(frozen=True)
class Issue:
    """Something wrong with a row."""

    code: IssueCode
    detail: str = ""
    """What is specific to the row, such as the number that is not in the text."""
