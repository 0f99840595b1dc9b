"""From an evaluation's figures to the sections of its report, in words that a reader outside the field can follow.

Each figure comes with what it means and what it cannot show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clsgen_dist.evaluation.metrics import WORDS
from clsgen_dist.inference.evaluation import Evaluation, at_coverages
from clsgen_dist.inference.explanation_sections import (
    example_blocks,
    explanation_blocks,
    faithfulness_blocks,
    judge_blocks,
)
from clsgen_dist.inference.group_sections import group_blocks, provenance_blocks
from clsgen_dist.inference.report_numbers import number, or_else, percent, with_interval
from clsgen_dist.inference.report_summary import summary
from clsgen_dist.inference.rule_sections import rule_blocks
from clsgen_dist.report.document import Block, Document, Figure, Paragraph, Section, Table
from clsgen_dist.report.figures import Curve, curves_figure, reliability_figure

# N rows, C classes


def document(found: Evaluation) -> Document:
    """The whole report."""
    builders: Sequence[tuple[str, str, Callable[[Evaluation], list[Block]]]] = (
        ("data", "The rows", _data),
        ("decisions", "Decisions", _decisions),
        ("calibration", "Are the probabilities right?", _calibration),
        ("rules", "The rules it decides by", rule_blocks),
        ("groups", "Groups of rows", group_blocks),
        ("sources", "Where explanations came from", provenance_blocks),
        ("hand-over", "Leaving rows to a person", _hand_over),
        ("explanations", "What the explanations say", explanation_blocks),
        ("faithfulness", "Does the decision rest on the explanation?", faithfulness_blocks),
        ("judge", "What a language model thinks of the explanations", judge_blocks),
        ("examples", "Examples", example_blocks),
        ("comparison", "Compared with another model", _comparison),
        ("capability", "Language that was kept", _capability),
        ("provenance", "Where these figures come from", _provenance),
    )
    sections = [Section(name, title, blocks) for name, title, build in builders if (blocks := build(found))]
    facts = [
        ("model", found.model),
        ("rows", f"{found.report.rows:,}"),
        ("data", str(found.provenance.get("data", ""))),
    ]
    if date := found.provenance.get("date"):
        facts.append(("date", str(date)))
    return Document(f"Evaluation of {Path(found.model).resolve().name}", summary(found), sections, facts)


def _data(found: Evaluation) -> list[Block]:
    labels, names = found.labels, found.space.names
    if labels.ndim == 2:
        yes, known = (np.nan_to_num(labels) >= 0.5).sum(axis=0), (~np.isnan(labels)).sum(axis=0)
        counts = [
            [name, str(y), percent(y / k if k else math.nan)] for name, y, k in zip(names, yes, known, strict=True)
        ]
    else:
        rows = np.bincount(labels, minlength=len(names))
        counts = [[name, str(n), percent(n / max(1, len(labels)))] for name, n in zip(names, rows, strict=True)]
    words = np.array([len(example.text.split()) for example in found.examples])
    shortened = sum(prediction.truncated for prediction in found.predictions)
    blocks: list[Block] = [
        Table("Rows by class", ["class", "rows", "share"], counts),
        Paragraph(
            f"The texts have {np.median(words):.0f} words in the median, {words.max()} at most; {shortened} of them "
            "were shortened in the middle to fit the model."
        ),
    ]
    return blocks + [Paragraph(f"Note: {note}.", tone="warning") for note in found.report.notes]


def _decisions(found: Evaluation) -> list[Block]:
    measured, space = found.decisions, found.space
    names = list(found.report.scores[0].metrics)
    scores = [[s.name, *(with_interval(s.metrics[n], s.intervals[n]) for n in names)] for s in found.report.scores]
    blocks: list[Block] = [
        Paragraph(
            "AUROC is the chance that a row of the class gets a higher probability than one of another: 0.5 is "
            "guessing, 1 is perfect. Brackets hold 95 % intervals: other rows of the same kind would give about that."
        ),
        Table("Beside the baselines", ["", *(WORDS[name] for name in names)], scores),
        Table(
            "All metrics",
            ["metric", "value"],
            [[WORDS.get(n, n), with_interval(m.value, m.interval)] for n, m in measured.metrics.items()],
        ),
    ]
    each = measured.classes.decisions
    columns = zip(space.names, each.precision_C, each.recall_C, each.f1_C, each.support_C, strict=True)
    rows = [[name, number(p), number(r), number(f), str(int(s))] for name, p, r, f, s in columns]
    blocks.append(Table("By class", ["class", "precision", "recall", "F1", "rows"], rows))
    if measured.confusion_CC is not None:
        header = ["label", *(f"decided {name}" for name in space.names)]
        counts = [[n, *map(str, row)] for n, row in zip(space.names, measured.confusion_CC.tolist(), strict=True)]
        blocks.append(Table("Labels and decisions, in rows", header, counts))
    if measured.operating_points:
        points = [
            [
                name.replace("=", " of at least "),
                *(number(x) for x in (p.threshold, p.precision, p.recall)),
                percent(p.share),
            ]
            for name, p in measured.operating_points.items()
        ]
        blocks.append(
            Paragraph(
                f"A threshold trades missed rows of the class {space.positive} against false alarms. These points are "
                "the best on these rows, so a little too good for others: choose one on held-out rows."
            )
        )
        blocks.append(
            Table(
                "Operating points", ["asked", "threshold", "precision", "recall", f"decided {space.positive}"], points
            )
        )
    if (curve := measured.curve) is not None and np.isfinite(curve.model_T).all():
        low = min(0.0, float(curve.model_T.min()))
        drawn = [Curve("this model", curve.threshold_T, curve.model_T)]
        drawn.append(Curve("act on every row", curve.threshold_T, np.maximum(curve.treat_all_T, low)))
        drawing = curves_figure(drawn, x="threshold", y="net benefit a row")
        better = curve.model_T > np.maximum(curve.treat_all_T, 0)
        where = curve.threshold_T[better]
        said = f"from {where.min():.2f} to {where.max():.2f}" if len(where) else "nowhere"
        blocks.append(
            Figure(
                "Net benefit.",
                drawing,
                f"Right alarms a row, less the false ones weighted by the threshold. The model is worth more than "
                f"acting on every row or on none at thresholds {said}.",
            )
        )
    return blocks


def _calibration(found: Evaluation) -> list[Block]:
    measured = found.decisions
    bins, raw = measured.reliability.bins, measured.uncalibrated
    band = np.stack([measured.reliability.low_B, measured.reliability.high_B], axis=1)
    calibrated = found.provenance.get("calibrated_on") is not None
    before = (raw.mean_B, raw.frequency_B) if calibrated else None
    filled = bins.count_B > 0
    outside = int(((bins.frequency_B < band[:, 0]) | (bins.frequency_B > band[:, 1]))[filled].sum())
    line, brier = measured.line, measured.brier
    rows = [
        ["slope (1: neither too extreme nor too timid)", with_interval(line.slope.value, line.slope.interval)],
        ["intercept (0)", with_interval(line.intercept.value, line.intercept.interval)],
        ["in the large (0: right on average)", with_interval(line.in_the_large.value, line.in_the_large.interval)],
        ["chance of so large an ECE if calibrated", number(measured.calibrated_p_value)],
        ["Brier: reliability (lower is better)", number(brier.reliability)],
        ["Brier: resolution (higher is better)", number(brier.resolution)],
        ["Brier: uncertainty (of the rows)", number(brier.uncertainty)],
    ]
    changes = [[WORDS[c.measure], with_interval(c.difference, c.interval, "+")] for c in found.report.recalibration]
    blocks: list[Block] = [
        Paragraph("Of the rows to which it gives 80 %, eight in ten should come true."),
        Figure(
            "Reliability.",
            reliability_figure(bins.mean_B, bins.frequency_B, bins.count_B, band, before),
            f"{outside} of {int(filled.sum())} points lie outside the band in which a perfectly calibrated model would "
            "lie 95 times in 100. Bars below: rows of each bin.",
        ),
        Table("Calibration", ["measure (value of a calibrated model)", "value"], rows),
    ]
    if changes:
        blocks.append(Table("Recalibrated minus raw, on these rows (below 0: better)", ["measure", "change"], changes))
    return blocks + _calibrated_on(found)


def _calibrated_on(found: Evaluation) -> list[Block]:
    """How the model was calibrated, and a warning if it was not, or on these very rows."""
    fitted = found.provenance.get("calibrated_on")
    if fitted is None:
        return [Paragraph("The model is not calibrated: run clsgen calibrate on held-out rows.", tone="warning")]
    method = found.provenance.get("calibration_method") or "none"
    what = "Its raw probabilities were kept" if method == "none" else f"It was calibrated by the method {method}"
    blocks: list[Block] = [Paragraph(f"{what}, on {fitted['rows']:,} rows of {fitted['source']}.")]
    if fitted["source"] == found.provenance.get("data"):
        blocks.append(
            Paragraph("These are those very rows: other rows will not look as well calibrated.", tone="warning")
        )
    return blocks


def _hand_over(found: Evaluation) -> list[Block]:
    curve = found.decisions.selective
    if not len(curve.coverage_T):
        return []
    risks = at_coverages(curve)
    rows = [
        [percent(1 - float(share)), percent(float(share)), percent(or_else(risk, math.nan))]
        for share, risk in risks.items()
        if float(share) in (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
    ]
    thin = np.unique(np.linspace(0, len(curve.coverage_T) - 1, 200).astype(int))
    drawing = curves_figure(
        [Curve("this model", curve.coverage_T[thin], curve.risk_T[thin])],
        x="rows answered",
        y="wrong decisions",
        percent=True,
    )
    return [
        Paragraph("The rows of which the model is least sure can go to a person, and the others have fewer errors."),
        Figure(
            "Errors among the rows answered.",
            drawing,
            "Right: all rows are answered; to the left only the most certain.",
        ),
        Table("What is left", ["to a person", "answered", "wrong among them"], rows),
    ]


def _comparison(found: Evaluation) -> list[Block]:
    if (compared := found.comparison) is None:
        return []
    ours = found.decisions.metrics
    rows = [
        [
            WORDS.get(name, name),
            number(ours[name].value),
            number(compared.metrics[name]),
            with_interval(d.value, d.interval, "+"),
            number(d.p_value),
        ]
        for name, d in compared.differences.items()
    ]
    return [
        Paragraph(f"{compared.other} on the same rows. An interval that holds 0 leaves open which one is better."),
        Table("This model, the other, and this minus the other", ["metric", "this", "other", "difference", "p"], rows),
    ]


def _capability(found: Evaluation) -> list[Block]:
    return [*_kept_language(found), *_tasks(found)]


def _kept_language(found: Evaluation) -> list[Block]:
    if (kept := found.capability) is None:
        return []
    rows = [
        ["perplexity of the backbone", number(kept.perplexity_backbone)],
        ["perplexity of the model", number(kept.perplexity)],
        ["higher by, per cent", with_interval(kept.drop_percent.value, kept.drop_percent.interval)],
        ["same most likely next token", with_interval(kept.agreement.value, kept.agreement.interval)],
        ["KL from the backbone, nats a token", with_interval(kept.kl.value, kept.kl.interval)],
        ["instructions answered right", f"{kept.instructions_trained} of {kept.instructions}"],
        ["… by the backbone", f"{kept.instructions_backbone} of {kept.instructions}"],
    ]
    return [
        Paragraph(
            f"Training can cost a model its language. Both models read {kept.tokens:,} tokens of general text, and "
            "answer short instructions whose answers can be checked."
        ),
        Table("Beside the backbone", ["measure", "value"], rows),
    ]


def _tasks(found: Evaluation) -> list[Block]:
    if (run := found.lm_eval) is None:
        return []
    rows = [
        [
            name,
            str(score.documents),
            "higher" if score.higher_is_better else "lower",
            _with_stderr(score.backbone, score.backbone_stderr),
            _with_stderr(score.model, score.model_stderr),
            with_interval(score.drop.value, score.drop.interval, "+"),
        ]
        for name, score in run.scores.items()
    ]
    return [
        Paragraph(
            f"Tasks of lm-evaluation-harness {run.version}, with its standard errors. The drop says how much worse "
            "the model is than the backbone. Where a metric is a mean over documents, its interval is of the "
            "differences on these documents: if its width is 0, none differed, which proves little on few documents."
        ),
        Table(
            "On tasks of lm-evaluation-harness",
            ["task, metric", "documents", "better", "backbone", "model", "drop"],
            rows,
        ),
    ]


def _with_stderr(value: float, stderr: float) -> str:
    return number(value) if math.isnan(stderr) else f"{number(value)} ± {number(stderr)}"


def _provenance(found: Evaluation) -> list[Block]:
    def flat(prefix: str, value: Any) -> list[list[str]]:
        if isinstance(value, dict):
            return [row for key, item in value.items() for row in flat(f"{prefix}{key} ", item)]
        return [[prefix.strip(), "none" if value is None else str(value)]]

    rows = flat("", found.provenance)
    cost = f"Predicting took {found.seconds:.0f} s in this process, which computed {found.computed_batches} batches."
    return [Paragraph(cost), Table("Versions and fingerprints", ["what", "value"], rows)]
