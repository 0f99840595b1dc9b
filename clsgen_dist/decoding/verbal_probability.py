"""A decision in words, for a model that is to explain it: ``Decision: malignant (likely, 78 %).``

The words are those of the IPCC's likelihood scale (Mastrandrea et al. 2010, Guidance Note on Uncertainties), as people
read words of probability very differently unless a number stands beside them (Budescu et al. 2009).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clsgen_dist.decoding.settings import Told

_SCALE = ((0.99, "virtually certain"), (0.9, "very likely"), (2 / 3, "likely"), (0.5, "more likely than not"))
_UNLIKELY = ((0.01, "exceptionally unlikely"), (0.1, "very unlikely"), (1 / 3, "unlikely"))


def likelihood_words(probability: float) -> str:
    """``likely`` for 0.78: the IPCC's term for a probability from 0 to 1."""
    for least, term in _SCALE:
        if probability >= least:
            return term
    return next((term for most, term in _UNLIKELY if probability <= most), "about as likely as not")


def told(tell: Told, decided: str | Sequence[str], probabilities: Mapping[str, float]) -> str:
    """What stands before the explanation; empty if the model is told nothing.

    Args:
        tell: what is said.
        decided: the decided class; multi-label: the classes.
        probabilities: calibrated, by class.
    """
    if tell == "nothing":
        return ""
    classes = [decided] if isinstance(decided, str) else list(decided)
    said = [
        f"{name} ({likelihood_words(probabilities[name])}, {_percent(probabilities[name])})"
        if tell == "probability"
        else name
        for name in classes
    ]
    return f"Decision: {', '.join(said) or 'none'}.\n"


def _percent(probability: float) -> str:
    """Whole percent, but never 0 or 100, which no model knows."""
    if probability < 0.01:
        return "under 1 %"
    return "over 99 %" if probability > 0.99 else f"{100 * probability:.0f} %"
