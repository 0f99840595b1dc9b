"""Why a backbone cannot be trained: a code to compare and to list, in an error with a sentence for people."""

from __future__ import annotations

from enum import StrEnum

from clsgen_dist.errors import ModelError


class Unsupported(StrEnum):
    """Reasons that are the architecture's, not the folder's; docs/backbones.md lists them by family."""

    ENCODER_DECODER = "encoder-decoder"
    NO_CAUSAL_LM = "no causal-LM class for its text part"
    CHANGED_LOGITS = "its logits are scaled, capped or biased"
    NO_LAYER_LIST = "no list of layers"
    MISSING_WEIGHTS = "weights missing in its files"
    NOT_EXPORTABLE = "trained weights could not be written back"
    NOT_CAUSAL = "not causal"
    NAN = "NaN in a tiny model"
    NEEDS_MORE_THAN_TEXT = "fails on text-only input"
    BATCH_DEPENDENT = "rows in a batch change each other"


class UnsupportedBackboneError(ModelError):
    """A backbone that cannot be trained; ``reason`` is the code."""

    def __init__(self, reason: Unsupported, message: str) -> None:
        super().__init__(message)
        self.reason = reason
