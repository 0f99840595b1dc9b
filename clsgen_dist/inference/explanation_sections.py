"""The sections of a report on explanations: agreement, style, faithfulness, examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clsgen_dist.explanations.text_quality import SELF_BLEU_ROWS, VENDI_ROWS
from clsgen_dist.inference.evaluation import Evaluation
from clsgen_dist.inference.llm_judge import QUESTIONS
from clsgen_dist.inference.measures import ExplanationMeasures
from clsgen_dist.inference.report_numbers import mean, number, percent, percent_with_interval, share, with_interval
from clsgen_dist.io.text import visible
from clsgen_dist.report.document import Block, Example, Paragraph, Table

# N rows

_EXAMPLES = 4
"""Rows shown of each kind."""
_LONGEST_TEXT = 1500


def explanation_blocks(found: Evaluation) -> list[Block]:
    """Agreement with decision and row, style, overlap with references; empty if none were decoded."""
    told = found.explanations
    if told is None:
        return []
    blocks: list[Block] = [
        Paragraph(
            f"Of {len(found.explained):,} rows. No measure alone shows an explanation to be right: read them together."
        ),
        Table("Agreement with the decision and the row", ["measure", "value", "what it says"], _agreement(told)),
        Table("Style and information", ["measure", "value", "what it says"], _style(told)),
    ]
    if (refs := told.references) is not None:
        rows = [
            ["BLEU, all rows", number(refs.corpus_bleu)],
            ["chrF, all rows", number(refs.corpus_chrf)],
            ["ROUGE-1", mean(refs.rouge_1)],
            ["ROUGE-2", mean(refs.rouge_2)],
            ["ROUGE-L", mean(refs.rouge_l)],
        ]
        if (alike := told.reference_similarity) is not None:
            rows += [
                [f"similarity of embeddings ({found.provenance.get('embedding_model')})", mean(alike.similarity)],
                ["… with the references of other rows", mean(alike.control)],
                ["… above that", mean(alike.excess)],
            ]
        blocks.append(
            Table("Overlap with the reference explanations (other words can be as true)", ["measure", "value"], rows)
        )
    return blocks


def _agreement(told: ExplanationMeasures) -> list[list[str]]:
    ground, rich = told.grounding, told.richness
    return [
        ["contradicts the decision", share(told.contradictions), "another class is named than was decided"],
        [
            "agreement beyond chance, κ",
            with_interval(told.kappa.value, told.kappa.interval),
            "1: always; 0: as by chance",
        ],
        [
            "alignment, AUROC",
            with_interval(told.alignment.value, told.alignment.interval),
            "the probability ranks rows as the explanations sort them",
        ],
        ["numbers found in the row", share(ground.numbers), "not whether they matter"],
        ["quotes found in the row", share(ground.quotes), "word for word"],
        [
            "statements found in the row",
            share(ground.statements),
            "at least half of their words; negations are not understood",
        ],
        ["copied from the row", share(told.copied), "near 1: nothing is explained"],
        ["names evidence", share(rich.evidence), "a number, a quote, or a word of evidence (English)"],
        ["names confidence", share(rich.confidence), "such as: clearly"],
        ["names doubt", share(rich.hedges), "such as: possibly"],
    ]


def _style(told: ExplanationMeasures) -> list[list[str]]:
    sim, rec, rows = told.simulatability, told.reconstruction, len(told.words.values_N)
    return [
        ["words", mean(told.words), "how long explanations are"],
        ["reading ease (Flesch)", mean(told.reading_ease), "60 to 70: plain English; below 30: hard"],
        ["distinct pairs of words", number(told.distinct_2), "near 0: the same phrases again and again"],
        ["self-BLEU", number(told.self_bleu), f"near 100: all alike; of {min(rows, SELF_BLEU_ROWS)} rows"],
        [
            "Vendi score",
            number(told.vendi_score),
            f"effective number of different explanations, of {min(rows, VENDI_ROWS):,}",
        ],
        [
            "repeats of a template",
            share(told.template_repeats),
            "equal to another but for numbers, classes and the row's words",
        ],
        [
            "decision recovered from the explanation",
            share(sim.explanation),
            f"by a simple reader, of {sim.explanation.defined:,} rows; includes the class's name",
        ],
        ["… without the class's name", share(sim.masked), "the reasons alone"],
        ["… from the row itself", share(sim.input), "what a simple reader of the row gets"],
        [
            f"own row found among {rec.reciprocal_rank.defined:,}, MRR",
            mean(rec.reciprocal_rank),
            f"by chance {number(rec.control_reciprocal_rank.mean)}",
        ],
    ]


def faithfulness_blocks(found: Evaluation) -> list[Block]:
    """What masking and editing the evidence did; empty if not measured."""
    if (tested := found.faithfulness) is None:
        return []
    erased, edited = tested.erasure, tested.counterfactual
    rows = [
        [
            "masked evidence moves the probability by",
            mean(erased.comprehensiveness),
            "the evidence is needed, if more than other words:",
        ],
        [
            "… more than masked random words",
            mean(erased.comprehensiveness_excess),
            "above 0: it rests on the named words",
        ],
        ["evidence alone moves it by", mean(erased.sufficiency), "near 0: the evidence is enough"],
        ["… more than random words alone", mean(erased.sufficiency_excess), "below 0: it keeps the decision better"],
        [
            "edited evidence moves it by",
            mean(edited.moved),
            "numbers halved and doubled, present and absent exchanged",
        ],
        ["… more than edits elsewhere", mean(edited.excess), "above 0: the named facts decide"],
        ["edits that change the decision", share(edited.flipped), ""],
        ["… and the explanation follows", share(edited.follows), "it states the new decision"],
    ]
    return [
        Paragraph(
            f"On {len(tested.rows)} rows, evenly over the decisions. The words that the explanation names are masked "
            "or edited in the row, and the model is asked again. This can show that the probability depends on these "
            "words; it cannot show that they are used as the explanation says. Masked texts are unlike any of training."
        ),
        Table("When the evidence changes", ["measure", "value", "what it says"], rows),
        Paragraph(
            f"{erased.rows_without_evidence} rows name nothing that is in their text, and in "
            f"{edited.rows_without_edit} nothing could be edited."
        ),
    ]


def judge_blocks(found: Evaluation) -> list[Block]:
    """What a language model said of the explanations; empty if none was asked."""
    if (judged := found.judge) is None:
        return []
    rows = [[QUESTIONS[name], percent_with_interval(yes.value, yes.interval)] for name, yes in judged.shares.items()]
    return [
        Paragraph(
            f"{judged.model} at {judged.host} was asked about {judged.rows} rows, evenly over the decisions; "
            f"{judged.unreadable} answers could not be read, and are not among the shares. A judge's opinion is no "
            "measurement: it can be wrong, or be led by a confident tone, by texts like its own, or by words in the "
            "row. Read some answers yourself: judge.jsonl, beside the predictions."
        ),
        Table("Share of yes (Wilson intervals)", ["question", "yes"], rows),
    ]


def example_blocks(found: Evaluation) -> list[Block]:
    """Rows that are right and grounded, wrong though sure, or contradicted by their explanation."""
    if (told := found.explanations) is None:
        return []
    rows = np.array(found.explained)
    decided, labels = found.decided[rows], found.labels[rows]
    right = ((np.nan_to_num(labels) >= 0.5) == decided).all(axis=1) if labels.ndim == 2 else decided == labels
    contradicts = told.contradictions.values_N > 0
    grounded = np.nan_to_num(told.grounding.statements.values_N)
    confidence = np.array([max(found.predictions[row].probabilities.values()) for row in rows])
    kinds = (
        ("right, and grounded", right & ~contradicts, -grounded - confidence),
        ("wrong, though sure", ~right, -confidence),
        ("contradicts its decision", contradicts, -confidence),
    )
    blocks: list[Block] = []
    for words, chosen, order in kinds:
        at = np.flatnonzero(chosen)
        for place in at[np.argsort(order[at], kind="stable")][:_EXAMPLES]:
            blocks.append(_example(found, int(rows[place]), told.grounding.evidence_of(int(place)), words))
    if blocks:
        total = int(contradicts.sum())
        blocks.insert(
            0, Paragraph(f"Marked: what the explanation names. {total} of {len(rows)} explanations contradict.")
        )
    return blocks


def _example(found: Evaluation, row: int, evidence: Sequence[tuple[int, int]], words: str) -> Example:
    example, prediction = found.examples[row], found.predictions[row]
    likely = sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])[:3]
    # Character by character, so that the spans stay where they are.
    text, spans = visible(example.text), list(evidence)
    if len(text) > _LONGEST_TEXT:
        text = f"{text[:_LONGEST_TEXT]} …"
        spans = [(start, min(end, _LONGEST_TEXT)) for start, end in spans if start < _LONGEST_TEXT]
    label = (
        example.label or ", ".join(name for name, share in (example.answers or {}).items() if share >= 0.5) or "none"
    )
    facts = [
        ("label", label),
        ("decided", prediction.decision),
        ("probability", ", ".join(f"{n} {percent(p)}" for n, p in likely)),
    ]
    return Example(f"{visible(example.id)}: {words}", text, spans, visible(prediction.explanation or ""), facts)
