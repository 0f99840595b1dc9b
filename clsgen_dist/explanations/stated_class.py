"""Agreement of explanation and head: which class an explanation states, and whether the head decided the same.

    stated class   the first class named, as a whole word, that is not negated ("not malignant", "rather than benign")
    κ              agreement of stated and decided class beyond chance (Cohen 1960); quadratic weights if ordered
    alignment      AUROC of the head's probability against the stated class: does the head rank rows as the
                   explanations sort them? CLSGen (arXiv 2604.11801) reports alignment of head and explanation.

Only the class's name counts, not a synonym; a name that is an everyday word ("no") is found where it is meant
otherwise. Cost: one regular expression per text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from clsgen_dist.evaluation.delong import RankedQuestion, mean_auroc_interval
from clsgen_dist.evaluation.interval import Interval, share_interval
from clsgen_dist.evaluation.metrics import Kind
from clsgen_dist.explanations.estimates import UNDEFINED, PooledScore, RowScores, check_same_rows, estimate, row_scores
from clsgen_dist.explanations.text_units import STOP_WORDS, words

# N rows, C classes

NOT_STATED = -1
_NEGATED = re.compile(
    r"(?:\b(?:not|no|non|never|without|unlikely|unlike|neither|nor|isn't|isn’t|cannot|can't|can’t|hardly)"
    r"(?:[ -]+(?:a|an|the|to be|be|as|likely))?"
    r"|\b(?:rather|other) than(?: an?)?|\binstead of(?: an?)?|\bruled? out(?: an?)?|\bagainst(?: an?)?)[\s\-\"'“‘]*$",
    re.IGNORECASE,
)
_EXCLUDED = re.compile(
    r"(?:\s+(?:features|findings|signs|disease|causes?))?\s+(?:is|are|was|were|can be|has been|have been)\s+"
    r"(?:ruled out|excluded|absent|unlikely|not\b)",
    re.IGNORECASE,
)
"""What negates a class behind its name."""
_LONGEST_NEGATION = 40
_WORD_BEGINS = r"(?<![^\W\u3040-\u9fff])"
_VAGUE_NAMES = "yes no true false none not maybe other unknown normal high low medium good bad"
_EVERYDAY = STOP_WORDS | set(_VAGUE_NAMES.split())
"""Words that explanations use without stating a class."""


@dataclass(frozen=True)
class Mention:
    """A class named in a text."""

    label: int
    start: int
    end: int
    is_negated: bool


class ClassNames:
    """Finds the names of classes in texts; of overlapping names the longest counts."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)
        named = [index for index, name in enumerate(labels) if name.strip()]
        self._longest_first = sorted(named, key=lambda index: len(labels[index]), reverse=True)
        self._everyday = {index for index in named if words(labels[index]) and set(words(labels[index])) <= _EVERYDAY}
        self._pattern = re.compile(_any_of([labels[index].strip() for index in self._longest_first]), re.IGNORECASE)

    def mentions(self, text: str) -> list[Mention]:
        """All names in the text, in order."""
        return [
            Mention(
                self._longest_first[(match.lastindex or 1) - 1],
                *match.span(),
                bool(
                    _NEGATED.search(text[max(0, match.start() - _LONGEST_NEGATION) : match.start()])
                    or _EXCLUDED.match(text[match.end() : match.end() + _LONGEST_NEGATION])
                ),
            )
            for match in self._pattern.finditer(text)
        ]

    def contradicts(self, text: str, decided: int | Collection[int]) -> bool:
        """Whether the text states another class than was decided, as :func:`contradictions` counts it.

        Classes named by an everyday word (``no``, ``other``) are passed over: it mostly means something else.
        """
        stated = [index for index in self.stated(text) if index not in self._everyday]
        if isinstance(decided, int):
            return bool(stated) and stated[0] != decided
        return any(index not in decided for index in stated)

    def is_everyday(self, label: int) -> bool:
        """Whether a class is named by an everyday word, like ``no``, which mostly means something else."""
        return label in self._everyday

    def masked(self, text: str, mask: str = " ") -> str:
        """The text with every name replaced."""
        return self._pattern.sub(lambda match: mask, text)

    def stated(self, text: str) -> list[int]:
        """The classes stated, first ones first."""
        return list(dict.fromkeys(m.label for m in self.mentions(text) if not m.is_negated))


def stated_classes(explanations: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """``[N]`` the first class that each explanation states, :data:`NOT_STATED` where it states none."""
    names = ClassNames(labels)
    return np.array([next(iter(names.stated(text)), NOT_STATED) for text in explanations], dtype=int)


def stated_sets(explanations: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """``[N, C]`` all classes that each explanation states."""
    names = ClassNames(labels)
    stated_NC = np.zeros((len(explanations), len(labels)), dtype=bool)
    for row, text in enumerate(explanations):
        stated_NC[row, names.stated(text)] = True
    return stated_NC


def names_decided_class(
    explanations: Sequence[str], decided: Sequence[str | list[str]], labels: Sequence[str]
) -> float:
    """Fraction of explanations in which the predicted class is the first class mentioned, as a substring.

    Multi-label: in which the classes mentioned are the predicted ones.
    """
    count = 0
    for explanation, label in zip(explanations, decided, strict=True):
        places = {name: explanation.lower().find(name.lower()) for name in labels}
        mentions = [(place, -len(name), name) for name, place in places.items() if place >= 0]
        if isinstance(label, list):
            count += {name for _, _, name in mentions} == set(label)
        else:
            count += bool(mentions) and min(mentions)[2] == label
    return count / max(1, len(explanations))


def contradictions(explanations: Sequence[str], decided: np.ndarray, labels: Sequence[str]) -> RowScores:
    """1 where the explanation states another class than was decided, 0 where the same or none.

    Args:
        explanations: one a row.
        decided: classes ``[N]``; multi-label: sets ``[N, C]``, and a class outside the set contradicts.
        labels: the classes' names.

    Raises:
        DataError: different numbers of rows.
    """
    check_same_rows(explanations=explanations, decisions=decided)
    if decided.ndim == 2:
        return row_scores((stated_sets(explanations, labels) & ~decided.astype(bool)).any(axis=1), is_share=True)
    stated_N = stated_classes(explanations, labels)
    return row_scores((stated_N != NOT_STATED) & (stated_N != decided), is_share=True)


def stated_decided_kappa(
    explanations: Sequence[str],
    decided: np.ndarray,
    labels: Sequence[str],
    kind: Kind = "single",
    *,
    resamples: int = 1000,
    clusters_N: np.ndarray | None = None,
) -> PooledScore:
    """Cohen's κ between the class stated and the class decided, over the rows that state one.

    Multi-label: over all answers of all rows. NaN if everything stated and decided is one class. Arguments as for
    :func:`contradictions`. A κ of 1 has no resample below 1; its interval ends where disagreements like those by chance
    in as many rows as Wilson's interval leaves would put it. ``clusters_N``: rows that belong together.
    """
    check_same_rows(explanations=explanations, decisions=decided)
    if kind == "multilabel":
        stated, classes = stated_sets(explanations, labels).astype(int), 2
    else:
        stated, classes = stated_classes(explanations, labels), len(labels)
        rows = np.flatnonzero(stated != NOT_STATED)
        stated, decided = stated[rows], decided[rows]
        clusters_N = None if clusters_N is None else clusters_N[rows]

    def kappa(index: np.ndarray) -> float:
        pair = stated[index].ravel(), decided[index].ravel().astype(int)
        return cohen_kappa(*pair, classes, quadratic=kind == "ordinal")

    found = estimate(kappa, len(stated), resamples=resamples, clusters_N=clusters_N)
    if found.value != 1:
        return found
    by_chance = (np.bincount(stated.ravel(), minlength=classes) / stated.size) @ (
        np.bincount(decided.ravel().astype(int), minlength=classes) / stated.size
    )
    disagreed = 1 - share_interval(np.ones(len(stated)), clusters_N=clusters_N).low
    return replace(found, interval=Interval(float(1 - disagreed / (1 - by_chance)), 1.0))


def alignment(
    explanations: Sequence[str],
    probabilities_NC: np.ndarray,
    labels: Sequence[str],
    kind: Kind = "single",
    positive: int = 1,
    *,
    clusters_N: np.ndarray | None = None,
) -> PooledScore:
    """AUROC of the head's probability, the stated class taken as the truth, over the rows that state one.

    Several classes: the mean one-vs-rest, multi-label over the classes, ordered over the cut points, as in
    :mod:`clsgen_dist.evaluation.metrics`. 0.5 if the explanations know nothing of what the head believes; below, if
    they contradict it; NaN if all state one class. ``clusters_N``: rows that belong together.
    """
    check_same_rows(explanations=explanations, probabilities=probabilities_NC)
    cluster_N = np.arange(len(explanations)) if clusters_N is None else clusters_N
    if kind == "multilabel":
        scores_NQ, answers_NQ = probabilities_NC, stated_sets(explanations, labels)
    else:
        stated_N = stated_classes(explanations, labels)
        rows = np.flatnonzero(stated_N != NOT_STATED)
        scores_NQ, answers_NQ = _questions(probabilities_NC[rows], stated_N[rows, None], kind, positive)
        cluster_N = cluster_N[rows]
    found = mean_auroc_interval(
        [RankedQuestion(s_N, a_N, cluster_N) for s_N, a_N in zip(scores_NQ.T, answers_NQ.T, strict=True)]
    )
    return PooledScore(found.value, found.interval, len(answers_NQ))


def _questions(
    probabilities_NC: np.ndarray, stated_N1: np.ndarray, kind: Kind, positive: int
) -> tuple[np.ndarray, np.ndarray]:
    """``[N, Q]`` scores and answers of the yes-no questions that the classes are divided into."""
    classes = np.arange(probabilities_NC.shape[1])
    if kind == "ordinal":
        return np.repeat((probabilities_NC @ classes)[:, None], len(classes) - 1, axis=1), stated_N1 > classes[:-1]
    asked = np.array([positive]) if len(classes) == 2 else classes
    return probabilities_NC[:, asked], stated_N1 == asked


def cohen_kappa(first_N: np.ndarray, second_N: np.ndarray, classes: int, *, quadratic: bool = False) -> float:
    """Cohen's κ of two raters; NaN if both use one class only."""
    observed_CC = np.bincount(first_N * classes + second_N, minlength=classes**2).reshape(classes, classes)
    expected_CC = np.outer(observed_CC.sum(axis=1), observed_CC.sum(axis=0)) / max(1, len(first_N))
    rank_C = np.arange(classes)
    distance_CC = np.abs(rank_C[:, None] - rank_C)
    weight_CC = distance_CC**2 if quadratic else distance_CC > 0
    by_chance = (weight_CC * expected_CC).sum()
    return float(1 - (weight_CC * observed_CC).sum() / by_chance) if by_chance else UNDEFINED


def _any_of(names: Sequence[str]) -> str:
    """A group for each name, as whole words; blanks, underscores and hyphens in it are the same."""
    patterns = [f"({_name_pattern(name)})" for name in names]
    if names and all(_is_spaced(name[0]) for name in names):
        # Looked at once for all names: most places of a text are within a word, and of no name the beginning.
        return f"{_WORD_BEGINS}(?:{'|'.join(patterns)})"
    begins = (_WORD_BEGINS if _is_spaced(name[0]) else "" for name in names)
    return "|".join(begin + pattern for begin, pattern in zip(begins, patterns, strict=True)) or r"(?!)"


def _name_pattern(name: str) -> str:
    parts = [re.escape(part) for part in re.split(r"[\s_-]+", name) if part]
    after = r"(?![^\W\u3040-\u9fff])" if _is_spaced(name[-1]) else ""
    return (r"[\s_-]+".join(parts) or re.escape(name)) + after


def _is_spaced(character: str) -> bool:
    """Whether its script separates words."""
    return character.isalnum() and not "\u3040" <= character <= "\u9fff"
