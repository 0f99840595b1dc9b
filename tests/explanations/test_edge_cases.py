"""Every measure on odd rows: no exception, no warning, NaN where undefined, the same result twice."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest

from clsgen_dist.evaluation.metrics import decide
from clsgen_dist.explanations import text_quality
from clsgen_dist.explanations.counterfactual import counterfactual
from clsgen_dist.explanations.erasure import erasure
from clsgen_dist.explanations.estimates import RowScores, in_clusters, row_scores
from clsgen_dist.explanations.grounding import copied_share, grounding
from clsgen_dist.explanations.reconstruction import reconstruction
from clsgen_dist.explanations.references import reference_scores
from clsgen_dist.explanations.richness import richness
from clsgen_dist.explanations.simulatability import simulatability
from clsgen_dist.explanations.stated_class import alignment, contradictions, stated_decided_kappa
from clsgen_dist.inference.evaluation import jsonable

# N rows, C classes

SEVEN = [f"note {i}: pulse {60 + i}, no fever" for i in range(7)]
ROWS = {
    "none": ([], []),
    "one": (["age 61"], ["low, as age is 61"]),
    "empty": ([""] * 3, [""] * 3),
    "blank": ([" \n", "...", "%"], ["\t", "!?", "-"]),
    "no explanation": (SEVEN, [""] * 7),
    "all alike": (["age 61"] * 5, ["low: age 61"] * 5),
    "seven": (SEVEN, [f"{['low', 'medium', 'high'][i % 3]}, pulse {60 + i}" for i in range(7)]),
    "Chinese": (["患者发热39.5度"] * 3 + ["无出血"], ["low,因为“发热39.5度”", "high。", "出血", ""]),
    "Arabic and emoji": (["النبض ٩٠"] * 2, ["low 👍 النبض ٩٠", "\u200f\ud800"]),
    "German": (["Der Puls beträgt 3,5"] * 4, ["high, weil der Puls 3,5 beträgt."] * 4),
    "long number": (["9" * 5000 + " is high"] * 2, ["9" * 5000 + " is high"] * 2),
    "marks": (["\x00 (a) [b] \\1 {c}"] * 3, ['"" \'\' "\\1" {c} \x00', '"', "1) 2. -"]),
}
LABELS = ["low", "medium", "high"]


def probability_of(kind):
    def probability(texts):
        score = np.array([len(text) % 7 / 7 for text in texts])
        p_NC = np.stack([1 - score, score / 2, score / 2], axis=1)
        return p_NC if kind != "multilabel" else np.stack([score, 1 - score, score / 2], axis=1)

    return probability


def everything(texts, explanations, kind):
    """The results of all measures."""
    probability = probability_of(kind)
    p_NC = probability(texts).reshape(-1, 3)
    decided = decide(p_NC, kind)
    found = grounding(texts, explanations, LABELS)
    return [
        reference_scores(explanations, [["a reference", "low: age 61"][: i % 3] for i in range(len(texts))]),
        text_quality.lengths(explanations),
        text_quality.reading_ease(explanations),
        *(text_quality.distinct(explanations, n) for n in (1, 2)),
        text_quality.self_bleu(explanations),
        text_quality.vendi_score(explanations),
        text_quality.template_repeats(texts, explanations, LABELS),
        richness(explanations),
        contradictions(explanations, decided, LABELS),
        stated_decided_kappa(explanations, decided, LABELS, kind, resamples=20),
        alignment(explanations, p_NC, LABELS, kind),
        found,
        copied_share(texts, explanations),
        simulatability(texts, explanations, decided, LABELS),
        erasure(texts, found.evidence, probability, decided),
        counterfactual(texts, found.evidence, probability, LABELS, kind=kind, explain=lambda t: ["low"] * len(t)),
        reconstruction(texts, explanations),
    ]


def plain(result):
    """Nested tuples of numbers and strings, NaN as a word."""
    if dataclasses.is_dataclass(result):
        return tuple(plain(getattr(result, field.name)) for field in dataclasses.fields(result))
    if isinstance(result, (list, tuple, np.ndarray)):
        return tuple(map(plain, result))
    return "undefined" if isinstance(result, float) and np.isnan(result) else result


@pytest.mark.parametrize("kind", ["single", "ordinal", "multilabel"])
@pytest.mark.parametrize("rows", ROWS)
def test_odd_rows_give_neither_exceptions_nor_warnings(rows, kind):
    texts, explanations = ROWS[rows]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = everything(texts, explanations, kind)
    if rows == "seven":
        assert plain(first) == plain(everything(texts, explanations, kind))


def test_nothing_to_measure_is_undefined():
    assert np.isnan(row_scores([]).mean) and row_scores([]).defined == 0
    assert np.isnan(text_quality.vendi_score([])) and np.isnan(text_quality.self_bleu([]))
    one = simulatability(["a"], ["b"], np.array([0]), ["x", "y"])
    assert np.isnan(one.explanation.mean) and np.isnan(one.majority.mean)
    alone = reconstruction(["age 61"], ["61"])
    assert alone.reciprocal_rank.mean == 1 and np.isnan(alone.control_top_1.mean)
    assert np.isnan(reference_scores(["a"], [[" "]]).corpus_bleu)


def test_the_interval_of_a_mean_covers_rows_that_are_undefined():
    rng = np.random.default_rng(0)
    values = np.where(rng.random(400) < 0.5, np.nan, rng.normal(3, 2, 400))
    found = row_scores(values)
    half_width = 1.96 * np.nanstd(values) / np.sqrt(found.defined)
    assert found.defined == np.isfinite(values).sum() and found.mean == pytest.approx(np.nanmean(values))
    assert found.interval.high - found.interval.low == pytest.approx(2 * half_width, rel=0.1)


@dataclasses.dataclass(frozen=True)
class TwoScores:
    any: RowScores
    share: RowScores


def test_copies_of_each_row_in_one_cluster_add_nothing():
    # Forty rows are worth as much as the same rows four times, if the copies are known to belong together.
    rng = np.random.default_rng(0)
    stated, decided, value_N = rng.integers(0, 2, 40), rng.integers(0, 2, 40), rng.normal(size=40)
    names, p_N = ["benign", "malignant"], np.where(decided, 0.8, 0.2) + 0.1 * rng.normal(size=40)
    said = [f"{names[s]}, size {row}" for row, s in enumerate(stated)]

    def width(interval):
        return interval.high - interval.low

    def measured(copies, clusters_N=None):
        texts = [text for text in said for _ in range(copies)]
        heads, p = np.repeat(decided, copies), np.repeat(p_N, copies)
        scores = TwoScores(row_scores(np.repeat(value_N, copies)), contradictions(texts, heads, names))
        found = in_clusters(scores, clusters_N)
        kappa = stated_decided_kappa(texts, heads, names, clusters_N=clusters_N)
        ranked = alignment(texts, np.stack([1 - p, p], axis=1), names, clusters_N=clusters_N)
        return [width(x.interval) for x in (found.any, found.share, kappa, ranked)]

    once, together, apart = measured(1), measured(4, np.repeat(np.arange(40), 4)), measured(4)
    for single, clustered, naive in zip(once, together, apart, strict=True):
        assert clustered == pytest.approx(single, rel=0.2)
        assert naive == pytest.approx(single / 2, rel=0.2)


def test_equal_shares_in_clusters_are_worth_as_many_rows_as_clusters():
    pairs = np.repeat(np.arange(2), 10)
    for value in (0.5, 1.0):
        found = in_clusters(row_scores([value] * 20, is_share=True), pairs).interval
        two = row_scores([value] * 2, is_share=True).interval
        assert (found.low, found.high) == pytest.approx((two.low, two.high))


def test_the_report_has_the_figures_of_row_scores():
    assert jsonable(row_scores([1, 0, 0.5, float("nan")])) == {
        "mean": 0.5, "interval": {"low": None, "high": None, "dropped": 0}, "defined": 3,
    }  # fmt: skip


def test_one_cluster_has_no_interval():
    together = np.zeros(40, dtype=int)
    for values, is_share in ((np.arange(40.0), False), (np.ones(40), True)):
        found = in_clusters(row_scores(values, is_share=is_share), together)
        assert np.isnan(found.interval.low) and found.mean == values.mean()
    names, decided = ["benign", "malignant"], np.arange(40) % 2
    said = [names[label] for label in decided]
    agreed = stated_decided_kappa(said, decided, names, clusters_N=together)
    assert agreed.value == 1 and np.isnan(agreed.interval.low)
    half = stated_decided_kappa(said, np.arange(40) % 3 // 2, names, clusters_N=together)
    assert np.isfinite(half.value) and np.isnan(half.interval.low)
