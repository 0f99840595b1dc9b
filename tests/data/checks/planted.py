"""Rows without any problem, in which the tests of ``clsgen data check`` plant one fault at a time."""

from __future__ import annotations

import json
import random

from clsgen_dist.training.check_files import check_files

NOUNS = ("river", "stone", "window", "garden", "letter", "market", "engine", "shadow", "copper", "violin", "harbour",
         "meadow", "lantern", "saddle")  # fmt: skip
VERBS = ("carries", "hides", "paints", "follows", "measures", "repairs", "forgets", "borrows", "polishes", "watches",
         "gathers", "opens")  # fmt: skip


def make_rows(count, seed=0, labels=("no", "yes")):
    """Different texts with alternating labels and an explanation each."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        words = [f"The {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)}" for _ in range(4)]
        text = f"{' and '.join(words)} {rng.randrange(10**6)}."
        rows.append(
            {"id": f"r{i}", "text": text, "label": labels[i % len(labels)], "explanation": f"Since {words[0]}."}
        )
    return rows


def write_rows(path, rows):
    """Write the rows as JSONL; returns the path as text."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def findings_of(*files, **options):
    """The findings by code; none occurs twice for the same splits."""
    checked = check_files(list(files), **options)
    assert len({(f.code, f.splits) for f in checked.findings}) == len(checked.findings)
    return {f.code: f for f in checked.findings}


def lines_of(finding):
    """The lines of a finding's rows."""
    return [row.line for row in finding.rows]
