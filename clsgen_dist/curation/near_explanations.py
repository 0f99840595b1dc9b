"""Explanations of a class that are nearly the same, and say nothing of their texts that the others do not.

    alike       linked by near duplicates: Jaccard index of their 5-character shingles (data/checks/near_duplicates)
    the same    alike, with the same facts in the same order

A fact is a number, or a content word that is also in the row's text and that some of the linked ones lack. So "12 mm,
spiculated: malignant" and "31 mm, lobed: malignant" are not the same, however much of a template they share: each says
what its own text says. "This clearly is malignant" and "This is clearly malignant" are, and copies always are.

Cost: 0.5 ms and 2.5 KB for each different explanation, 1 ms and 8 KB where all are alike; copies cost a hash.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

from clsgen_dist.data.checks.near_duplicates import Sketches, Template, near_duplicates, normalised, text_hash
from clsgen_dist.explanations.text_units import is_content, stem, words

# D different explanations of a class

_OTHER, _OWN, _NUMBER = range(3)
"""Kinds of words: own ones are also in the row's text."""


class NearExplanations:
    """The different explanations of each class."""

    def __init__(self) -> None:
        self._classes: dict[tuple[str, ...], _ClassExplanations] = {}
        self._group_D: dict[tuple[str, ...], list[int]] = {}
        self.is_lower_bound = False
        """Whether some were not compared, so that more may be the same."""

    def add(self, label: tuple[str, ...], text: str, explanation: str) -> None:
        """Add an explanation of a text with these classes."""
        self._classes.setdefault(label, _ClassExplanations()).add(text, explanation)

    def link(self, threshold: float) -> None:
        """Find those that are the same, once all are added.

        Args:
            threshold: Jaccard index from which two explanations are alike.
        """
        groups = 0
        for label, explanations in self._classes.items():
            self._group_D[label], is_lower_bound = explanations.groups(threshold, groups)
            groups = 1 + max(self._group_D[label])
            explanations.forget_contents()
            self.is_lower_bound |= is_lower_bound

    def group(self, label: tuple[str, ...], explanation: str) -> int:
        """A number that an explanation shares with those that are the same; KeyError if it was not added."""
        return self._group_D[label][self._classes[label].number(explanation)]


class _ClassExplanations:
    """The different explanations of one class."""

    def __init__(self) -> None:
        self._number: dict[int, int] = {}
        self._sketches = Sketches(Template.none())
        # All their words, one after the other: hash and kind of each; and where the words of each explanation end.
        self._words, self._kinds, self._ends = array("Q"), bytearray(), array("Q", [0])

    def number(self, explanation: str) -> int:
        """The place of an explanation among the different ones."""
        return self._number[text_hash(normalised(explanation))]

    def add(self, text: str, explanation: str) -> None:
        """Add an explanation; of copies, only the first one's text counts."""
        normal = normalised(explanation)
        digest = text_hash(normal)
        if digest in self._number:
            return
        self._number[digest] = len(self._number)
        self._sketches.add(normal)
        there = {stem(word) for word in words(text)}
        for word in words(normal):
            self._words.append(text_hash(word))
            is_own = is_content(word) and stem(word) in there
            self._kinds.append(_NUMBER if word[0].isdigit() else _OWN if is_own else _OTHER)
        self._ends.append(len(self._words))

    def groups(self, threshold: float, first: int) -> tuple[list[int], bool]:
        """The group of each different explanation, numbered from ``first``; whether some were not compared."""
        near = near_duplicates(self._sketches, [0] * len(self._sketches), 1, threshold)
        order_D = np.argsort(near.group_R, kind="stable")
        starts = np.flatnonzero(np.diff(near.group_R[order_D], prepend=-1))
        known: dict[tuple[int, tuple[int, ...]], int] = {}
        group_D = [0] * len(order_D)
        for linked in np.split(order_D, starts[1:]):
            for member, facts in zip(linked.tolist(), self._facts(linked.tolist()), strict=True):
                group_D[member] = known.setdefault((int(linked[0]), facts), first + len(known))
        return group_D, near.is_lower_bound

    def forget_contents(self) -> None:
        """Free what is not needed once groups are known."""
        self._sketches, self._words, self._kinds = Sketches(Template.none()), array("Q"), bytearray()

    def _facts(self, linked: list[int]) -> Iterator[tuple[int, ...]]:
        """The facts of each of these explanations."""
        spans = [slice(self._ends[member], self._ends[member + 1]) for member in linked]
        shared = set(self._words[spans[0]])
        for span in spans[1:]:
            shared.intersection_update(self._words[span])
        for span in spans:
            said = zip(self._words[span], self._kinds[span], strict=True)
            yield tuple(word for word, kind in said if kind == _NUMBER or (kind == _OWN and word not in shared))
