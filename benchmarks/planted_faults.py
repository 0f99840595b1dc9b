"""What ``clsgen data gate`` finds of faults planted in real rows with explanations by people, and its false alarms.

    python benchmarks/planted_faults.py                        # the sets of ../shared/data; two minutes on two cores

A fortieth of at most 800 rows of each set gets each fault; a quarter of the rows has one. Rows without a planted fault
are as they were published: what is found in them need not be a false alarm, since published rows have faults too.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clsgen_dist.io.tables import markdown_table

Row = dict[str, Any]
SHARED = Path(__file__).resolve().parents[2] / "shared/data"
SETS = ("comve", "pubmedqa", "hatecheck", "contractnli")
ROWS, EVERY = 800, 40
_BOILERPLATE = (
    "This follows from the text.",
    "As the reader can see, it is clear from what is written.",
    "The evidence supports this conclusion.",
)
_GERMAN = "Der Text sagt ganz klar, dass diese Aussage nicht stimmen kann, weil sie dem gesunden Verstand widerspricht."


def _ended(row: Row, words: str) -> Row:
    return {**row, "explanation": row["explanation"].rstrip(".") + words}


FAULTS: dict[str, tuple[str, Callable[[Row, str, random.Random], Row]]] = {
    "explanation of another class": (
        "names-other-class",
        lambda row, other, rng: _ended(row, f", so the answer is {other}."),
    ),
    "one of three sentences for any row": (
        "boilerplate",
        lambda row, other, rng: {**row, "explanation": rng.choice(_BOILERPLATE)},
    ),
    "invented numbers": (
        "ungrounded-number",
        lambda row, other, rng: _ended(row, f", as {rng.randint(13, 97)} of {rng.randint(101, 499)} cases show."),
    ),
    "invented quote": (
        "ungrounded-quote",
        lambda row, other, rng: _ended(row, ', since it says "every single party agrees wholeheartedly".'),
    ),
    "explanation is the text": (
        "copies-input",
        lambda row, other, rng: {**row, "explanation": " ".join(row["text"].split()[:60])},
    ),
    "explanation in German": ("other-language", lambda row, other, rng: {**row, "explanation": _GERMAN}),
    "explanation of one word": ("too-short", lambda row, other, rng: {**row, "explanation": "Obvious."}),
    "text ends in `Label: …`": (
        "label-in-text",
        lambda row, other, rng: {**row, "text": f"{row['text']} Label: {row['label']}"},
    ),
    "text begins with `[label]`": (
        "label-in-text",
        lambda row, other, rng: {**row, "text": f"[{row['label']}] {row['text']}"},
    ),
    "wrong label": ("label-error", lambda row, other, rng: {**row, "label": other}),
}
"""How each fault is made, and the issue that should be found."""


def plant(rows: list[Row], seed: int) -> tuple[list[Row], dict[str, str | None]]:
    """Rows with faults, and which fault each id has."""
    rng = random.Random(seed)
    rng.shuffle(rows)
    labels, faults = sorted({row["label"] for row in rows}), list(FAULTS)
    planted, of = list[Row](), dict[str, str | None]()
    for place, row in enumerate(rows[:ROWS]):
        explanation = row.get("explanation") or row["explanations"][0]
        new = {"id": str(place), "text": row["text"], "label": row["label"], "explanation": explanation}
        fault = faults[place % EVERY] if place % EVERY < len(faults) else None
        other = rng.choice([label for label in labels if label != row["label"]])
        planted.append(FAULTS[fault][1](new, other, rng) if fault else new)
        of[str(place)] = fault
    return planted, of


def main() -> None:
    """Plant, gate, count, and print a table for each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="folder of sets, each with a train.jsonl")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    found: dict[str, dict[str, str]] = {
        name: {} for name in [*FAULTS, "no fault, anything found", "of this, most often"]
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.sets:
            lines = (arguments.data / name / "train.jsonl").read_text().splitlines()
            rows, of = plant([json.loads(line) for line in lines], arguments.seed)
            file, output = Path(folder, f"{name}.jsonl"), Path(folder, name)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            gate = ["data", "gate", str(file), "--output", str(output)]
            subprocess.run([sys.executable, "-m", "clsgen_dist", *gate], check=True, stdout=subprocess.DEVNULL)
            codes = {}
            for line in (output / "reasons.jsonl").read_text().splitlines():
                row = json.loads(line)
                codes[row["id"]] = {issue["code"] for issue in row["issues"]}
            for fault, (code, _) in FAULTS.items():
                ids = [row_id for row_id, planted in of.items() if planted == fault]
                found[fault][name] = f"{sum(code in codes.get(row_id, ()) for row_id in ids)} of {len(ids)}"
            good = [codes.get(row_id, set()) for row_id, planted in of.items() if planted is None]
            found["no fault, anything found"][name] = f"{sum(map(bool, good))} of {len(good)}"
            most = Counter(code for row in good for code in row).most_common(2)
            found["of this, most often"][name] = ", ".join(f"{code} {count}" for code, count in most) or "-"
    print(markdown_table([["planted", *arguments.sets], *([name, *cells.values()] for name, cells in found.items())]))


if __name__ == "__main__":
    main()
