"""Everything that is measured of one model on labelled rows: decisions, probabilities, explanations, faithfulness.

In: the rows, what the model computed for them, and a way to ask the model about further texts. Out: figures with
intervals; :mod:`clsgen_dist.inference.report_sections` puts them into words. Cost: seconds on a thousand rows, most of
it bootstraps; three minutes and 3 kB a row for decisions and explanations of 100,000. Faithfulness puts each of its
rows through the model some eighteen times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from clsgen_dist.calibration.decisions import Decisions
from clsgen_dist.calibration.handing_over import confidence, wrong
from clsgen_dist.calibration.kept_rules import KeptRules, kept_rules
from clsgen_dist.data.example import Columns, Example
from clsgen_dist.evaluation.calibration_error import BrierDecomposition, brier_decomposition, calibration_p_value
from clsgen_dist.evaluation.confusion import confusion_matrix
from clsgen_dist.evaluation.full_metrics import PerClass, per_class
from clsgen_dist.evaluation.interval import Estimate
from clsgen_dist.evaluation.logistic_recalibration import LogisticRecalibration, logistic_recalibration
from clsgen_dist.evaluation.metric_estimates import metric_estimates
from clsgen_dist.evaluation.metrics import decide
from clsgen_dist.evaluation.operating_points import (
    DecisionCurve,
    OperatingPoint,
    decision_curve,
    precision_at_recall,
    recall_at_precision,
)
from clsgen_dist.evaluation.questions import pooled_question
from clsgen_dist.evaluation.reliability import Bins, ReliabilityDiagram, bin_rows, reliability_diagram
from clsgen_dist.evaluation.selective import RiskCoverage, risk_coverage
from clsgen_dist.evaluation.subgroups import Subgroups, subgroups
from clsgen_dist.explanations import text_quality
from clsgen_dist.explanations.counterfactual import Counterfactual, counterfactual
from clsgen_dist.explanations.erasure import Erasure, erasure
from clsgen_dist.explanations.estimates import PooledScore, RowScores, in_clusters
from clsgen_dist.explanations.grounding import GroundingScores, copied_share, grounding
from clsgen_dist.explanations.reconstruction import Reconstruction, reconstruction
from clsgen_dist.explanations.reference_similarity import Embed, ReferenceSimilarity, reference_similarity
from clsgen_dist.explanations.references import ReferenceScores, reference_scores
from clsgen_dist.explanations.richness import Richness, richness
from clsgen_dist.explanations.simulatability import Simulatability, simulatability
from clsgen_dist.explanations.stated_class import alignment, contradictions, stated_decided_kappa
from clsgen_dist.inference.group_measures import ExplanationGroups, explanation_groups, groups_of
from clsgen_dist.model.label_space import LabelSpace

# N rows, C classes

_BINS = 10
_ASKED = (0.8, 0.9, 0.95)
"""Recalls and precisions at which operating points are listed."""


@dataclass(frozen=True, kw_only=True)
class DecisionMeasures:
    """What classes and probabilities are worth."""

    metrics: dict[str, Estimate]
    """By the names of :mod:`clsgen_dist.evaluation.full_metrics`."""
    classes: PerClass
    confusion_CC: np.ndarray | None
    """Rows by label and decision; None for multi-label."""
    reliability: ReliabilityDiagram
    """Of the pooled question (:mod:`clsgen_dist.evaluation.questions`)."""
    uncalibrated: Bins
    """Of the raw probabilities, in the same bins."""
    calibrated_p_value: float
    """How often a perfectly calibrated model has so large an ECE."""
    line: LogisticRecalibration
    brier: BrierDecomposition
    operating_points: dict[str, OperatingPoint]
    """Binary: ``recall=0.9`` and so on."""
    curve: DecisionCurve | None
    """Binary: net benefit."""
    selective: RiskCoverage
    """Answering the confident rows only; a multi-label row is wrong in any known answer."""
    rules: KeptRules | None
    """What the model's thresholds, sets and handing over achieve; None: it has none."""
    groups: dict[str, Subgroups]
    """By column."""


@dataclass(frozen=True, kw_only=True)
class ExplanationMeasures:
    """What explanations say, and whether it agrees with the head and the input."""

    contradictions: RowScores
    kappa: PooledScore
    alignment: PooledScore
    grounding: GroundingScores
    copied: RowScores
    richness: Richness
    words: RowScores
    reading_ease: RowScores
    distinct_2: float
    self_bleu: float
    vendi_score: float
    template_repeats: RowScores
    references: ReferenceScores | None
    reference_similarity: ReferenceSimilarity | None
    """Of embeddings, if a model for them was given."""
    simulatability: Simulatability
    reconstruction: Reconstruction
    groups: dict[str, ExplanationGroups]
    """By column."""


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """Whether the decision rests on what the explanations name, on a sample of the rows."""

    rows: list[int]
    erasure: Erasure
    counterfactual: Counterfactual


def measure_decisions(
    p_NC: np.ndarray,
    raw_NC: np.ndarray,
    labels: np.ndarray,
    space: LabelSpace,
    thresholds: Sequence[float] | None,
    examples: Sequence[Example],
    columns: Columns,
    fitted: Decisions | None = None,
) -> DecisionMeasures:
    """The decisions of probabilities ``p_NC`` on rows with ``labels``.

    ``raw_NC`` are the probabilities without calibration; ``fitted`` are the model's rules.
    """
    kind, positive = space.kind, space.positive_index
    clusters_N = clusters(examples) if columns.cluster else None
    decided = decide(p_NC, kind, positive, thresholds)
    pooled = pooled_question(p_NC, labels, kind, positive)
    raw = pooled_question(raw_NC, labels, kind, positive)
    cluster_M = pooled.clusters(clusters_N)
    reliability = reliability_diagram(pooled.probability_M, pooled.outcome_M, bins=_BINS, clusters_N=cluster_M)
    binary = kind == "single" and space.is_binary
    return DecisionMeasures(
        metrics=metric_estimates(p_NC, labels, kind, positive, thresholds, clusters_N=clusters_N),
        classes=per_class(p_NC, labels, kind, positive, thresholds),
        confusion_CC=None if kind == "multilabel" else confusion_matrix(decided, labels, len(space)),
        reliability=reliability,
        uncalibrated=bin_rows(raw.probability_M, raw.outcome_M, bins=_BINS),
        calibrated_p_value=calibration_p_value(
            pooled.probability_M, pooled.outcome_M, binning="width", clusters_N=cluster_M
        ),
        line=logistic_recalibration(pooled.probability_M, pooled.outcome_M, clusters_N=cluster_M),
        brier=brier_decomposition(pooled.probability_M, pooled.outcome_M),
        operating_points=_operating_points(p_NC[:, positive], labels == positive) if binary else {},
        curve=decision_curve(p_NC[:, positive], labels == positive) if binary else None,
        selective=risk_coverage(confidence(p_NC, decided, kind), wrong(decided, labels, kind).astype(float)),
        rules=kept_rules(fitted, p_NC, decided, labels, space, clusters_N) if fitted else None,
        groups=_groups(p_NC, labels, decided, space, thresholds, examples, columns, clusters_N),
    )


def _operating_points(p_N: np.ndarray, positive_N: np.ndarray) -> dict[str, OperatingPoint]:
    recalls = {f"recall={share:g}": precision_at_recall(p_N, positive_N, share) for share in _ASKED}
    return recalls | {f"precision={share:g}": recall_at_precision(p_N, positive_N, share) for share in _ASKED}


def _groups(
    p_NC: np.ndarray,
    labels: np.ndarray,
    decided: np.ndarray,
    space: LabelSpace,
    thresholds: Sequence[float] | None,
    examples: Sequence[Example],
    columns: Columns,
    clusters_N: np.ndarray | None,
) -> dict[str, Subgroups]:
    """Groups by column; binary: of the positive class, else whether the decision is right."""
    if space.kind == "single" and space.is_binary:
        probability_N, outcome_N = p_NC[:, space.positive_index], labels == space.positive_index
        threshold = thresholds[0] if thresholds else 0.5
    else:
        probability_N, threshold = confidence(p_NC, decided, space.kind), 0.5
        outcome_N = ~wrong(decided, labels, space.kind)

    return {
        column: subgroups(probability_N, outcome_N, group_N, threshold=threshold, clusters_N=clusters_N)
        for column, group_N in groups_of(examples, columns).items()
    }


def clusters(examples: Sequence[Example]) -> np.ndarray:
    """``[N]`` number of each row's cluster; a row without one is its own."""
    names = [example.cluster or f"\0{row}" for row, example in enumerate(examples)]
    return np.unique(names, return_inverse=True)[1]


def measure_explanations(
    examples: Sequence[Example],
    explanations: Sequence[str],
    p_NC: np.ndarray,
    decided: np.ndarray,
    space: LabelSpace,
    columns: Columns,
    embed: Embed | None = None,
    clusters_N: np.ndarray | None = None,
) -> ExplanationMeasures:
    """The explanations of rows, their probabilities and decisions; ``embed`` compares them with references too."""
    texts, names = [example.text for example in examples], space.names
    given = [list(example.explanations) for example in examples]
    measured = ExplanationMeasures(
        contradictions=contradictions(explanations, decided, names),
        kappa=stated_decided_kappa(explanations, decided, names, space.kind, clusters_N=clusters_N),
        alignment=alignment(explanations, p_NC, names, space.kind, space.positive_index, clusters_N=clusters_N),
        grounding=grounding(texts, explanations, names),
        copied=copied_share(texts, explanations),
        richness=richness(explanations),
        words=text_quality.lengths(explanations),
        reading_ease=text_quality.reading_ease(explanations),
        distinct_2=text_quality.distinct(explanations, 2),
        self_bleu=text_quality.self_bleu(explanations),
        vendi_score=text_quality.vendi_score(explanations),
        template_repeats=text_quality.template_repeats(texts, explanations, names),
        references=reference_scores(explanations, given) if any(given) else None,
        reference_similarity=reference_similarity(explanations, given, embed) if any(given) and embed else None,
        simulatability=simulatability(texts, explanations, decided, names),
        reconstruction=reconstruction(texts, explanations),
        groups={},
    )
    measured = in_clusters(measured, clusters_N)
    ground, overlap = measured.grounding, measured.references
    scores = {"contradictions": measured.contradictions, "statements": ground.statements, "numbers": ground.numbers}
    scores |= {"words": measured.words, **({"rouge_l": overlap.rouge_l, "chrf": overlap.chrf} if overlap else {})}
    return replace(measured, groups=explanation_groups(examples, explanations, scores, columns, clusters_N))


def measure_faithfulness(
    texts: Sequence[str],
    measured: ExplanationMeasures,
    decided: np.ndarray,
    space: LabelSpace,
    thresholds: Sequence[float] | None,
    rows: Sequence[int],
    probability: Callable[[Sequence[str]], np.ndarray],
    explain: Callable[[Sequence[str]], Sequence[str]],
    clusters_N: np.ndarray | None = None,
) -> Faithfulness:
    """Masks and edits the evidence that explanations name, on the given ``rows``, and asks the model again."""
    own = [texts[row] for row in rows]
    evidence = [measured.grounding.evidence_of(row) for row in rows]
    found = Faithfulness(
        rows=list(rows),
        erasure=erasure(own, evidence, probability, decided[np.array(rows, dtype=int)]),
        counterfactual=counterfactual(
            own,
            evidence,
            probability,
            space.names,
            explain=explain,
            kind=space.kind,
            positive=space.positive_index,
            thresholds=thresholds,
        ),
    )
    return in_clusters(found, None if clusters_N is None else clusters_N[list(rows)])


def spread_sample(decided: np.ndarray, count: int, seed: int = 0) -> list[int]:
    """At most ``count`` rows, of each decision as equal a number as there are; in their order."""
    key_N = decided if decided.ndim == 1 else np.unique(decided, axis=0, return_inverse=True)[1].ravel()
    shuffled_N = np.random.default_rng(seed).permutation(len(key_N))
    place_N = np.empty(len(key_N), dtype=int)
    for value in np.unique(key_N):
        rows = shuffled_N[key_N[shuffled_N] == value]
        place_N[rows] = np.arange(len(rows))
    return sorted(np.lexsort((shuffled_N, place_N))[:count].tolist())
