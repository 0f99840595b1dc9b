"""A fixed text that the training engine scores at each checkpoint: an export that scores it alike is the same model.

The text is the project's own, so no row of anyone's data travels with a checkpoint.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from clsgen_dist.data.encode import Encoder
from clsgen_dist.data.pack import Sample, collate
from clsgen_dist.engine.world import World


def canary_sample(encoder: Encoder) -> Sample:
    """The fixed text in the run's own prompt."""
    prompt, _ = encoder.prompt("The quick brown fox jumps over the lazy dog.")
    (explanation,) = encoder.explanations(["Because the dog was asleep."])
    return Sample(prompt, np.array(explanation, dtype=np.int32), -1)


def score_canary(engine: Any, sample: Sample, world: World) -> dict[str, Any]:
    """The text's tokens, its per-token generation losses, its class logits, and the dtype of it all; collective."""
    engine.eval()
    with torch.no_grad():
        output = engine(**collate([sample]).inputs(world.device))
    engine.train()
    return {
        "prompt": sample.prompt.tolist(),
        "explanation": sample.explanation.tolist(),
        "token_losses": output.generation_loss.tolist(),
        "class_logits": output.class_logits[0].tolist(),
        "dtype": str(engine.module.lm.dtype).removeprefix("torch."),
    }
