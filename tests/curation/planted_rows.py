"""Good rows with evidence, in which tests plant one fault at a time."""

from __future__ import annotations

import random

LABELS = ["benign", "malignant"]
_SHAPES = {
    "benign": ["round outline", "smooth border", "uniform texture", "oval outline", "even density", "soft border"],
    "malignant": [
        "spiculated outline",
        "jagged border",
        "mixed texture",
        "lobed outline",
        "uneven density",
        "blurred rim",
    ],
}
_PLACES = ["upper left", "lower left", "upper right", "lower right", "central", "axillary"]
_OTHERS = ["The patient takes no medication", "A scan was made last spring", "Her mother was treated here",
           "She came for a routine visit", "The skin is intact", "Breathing is calm", "No lump was felt before",
           "The second reader agreed on the site"]  # fmt: skip
_REASONS = {
    "benign": ["A {shape} of {size} mm is what harmless growths have",
               "{size} mm with a {shape} speaks for watching it",
               "Cysts show a {shape} like this {place} one", "Nothing worrying: {shape}, only {size} mm"],
    "malignant": ["A {shape} of {size} mm is typical of invading tissue",
                  "{size} mm with a {shape} asks for a biopsy",
                  "Tumours grow with a {shape} like this {place} one", "Worrying: {shape}, already {size} mm"],
}  # fmt: skip


def good_rows(count, seed=0):
    """Rows with a learnable label, an explanation that is grounded and evidence; no two texts are equal."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        label = LABELS[i % 2]
        shape, place = rng.choice(_SHAPES[label]), rng.choice(_PLACES)
        size = round(rng.uniform(3, 30), 1)
        others = rng.sample(_OTHERS, 2)
        text = f"Case {i + 1000}. {others[0]}. A {place} finding of {size} mm with a {shape}. {others[1]}."
        explanation = rng.choice(_REASONS[label]).format(shape=shape, size=size, place=place) + "."
        rows.append({"id": f"r{i}", "text": text, "label": label, "explanation": explanation, "evidence": [shape]})
    return rows
