"""Why a backbone cannot be trained: a code to compare and to list, in an error with a sentence for people."""

from __future__ import annotations

from enum import StrEnum

from clsgen_dist.errors import ModelError


class Unsupported(StrEnum):
    """Reasons that are the architecture's, not the folder's; docs/backbones.md lists them, in words, by family."""

    ENCODER_DECODER = "encoder-decoder"
    NO_CAUSAL_LM = "no-causal-lm"
    CHANGED_LOGITS = "changed-logits"
    NO_LAYER_LIST = "no-layer-list"
    MISSING_WEIGHTS = "missing-weights"
    NOT_EXPORTABLE = "not-exportable"
    NOT_CAUSAL = "not-causal"
    NAN = "nan"
    NEEDS_MORE_THAN_TEXT = "needs-more-than-text"
    BATCH_DEPENDENT = "batch-dependent"

    @property
    def words(self) -> str:
        """The code in words."""
        return _WORDS[self]


_WORDS = {
    Unsupported.ENCODER_DECODER: "encoder-decoder",
    Unsupported.NO_CAUSAL_LM: "no causal-LM class for its text part",
    Unsupported.CHANGED_LOGITS: "its logits are not those of its LM head",
    Unsupported.NO_LAYER_LIST: "no list of layers",
    Unsupported.MISSING_WEIGHTS: "weights missing in its files",
    Unsupported.NOT_EXPORTABLE: "trained weights could not be written back",
    Unsupported.NOT_CAUSAL: "not causal",
    Unsupported.NAN: "NaN in a tiny model",
    Unsupported.NEEDS_MORE_THAN_TEXT: "fails on text-only input",
    Unsupported.BATCH_DEPENDENT: "rows in a batch change each other",
}


class UnsupportedBackboneError(ModelError):
    """A backbone that cannot be trained; ``reason`` is the code."""

    def __init__(self, reason: Unsupported, message: str) -> None:
        super().__init__(message)
        self.reason = reason
