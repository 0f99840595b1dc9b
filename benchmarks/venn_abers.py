"""How wide Venn-Abers intervals are, how often they hold the true probability, and whether their promise is kept.

    PYTHONPATH=. python benchmarks/venn_abers.py

Prints the table of docs/explanation/calibration.md. Synthetic rows with true log-odds N(0, 1.5), seen through logits
for which an affine calibration has the right form (twice as steep, shifted by 1), or a wrong one (cubed). 400 draws of
held-out rows, 500 new rows for each. 50 s on one CPU core.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import expit

from clsgen_dist.calibration.methods import fit
from clsgen_dist.calibration.venn_abers import fit_venn_abers
from clsgen_dist.io.tables import markdown_table

DRAWS, NEW_ROWS = 400, 500
DISTORTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "right": lambda true_N: 2 * true_N + 1,
    "wrong": lambda true_N: true_N**3,
}
COLUMNS = ("mean width", "holds the true probability", "as wide, around the point", "point ± 0.005", "point outside",
           "ECE of the true answer's end")  # fmt: skip


def main() -> None:
    lines = [["form", "held-out rows", *COLUMNS]]
    for form, distort in DISTORTIONS.items():
        for rows in (100, 1000, 10_000):
            drawn = [new_rows(rows, distort, seed) for seed in range(DRAWS)]
            lines.append([form, f"{rows:,}", *measured(*np.concatenate(drawn, axis=1))])
    print(markdown_table(lines))


def new_rows(rows: int, distort: Callable[[np.ndarray], np.ndarray], seed: int) -> np.ndarray:
    """``[5, N]`` low, high, calibrated and true probability, and answer of new rows, by one draw of held-out rows."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, rows + NEW_ROWS)
    logits = np.stack([np.zeros(len(true)), distort(true)], axis=1)
    answers = (rng.random(len(true)) < expit(true)).astype(int)
    new = slice(rows, None)
    affine = fit("affine", logits[:rows], answers[:rows])
    low, high = fit_venn_abers(logits[:rows, 1], answers[:rows]).ends(logits[new, 1])
    return np.stack([low, high, affine.probabilities(logits[new])[:, 1], expit(true[new]), answers[new]])


def measured(low: np.ndarray, high: np.ndarray, point: np.ndarray, truth: np.ndarray, answer: np.ndarray) -> list[str]:
    """In the order of COLUMNS, over the new rows of all draws."""
    width, error, own = high - low, np.abs(point - truth), np.where(answer == 1, high, low)
    gap_of_tenth = np.bincount(np.digitize(own, np.linspace(0.1, 0.9, 9)), weights=answer - own)
    shares = ((low <= truth) & (truth <= high), error <= width / 2, error <= 0.005, (point < low) | (point > high))
    percent = [f"{100 * share.mean():.0f} %" for share in shares]
    return [f"{width.mean():.3f}", *percent, f"{np.abs(gap_of_tenth).sum() / len(answer):.3f}"]


if __name__ == "__main__":
    main()
