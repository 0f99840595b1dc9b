"""How different the explanations of each class are, on samples of equal size: measures fall with the number of texts.

Of each class the 500 explanations with the smallest hashes are kept, which no order of rows changes. Cost: 0.3 ms for
an explanation that enters the sample; 1 s a class for self-BLEU.
"""

from __future__ import annotations

import heapq
from collections import Counter

from clsgen_dist.data.checks.diversity import ClassDiversity
from clsgen_dist.data.checks.near_duplicates import text_hash
from clsgen_dist.data.example import Example
from clsgen_dist.explanations.estimates import UNDEFINED
from clsgen_dist.explanations.stated_class import ClassNames
from clsgen_dist.explanations.text_quality import distinct, self_bleu, template

_SAMPLED, _BLEU_SAMPLED = 500, 40
"""Explanations of a class that are kept; of these, those that are compared with each other."""
_MAX_CLASSES = 20
"""Classes that are measured, the largest first."""
_MAX_SAMPLES = 200
"""Classes that samples are kept of."""
Sampled = tuple[int, int, str, str]
"""The hash times -1, the number of the explanation, its text and its template."""


class DiversitySamples:
    """Samples the explanations of each class."""

    def __init__(self, names: ClassNames) -> None:
        self._names = names
        self._samples: dict[str | None, list[Sampled]] = {}
        self._counts: Counter[str | None] = Counter()

    def add(self, row: Example) -> None:
        """Count a row's explanations, and keep them if they belong to the sample."""
        for label in row.classes or (None,):
            for explanation in row.explanations:
                self._counts[label] += 1
                if label in self._samples or len(self._samples) < _MAX_SAMPLES:
                    self._keep(self._samples.setdefault(label, []), row.text, explanation, self._counts[label])

    def _keep(self, sample: list[Sampled], text: str, explanation: str, number: int) -> None:
        rank = -text_hash(explanation + "\0" + text)
        if len(sample) < _SAMPLED or rank > sample[0][0]:
            item = (rank, number, explanation, template(text, explanation, self._names))
            if len(sample) < _SAMPLED:
                heapq.heappush(sample, item)
            else:
                heapq.heapreplace(sample, item)

    def measure(self, split: str) -> list[ClassDiversity]:
        """The measures of the largest classes."""
        largest = sorted(self._samples, key=lambda label: (-self._counts[label], label or ""))
        return [self._of_class(split, label) for label in largest[:_MAX_CLASSES]]

    def _of_class(self, split: str, label: str | None) -> ClassDiversity:
        sample = sorted(self._samples[label], reverse=True)
        texts = [explanation for _, _, explanation, _ in sample]
        templates = Counter(masked for _, _, _, masked in sample)
        repeated = sum(count for count in templates.values() if count > 1)
        return ClassDiversity(
            split=split,
            label=label,
            explanations=self._counts[label],
            sampled=len(sample),
            distinct_1=distinct(texts, 1),
            distinct_2=distinct(texts, 2),
            self_bleu=self_bleu(texts, sample=_BLEU_SAMPLED),
            template_share=repeated / len(sample) if len(sample) > 1 else UNDEFINED,
        )
