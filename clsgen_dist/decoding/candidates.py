"""Several explanations of one decision: the best first, near-duplicates dropped.

Ranked by three things, in this order: it does not contradict the head; its claims are found in the input (share of
claims found, by Laplace's rule of succession, so that two found claims outweigh none made); its mean log-probability a
token under the model.
"""

from __future__ import annotations

from collections.abc import Sequence

from clsgen_dist.explanations.grounding import ground
from clsgen_dist.explanations.stated_class import ClassNames
from clsgen_dist.explanations.text_units import words

_SAME_WORDS = 0.8
"""Jaccard similarity of the sets of words from which two explanations count as one."""


def ranked(
    text: str,
    explanations: Sequence[str],
    mean_log_probs: Sequence[float],
    contradicts: Sequence[bool],
    names: ClassNames,
) -> list[int]:
    """The places of the distinct explanations, the best first.

    Args:
        text: what is explained.
        explanations: candidates.
        mean_log_probs: of each, in nats a token.
        contradicts: whether each states another class than was decided.
        names: the classes' names.
    """

    def grounded(explanation: str) -> float:
        claims = ground(text, explanation, names).claims
        return (sum(claim.is_found for claim in claims) + 1) / (len(claims) + 2)

    order = sorted(
        range(len(explanations)),
        key=lambda n: (contradicts[n], not explanations[n], -grounded(explanations[n]), -mean_log_probs[n]),
    )
    kept: list[int] = []
    for place in order:
        if all(_similarity(explanations[place], explanations[other]) < _SAME_WORDS for other in kept):
            kept.append(place)
    return kept


def _similarity(first: str, second: str) -> float:
    """Jaccard similarity of the sets of words; two texts without words are the same."""
    a, b = set(words(first)), set(words(second))
    return len(a & b) / len(a | b) if a | b else 1.0
