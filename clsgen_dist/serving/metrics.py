"""What Prometheus reads: latency, queue, explanations, and how far probabilities drift from the calibration rows'.

Drift is the population stability index of the last thousand answers against the rows the model was calibrated on,
``Σ_b (q_b - p_b) ln(q_b / p_b)`` over ten bins of a class's probability, each share with one half added to its count.
By custom 0.1 is worth a look and 0.25 an alarm (Siddiqi 2006, Credit Risk Scorecards); the custom knows nothing of the
number of answers, so none is given for fewer than 200.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from clsgen_dist.calibration.score_counts import BINS, bin_of
from clsgen_dist.inference.prediction import Prediction

_LAST, _LEAST = 1000, 200
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The server's metrics, in a registry of their own.

    Args:
        classes: whose probabilities are watched.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.registry = CollectorRegistry()

        def named(kind: type, name: str, text: str, labels: Sequence[str] = (), **options: object) -> object:
            return kind(f"clsgen_{name}", text, labels, registry=self.registry, **options)

        self.requests: Counter = named(Counter, "requests", "Answered requests.", ["path", "status"])  # type: ignore[assignment]
        self.seconds: Histogram = named(  # type: ignore[assignment]
            Histogram, "request_seconds", "From request to the end of the answer.", ["path"], buckets=_SECONDS
        )
        self.decision_seconds: Histogram = named(  # type: ignore[assignment]
            Histogram, "decision_seconds", "From request to the probability.", buckets=_SECONDS
        )
        self.waiting: Gauge = named(Gauge, "texts_waiting", "Texts that nobody has begun.")  # type: ignore[assignment]
        self.running: Gauge = named(Gauge, "texts_running", "Texts that are being answered.")  # type: ignore[assignment]
        self.tokens: Counter = named(Counter, "explanation_tokens", "Tokens written.")  # type: ignore[assignment]
        self.marked: Counter = named(  # type: ignore[assignment]
            Counter, "answers_marked", "Answers that contradict, were redrawn, cut, truncated or handed over.", ["mark"]
        )
        self.probability: Histogram = named(  # type: ignore[assignment]
            Histogram,
            "probability",
            "Probabilities of the answers.",
            ["label"],
            buckets=[b / BINS for b in range(1, BINS)],
        )
        self._drift: Gauge = named(Gauge, "drift_psi", "Population stability index of a probability.", ["label"])  # type: ignore[assignment]
        self._last: dict[str, deque[int]] = {name: deque(maxlen=_LAST) for name in classes}

    def observe(self, prediction: Prediction) -> None:
        """Count an answer."""
        for name, last in self._last.items():
            self.probability.labels(name).observe(prediction.probabilities[name])
            last.append(bin_of(prediction.probabilities[name]))
        for mark in ("contradicts", "explanation_cut", "redraws", "truncated", "hand_over"):
            if getattr(prediction, mark):
                self.marked.labels(mark).inc()

    def forget(self) -> None:
        """Begin the comparison anew: probabilities of another calibration say nothing of this one's rows."""
        for last in self._last.values():
            last.clear()

    def text(self, expected: Mapping[str, Sequence[int]] | None, waiting: int, running: int) -> bytes:
        """The metrics in Prometheus' format; ``expected``: counts by bin on the calibration rows, by class."""
        self.waiting.set(waiting)
        self.running.set(running)
        for name, last in self._last.items():
            if expected and name in expected and len(last) >= _LEAST:
                self._drift.labels(name).set(stability_index(expected[name], bin_counts(last)))
        return generate_latest(self.registry)


def bin_counts(bins: Sequence[int] | deque[int]) -> list[int]:
    """How often each bin occurs."""
    counts = Counts(bins)
    return [counts[b] for b in range(BINS)]


def stability_index(expected: Sequence[int], found: Sequence[int]) -> float:
    """Population stability index of two histograms of the same bins, counts each."""
    p, q = (np.asarray(counts, dtype=float) + 0.5 for counts in (expected, found))
    p, q = p / p.sum(), q / q.sum()
    return float(((q - p) * np.log(q / p)).sum())
