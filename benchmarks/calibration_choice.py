"""What the choice of a calibration method costs and brings, on rows with known probabilities and distorted logits.

    PYTHONPATH=. python benchmarks/calibration_choice.py

Prints the table of docs/explanation/calibration.md: the NLL on fresh rows, as a mean over draws, of raw probabilities,
of the chosen method and of an affine map. 40 s on one CPU core.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from scipy.special import expit, softmax

from clsgen_dist.calibration.choice import choose
from clsgen_dist.calibration.methods import fit
from clsgen_dist.evaluation.calibration_error import nll
from clsgen_dist.io.tables import markdown_table

DRAWS, FRESH_ROWS = 30, 20_000
DISTORTIONS = {
    "calibrated": (1.0, 0.0),
    "twice too steep": (2.0, 0.0),
    "shifted by 1": (1.0, 1.0),
    "both": (2.0, 1.0),
}
"""Factor and shift of the log-odds."""


def main() -> None:
    table = [["rows", "logits", "raw", "`auto`", "`affine`", "`auto` chose"]]
    for name, distortion in DISTORTIONS.items():
        fresh, fresh_labels = drawn(FRESH_ROWS, distortion, seed=999)
        raw = nll(softmax(fresh, axis=1), fresh_labels)
        for rows in (30, 100, 400):
            chosen, auto, affine = Counter(), [], []
            for seed in range(DRAWS):
                logits, labels = drawn(rows, distortion, seed)
                calibration, comparison = choose(logits, labels)
                chosen[comparison.method] += 1
                auto.append(nll(calibration.probabilities(fresh), fresh_labels))
                affine.append(nll(fit("affine", logits, labels).probabilities(fresh), fresh_labels))
            counts = ", ".join(f"{method} {count}" for method, count in chosen.most_common())
            table.append([str(rows), name, f"{raw:.3f}", f"{np.mean(auto):.3f}", f"{np.mean(affine):.3f}", counts])
    print(markdown_table(table))


def drawn(rows: int, distortion: tuple[float, float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Distorted logits and labels of two classes."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, rows)
    labels = (rng.random(rows) < expit(true)).astype(int)
    factor, shift = distortion
    return np.stack([np.zeros(rows), factor * true + shift], axis=1), labels


if __name__ == "__main__":
    main()
