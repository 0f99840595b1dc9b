"""The names of the calibration methods, for the command line; this module imports nothing heavy."""

from __future__ import annotations

from typing import Literal

Method = Literal[
    "none", "temperature", "affine", "beta", "vector", "dirichlet", "isotonic", "scaling_binning", "histogram"
]
"""From the simplest to the most flexible."""
MethodOrAuto = Literal["auto", Method]
"""``auto``: the one that suits the rows."""
