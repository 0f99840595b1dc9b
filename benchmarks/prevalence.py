"""Decisions where the positive class is rarer than among the held-out rows: with and without the correction.

    PYTHONPATH=. python benchmarks/prevalence.py

Prints the table of docs/explanation/calibration.md. Synthetic rows with one feature, N(2y, 1): 1,000 with 50 % yes to
calibrate, 50,000 with 5 % yes in use. 10 s on one CPU core.
"""

from __future__ import annotations

import numpy as np

from clsgen_dist.calibration.conformal import covered
from clsgen_dist.calibration.decisions import DecisionRules
from clsgen_dist.calibration.fit_reading import fit_reading
from clsgen_dist.calibration.handing_over import confidence, wrong
from clsgen_dist.evaluation.calibration_error import nll
from clsgen_dist.evaluation.metrics import decide
from clsgen_dist.evaluation.operating_points import point_at
from clsgen_dist.io.tables import markdown_table
from clsgen_dist.model.label_space import LabelSpace

SPACE = LabelSpace.of(["no", "yes"])
SHARE = 0.05


def main() -> None:
    logits, labels = drawn(1000, 0.5, seed=0)
    used, truth = drawn(50_000, SHARE, seed=1)
    columns = [measured(logits, labels, used, truth, prevalence) for prevalence in (None, f"yes={SHARE}")]
    header = ["in use", "not corrected", f"`--prevalence yes={SHARE}`"]
    print(markdown_table([header, *([name, *(column[name] for column in columns)] for name in columns[0])]))


def drawn(rows: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right where both classes are as frequent, and labels."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < share).astype(int)
    feature = rng.normal(2 * labels, 1.0)
    return np.stack([np.zeros(rows), 2 * feature - 2], axis=1), labels


def measured(
    logits: np.ndarray, labels: np.ndarray, used: np.ndarray, truth: np.ndarray, prevalence: str | None
) -> dict[str, str]:
    """What the fit of ``logits`` is worth on the rows in use."""
    rules = DecisionRules.parse(
        threshold="precision=0.6",
        coverage=0.9,
        class_conditional=True,
        hand_over="risk=0.02",
        other_prevalence=prevalence is not None,
    )
    found = fit_reading(logits, labels, SPACE, "affine", rules, prevalence=prevalence)
    p, decisions = found.calibration.probabilities(used), found.decisions
    assert decisions.thresholds and decisions.sets and decisions.hand_over
    threshold = decisions.thresholds.values[0]
    decided = decide(p, "single", 1, [threshold])
    answered = confidence(p, decided, "single") >= decisions.hand_over.least_confidence
    held = covered(decisions.sets.cutoffs, p, truth)
    return {
        f"mean probability of yes (true: {SHARE})": f"{p[:, 1].mean():.3f}",
        "NLL": f"{nll(p, truth):.3f}",
        "precision (asked: 0.6)": f"{point_at(p[:, 1], truth == 1, threshold).precision:.3f}",
        "rows answered": f"{100 * answered.mean():.0f} %",
        "of these wrong (asked: 2 %)": f"{100 * wrong(decided, truth, 'single')[answered].mean():.1f} %",
        "sets that hold the true class: no, yes": ", ".join(f"{held[truth == c].mean():.3f}" for c in (0, 1)),
    }


if __name__ == "__main__":
    main()
