"""Explanations with planted lies, and which measure catches which: the table of docs/evaluate.md.

    python scripts/explanation_lies.py            print the table
    python scripts/explanation_lies.py --write    write the table into docs/evaluate.md

The notes are made up, and the decision follows a known rule in place of a model: ferritin below 30 and bleeding speak
for referral, all else is irrelevant. So it is known which explanations are true. Cost: 15 s.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clsgen_dist.evaluation.metrics import decide
from clsgen_dist.explanations.counterfactual import counterfactual
from clsgen_dist.explanations.erasure import erasure
from clsgen_dist.explanations.estimates import PooledScore, RowScores
from clsgen_dist.explanations.grounding import copied_share, grounding
from clsgen_dist.explanations.reconstruction import reconstruction
from clsgen_dist.explanations.references import reference_scores
from clsgen_dist.explanations.simulatability import simulatability
from clsgen_dist.explanations.stated_class import alignment, contradictions, stated_decided_kappa
from clsgen_dist.explanations.text_quality import template_repeats, vendi_score
from clsgen_dist.io.tables import markdown_table

ROWS, RESAMPLES = 80, 300
LABELS = ["discharge", "refer"]
DOC = Path(__file__).resolve().parent.parent / "docs/evaluate.md"
BEGIN, END = "<!-- lies -->", "<!-- /lies -->"
TASTES = (
    "walking",
    "chess",
    "gardening",
    "fishing",
    "painting",
    "singing",
    "cycling",
    "knitting",
    "sailing",
    "cooking",
)


def notes(rows: int, seed: int = 0) -> list[str]:
    """Notes of two facts that decide and three that do not, in any order."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(rows):
        facts = [
            f"Ferritin measured {rng.integers(4, 57)} ng/ml.",
            f"Bleeding is {rng.choice(['present', 'absent'])}.",
            f"The patient, aged {rng.integers(60, 99)}, enjoys {rng.choice(TASTES)}.",
            f"Pulse {rng.integers(100, 160)} per minute, weight {rng.integers(161, 240)} pounds.",
            f"Skin is {rng.choice(['smooth', 'rough'])} and vision {rng.choice(['normal', 'abnormal'])}.",
        ]
        texts.append(" ".join(facts[int(i)] for i in rng.permutation(len(facts))))
    return texts


def probability(texts: Sequence[str]) -> np.ndarray:
    """``[N, 2]`` by the rule; a fact that is masked says nothing."""
    logits = np.array([_ferritin_logit(text) + _bleeding_logit(text) for text in texts])
    refer_N = 1 / (1 + np.exp(-logits))
    return np.stack([1 - refer_N, refer_N], axis=1)


def honest(texts: Sequence[str], seed: int = 1) -> list[str]:
    """The facts that decide, in several wordings."""
    wordings = (
        "The decision is {label}: ferritin measured {ferritin} ng/ml and bleeding is {bleeding}.",
        "With ferritin of {ferritin} ng/ml, bleeding being {bleeding}, I would {label} the patient.",
        "Bleeding is {bleeding} and ferritin only measured {ferritin}, so {label}.",
        "{label}, since ferritin is {ferritin} ng/ml. Bleeding: {bleeding}.",
    )
    return _worded(texts, wordings, _decided(texts), seed)


def wrong_class(texts: Sequence[str]) -> list[str]:
    """The honest facts, with the other class."""
    return [text.translate(str.maketrans({"\0": LABELS[1], "\1": LABELS[0]})) for text in map(_marked, honest(texts))]


def invented_numbers(texts: Sequence[str]) -> list[str]:
    """The decided class, with numbers that no note has."""
    rng = np.random.default_rng(2)
    return [re.sub(r"\d+", lambda _: f"{rng.integers(300, 900)}", text) for text in honest(texts)]


def boilerplate(texts: Sequence[str]) -> list[str]:
    """The decided class, with a sentence that fits every note."""
    return [f"The decision is {label}, as an overall look at all findings supports it." for label in _decided(texts)]


def copied_input(texts: Sequence[str]) -> list[str]:
    """The decided class, with the complete note."""
    return [f"The decision is {label}. {text}" for text, label in zip(texts, _decided(texts), strict=True)]


def irrelevant_evidence(texts: Sequence[str]) -> list[str]:
    """The decided class, with true facts that do not decide."""
    wordings = (
        "The decision is {label}: the patient is aged {age} and pulse is {pulse} per minute.",
        "With a pulse of {pulse} and vision {vision}, at age {age}, I would {label} the patient.",
        "Skin is {skin} and vision {vision}, with a weight of {weight} pounds, so {label}.",
        "{label}, since pulse is {pulse} per minute. Skin: {skin}.",
    )
    return _worded(texts, wordings, _decided(texts), seed=3)


KINDS: dict[str, Callable[[Sequence[str]], list[str]]] = {
    "honest": honest,
    "wrong class": wrong_class,
    "invented numbers": invented_numbers,
    "boilerplate": boilerplate,
    "copied input": copied_input,
    "irrelevant evidence": irrelevant_evidence,
}
MEASURES = {
    "contradictions": -1, "κ with the decision": 1, "alignment, AUROC": 1, "chrF": 1, "ROUGE-L": 1, "numbers found": 1,
    "statements found": 1, "copied": -1, "template repeats": -1, "Vendi score": 1, "simulatability": 1,
    "simulatability, class masked": 1,
    "simulatability, input": 0, "comprehensiveness, excess": 1, "sufficiency, excess": -1,
    "counterfactual, excess": 1, "counterfactual, follows": 1, "reconstruction, MRR": 1,
}  # fmt: skip
"""1 where more is better, -1 where less is, 0 where it is alike for all."""


@dataclass(frozen=True)
class Cell:
    """A measure of one kind of explanation."""

    value: float
    low: float
    high: float


def table_of_cells() -> dict[str, dict[str, Cell]]:
    """By kind of explanation and measure."""
    texts = notes(ROWS)
    return {kind: _cells(texts, explain) for kind, explain in KINDS.items()}


def caught(cells: dict[str, dict[str, Cell]], kind: str, measure: str) -> bool:
    """Whether the measure is worse for this kind than for honest explanations, by intervals that do not overlap."""
    lie, truth = cells[kind][measure], cells["honest"][measure]
    sign = MEASURES[measure]
    return bool((sign > 0 and lie.high < truth.low) or (sign < 0 and lie.low > truth.high))


def table(cells: dict[str, dict[str, Cell]]) -> str:
    """Markdown, what is caught in bold."""

    def written(kind: str, measure: str) -> str:
        value = cells[kind][measure].value
        digits = f"{value:.0f}" if abs(value) >= 10 else f"{value:.2f}"
        text = "n/a" if np.isnan(value) else digits.replace("-0.00", "0.00")
        return f"**{text}**" if caught(cells, kind, measure) else text

    rows = [[measure, *(written(kind, measure) for kind in cells)] for measure in MEASURES]
    return markdown_table([[f"{ROWS} rows", *cells], *rows])


def _cells(texts: Sequence[str], explain: Callable[[Sequence[str]], list[str]]) -> dict[str, Cell]:
    explanations, p_NC = explain(texts), probability(texts)
    decided = decide(p_NC, "single")
    found = grounding(texts, explanations, LABELS)
    overlap = reference_scores(explanations, [[text] for text in honest(texts, seed=4)])
    reader = simulatability(texts, explanations, decided, LABELS)
    erased = erasure(texts, found.evidence, probability, decided)
    edited = counterfactual(texts, found.evidence, probability, LABELS, explain=explain)
    different = vendi_score(explanations)
    results: list[RowScores | PooledScore | float] = [
        contradictions(explanations, decided, LABELS),
        stated_decided_kappa(explanations, decided, LABELS, resamples=RESAMPLES),
        alignment(explanations, p_NC, LABELS),
        overlap.chrf,
        overlap.rouge_l,
        found.numbers,
        found.statements,
        copied_share(texts, explanations),
        template_repeats(texts, explanations, LABELS),
        different,
        reader.explanation,
        reader.masked,
        reader.input,
        erased.comprehensiveness_excess,
        erased.sufficiency_excess,
        edited.excess,
        edited.follows,
        reconstruction(texts, explanations).reciprocal_rank,
    ]
    return dict(zip(MEASURES, map(_cell, results), strict=True))


def _cell(result: RowScores | PooledScore | float) -> Cell:
    if isinstance(result, float):
        return Cell(result, result / 2**0.5, result * 2**0.5)  # no interval: half as much is less
    value = result.mean if isinstance(result, RowScores) else result.value
    return Cell(value, result.interval.low, result.interval.high)


def _worded(texts: Sequence[str], wordings: Sequence[str], labels: Sequence[str], seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    choices = rng.integers(0, len(wordings), len(texts))
    return [
        wordings[int(choice)].format(label=label, **_facts(text))
        for text, label, choice in zip(texts, labels, choices, strict=True)
    ]


def _facts(text: str) -> dict[str, str]:
    patterns = {
        "ferritin": r"Ferritin measured (\S+)", "bleeding": r"Bleeding is (\w+)", "age": r"aged (\S+),",
        "pulse": r"Pulse (\S+)", "weight": r"weight (\S+)", "skin": r"Skin is (\w+)", "vision": r"vision (\w+)",
    }  # fmt: skip
    found = {name: re.search(pattern, text) for name, pattern in patterns.items()}
    return {name: match.group(1) if match else "unknown" for name, match in found.items()}


def _decided(texts: Sequence[str]) -> list[str]:
    return [LABELS[int(index)] for index in decide(probability(texts), "single")]


def _marked(text: str) -> str:
    return text.replace(LABELS[0], "\0").replace(LABELS[1], "\1")


def _ferritin_logit(text: str) -> float:
    match = re.search(r"Ferritin measured (\d+(?:\.\d+)?)", text)
    return (30 - min(float(match.group(1)), 80)) / 6 if match else 0.0


def _bleeding_logit(text: str) -> float:
    return {"present": 2.0, "absent": -2.0}.get(_facts(text)["bleeding"], 0.0)


def main() -> None:
    """Print the table, or write it into the docs."""
    written = table(table_of_cells())
    if sys.argv[1:] == ["--write"]:
        text = DOC.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        DOC.write_text(f"{before}{BEGIN}\n{written}\n{END}{after}", encoding="utf-8")
    else:
        print(written)


if __name__ == "__main__":
    main()
