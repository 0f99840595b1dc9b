"""Settings of what is wrong with rows: thresholds, and what follows from each issue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from clsgen_dist.io.value_ranges import ClosedUnitInterval, OpenUnitInterval, PositiveInt

Severity = Literal["reject", "review", "note", "off"]
"""The row is rejected; a person should look; it is written down; it is not looked for."""


@dataclass(kw_only=True)
class SeveritySettings:
    """What follows from each issue: `reject`, `review` (for a person), `note` (the row is kept), `off` (not looked for)."""

    names_other_class: Severity = "review"
    """The explanation states another class than the row's label: one of the two is wrong."""
    contradicts_evidence: Severity = "review"
    """The explanation denies what the row's evidence says, or says what it denies."""
    copies_input: Severity = "review"
    """The explanation is the text, or a long part of it."""
    boilerplate: Severity = "review"
    """Many rows have the same explanation, apart from numbers and class names, and it says nothing of their texts."""
    other_language: Severity = "review"
    """The explanation is in another language than the text."""
    too_short: Severity = "reject"
    """The explanation has fewer than `min_words` words."""
    too_long: Severity = "review"
    """The explanation has more than `max_words` words."""
    ungrounded_number: Severity = "review"
    """The explanation has a number that is not in the text."""
    ungrounded_quote: Severity = "review"
    """The explanation quotes words that are not in the text."""
    label_in_text: Severity = "review"
    """The text gives the label away: it says `label: NAME`, or names a class that nearly always is the label."""
    label_error: Severity = "review"
    """A model of the other rows is confident that the label is another one (confident learning)."""
    personal_data: Severity = "off"
    """Text or explanation has an e-mail address, a telephone, card or account number."""


@dataclass(kw_only=True)
class CurationSettings:
    """What counts as wrong with a row, for `clsgen data gate` and `clsgen data check`."""

    severity: SeveritySettings = field(default_factory=SeveritySettings)
    """What follows from each issue."""
    min_words: PositiveInt = 3
    """Fewest words of an explanation (characters of Chinese and Japanese)."""
    max_words: PositiveInt = 300
    """Most words of an explanation."""
    max_copied_share: ClosedUnitInterval = 0.8
    """An explanation with this share of its runs of four words from the text copies it."""
    max_copied_run: PositiveInt = 40
    """An explanation with this many words of the text in a row copies it."""
    language_characters: PositiveInt = 40
    """Letters that text and explanation must both have before their languages are compared."""
    language_confidence: OpenUnitInterval = 0.8
    """Probability from which a language counts as known."""
    boilerplate_rows: PositiveInt = 5
    """Rows with the same explanation, numbers and class names aside, from which it is boilerplate."""
    boilerplate_own_words: ClosedUnitInterval = 0.25
    """An explanation with more than this share of its content words from the text is no boilerplate."""
    leak_share: ClosedUnitInterval = 0.95
    """A class name in texts gives the label away if it is the label of this share of the rows that have it."""
    leak_rows: PositiveInt = 5
    """Fewest rows that must have the name."""
    label_error_agreement: ClosedUnitInterval = 0.4
    """Agreement beyond chance (κ) with the labels that the model of the other rows must reach, to question any of them."""
    label_error_margin: ClosedUnitInterval = 0.3
    """How much more probable than the row's label another one must be."""
    sample_rows: PositiveInt = 20_000
    """Rows that this model learns from."""

    def faults(self) -> Iterator[str]:
        """What is wrong with fields of this section taken together."""
        if self.min_words > self.max_words:
            yield (
                f"curation.min_words is {self.min_words}, more than curation.max_words {self.max_words}: no "
                "explanation could pass; lower it"
            )
