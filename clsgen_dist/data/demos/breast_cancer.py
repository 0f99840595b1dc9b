"""The demo's rows: scikit-learn's breast-cancer dataset, each aspirate put into words as a short clinical note.

569 real fine-needle aspirates (Wolberg, Street & Mangasarian 1995; Wisconsin Diagnostic Breast Cancer), 30 numbers
each. Eight of them become words by the thirds of the *training* split: words instead of numbers, since digits cost a
token each and mean little to a small model, and words of one token each, which it copies more faithfully. Thirds, since
logistic regression on these words separates the classes as well as on fifths. The explanation names the row's
strongest evidence: the two findings with the largest log-likelihood ratio for its class,

    LLR(finding, level) = log P(level | malignant) / P(level | benign)       (counts of the training split, +1 each)

so every statement in it can be checked against the note. Each row has three phrasings, used in turn over its visits.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clsgen_dist.errors import DataError
from clsgen_dist.io.cache import build_once

NAME = "breast-cancer"
LABELS = ("benign", "malignant")
SPLITS = {"train": 0.45, "dev": 0.2, "test": 0.35}
LEVELS = ("low", "average", "high")
FINDINGS = {
    "size": "worst area",
    "texture": "worst texture",
    "roughness": "worst smoothness",  # local variation of the radius
    "contour": "worst compactness",  # perimeter² / area
    "depth": "worst concavity",  # how deep the contour's dents are
    "pits": "worst concave points",  # how much of the contour is dented
    "symmetry": "worst symmetry",
    "spread": "area error",
}
"""A word for each measurement, a single token of most vocabularies; the column it comes from."""
_PHRASES = (
    "{Label}: {a}, {b}.",
    "{Label}, because {a} and {b}.",
    "{Label}. Evidence: {a}, {b}.",
)


@dataclass(frozen=True)
class Split:
    """Rows of one split: the words, and the numbers they were made from."""

    rows: list[dict[str, object]]
    numbers: np.ndarray
    """``[rows, 30]`` raw measurements, for the baselines."""
    is_malignant: np.ndarray
    """``[rows]`` 0 or 1."""


def load_splits(seed: int = 0) -> dict[str, Split]:
    """Train, dev and test, stratified by label, disjoint; words and evidence fitted on train alone."""
    from sklearn.datasets import load_breast_cancer

    raw = load_breast_cancer()
    is_malignant = (raw.target == 0).astype(int)  # scikit-learn's 0 is malignant
    parts = _stratified(is_malignant, seed)
    columns = [list(raw.feature_names).index(source) for source in FINDINGS.values()]
    train_values = raw.data[parts["train"]][:, columns]
    edges = np.quantile(train_values, np.arange(1, len(LEVELS)) / len(LEVELS), axis=0)
    levels = np.stack([np.searchsorted(edges[:, f], raw.data[:, c]) for f, c in enumerate(columns)], axis=1)
    ratios = _log_likelihood_ratios(levels[parts["train"]], is_malignant[parts["train"]])
    return {
        name: Split([_row(i, levels[i], is_malignant[i], ratios) for i in part], raw.data[part], is_malignant[part])
        for name, part in parts.items()
    }


def demo_file(split: str, seed: int = 0) -> Path:
    """The split as JSONL in the cache; DataError if there is no such split."""
    if split not in SPLITS:
        raise DataError(f"the demo dataset {NAME!r} has the splits {', '.join(SPLITS)}, not {split!r}")

    def write(folder: Path) -> None:
        for name, part in load_splits(seed).items():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part.rows))

    return build_once(f"{NAME}-v6-seed{seed}", write) / f"{split}.jsonl"


def stated_findings(explanation: str) -> list[tuple[str, str]]:
    """The (finding, level) pairs an explanation states, if worded as in this dataset."""
    names = "|".join(sorted(FINDINGS, key=len, reverse=True))
    levels = "|".join(sorted(LEVELS, key=len, reverse=True))
    return re.findall(rf"\b({names}) ({levels})\b", explanation.lower())


def evidence_is_true(note: str, explanation: str) -> bool:
    """Whether the explanation states findings, and the note has every one of them."""
    stated = stated_findings(explanation)
    noted = set(stated_findings(note))
    return bool(stated) and all(finding in noted for finding in stated)


def _stratified(is_malignant: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    for label in (0, 1):
        index = rng.permutation(np.flatnonzero(is_malignant == label))
        cuts = np.round(np.cumsum([SPLITS["train"], SPLITS["dev"]]) * len(index)).astype(int)
        for name, part in zip(SPLITS, np.split(index, cuts), strict=True):
            parts[name].append(part)
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}


def _log_likelihood_ratios(levels: np.ndarray, is_malignant: np.ndarray) -> np.ndarray:
    """``[findings, levels]`` evidence for malignant, from counts with one added to each."""
    counts = np.ones((2, levels.shape[1], len(LEVELS)))
    for row, label in zip(levels, is_malignant, strict=True):
        counts[label, np.arange(levels.shape[1]), row] += 1
    shares = counts / counts.sum(axis=2, keepdims=True)
    return np.log(shares[1] / shares[0])


def _row(index: int, levels: np.ndarray, is_malignant: int, ratios: np.ndarray) -> dict[str, object]:
    findings = [f"{name} {LEVELS[level]}" for name, level in zip(FINDINGS, levels, strict=True)]
    evidence = ratios[np.arange(len(levels)), levels] * (1 if is_malignant else -1)
    first, second = np.argsort(-evidence, kind="stable")[:2]
    against = np.argsort(evidence, kind="stable")[:2]
    label = LABELS[is_malignant]
    words = {"Label": label.capitalize(), "a": findings[first], "b": findings[second]}
    return {
        "id": f"aspirate-{index}",
        "text": ", ".join(findings).capitalize() + ".",
        "label": label,
        "explanations": [phrase.format(**words) for phrase in _PHRASES],
        "evidence": [findings[first], findings[second]],
        "counter_evidence": [findings[at] for at in against if evidence[at] < 0],
    }
