"""Class names in texts that give the label away.

A name is counted where it stands: anywhere in a text, as its first words, as its last words. It gives the label away
there if it is the label, or one of several, of nearly all rows that have it, and of more than chance would make it
(binomial test, p below 0.01). A row counts for the classes of which is known whether it has them. Cost: one search for
names per text; a few numbers per class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from clsgen_dist.explanations.stated_class import ClassNames

_CHANCE = 0.01
"""Largest p-value."""
Place = tuple[str, int]
"""``anywhere``, ``first`` or ``last``, and the class that is named."""


class LabelLeaks:
    """Counts names of classes in the texts of labelled rows."""

    def __init__(self, names: ClassNames) -> None:
        self._names = names
        self._rows: Counter[int] = Counter()
        self._known: Counter[int] = Counter()
        self._named: Counter[Place] = Counter()
        self._right: Counter[Place] = Counter()

    def add(self, text: str, answers: Mapping[int, bool]) -> None:
        """Count a row; ``answers`` say whether it has a class, of those where that is known."""
        self._known.update(answers.keys())
        self._rows.update(label for label, has in answers.items() if has)
        for place in _places(text, self._names):
            if place[1] in answers:
                self._named[place] += 1
                self._right[place] += answers[place[1]]

    def merge(self, other: LabelLeaks) -> None:
        """Count the rows that another one has counted."""
        self._rows.update(other._rows)
        self._known.update(other._known)
        self._named.update(other._named)
        self._right.update(other._right)

    def leaking(self, *, least_rows: int, least_share: float) -> set[Place]:
        """The places that give the label away: found in at least so many rows, right in at least this share of them."""
        from scipy.stats import binom

        return {
            place
            for place, rows in self._named.items()
            if rows >= least_rows
            and self._right[place] >= least_share * rows
            and binom.sf(self._right[place] - 1, rows, self._rows[place[1]] / self._known[place[1]]) < _CHANCE
        }

    def leak(self, text: str, answers: Mapping[int, bool], leaking: set[Place]) -> str | None:
        """How a row's text gives its label, or one of them, away, in words; None if it does not."""
        for where, named in _places(text, self._names):
            if answers.get(named) and (where, named) in leaking:
                return _WORDS[where].format(self._names.labels[named])
        return None


_WORDS = {"anywhere": "names {!r}", "first": "begins with {!r}", "last": "ends with {!r}"}


def _places(text: str, names: ClassNames) -> Iterator[Place]:
    """Where which classes are named, each place once."""
    mentions = names.mentions(text)
    if not mentions:
        return
    for label in dict.fromkeys(mention.label for mention in mentions):
        yield "anywhere", label
    if not any(map(str.isalnum, text[: mentions[0].start])):
        yield "first", mentions[0].label
    if not any(map(str.isalnum, text[mentions[-1].end :])):
        yield "last", mentions[-1].label
