"""Log-probabilities of explanations before training: what a run that trains all weights is compared with.

One number for each explanation, each rejected one, and each row's mismatched one
(:mod:`clsgen_dist.data.tables.dataset`), kept in the run's folder, so that a resumed run need not compute them again.

Cost: 4 bytes per explanation.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clsgen_dist.io.files import atomic_file


@dataclass(frozen=True)
class ReferenceLogProbs:
    """Nats, summed over tokens."""

    explanation_E: np.ndarray
    rejected_R: np.ndarray
    mismatched_N: np.ndarray
    """Empty unless rows have mismatched explanations."""

    def save(self, path: Path, fingerprint: str) -> None:
        """Write the file; ``fingerprint`` identifies rows, prompt and backbone."""
        with atomic_file(path, "wb") as file:
            np.savez(
                file,
                fingerprint=np.array(fingerprint),
                explanation=self.explanation_E,
                rejected=self.rejected_R,
                mismatched=self.mismatched_N,
            )

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> ReferenceLogProbs | None:
        """Read the file; None if there is none of these rows."""
        try:
            with np.load(path) as saved:
                if str(saved["fingerprint"]) == fingerprint:
                    return cls(saved["explanation"], saved["rejected"], saved["mismatched"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None  # missing or damaged: the caller computes them again
        return None
