"""A fixed text that the training engine scores at each checkpoint: an export that scores it alike is the same model.

The text is the project's own, so no row of anyone's data travels with a checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch

from clsgen_dist.data.encode import EncodedRow, Encoder
from clsgen_dist.data.example import Example
from clsgen_dist.data.loader import collate
from clsgen_dist.engine.dist import World


def probe_row(encoder: Encoder) -> EncodedRow:
    """The probe in the run's own prompt."""
    example = Example(
        id="probe",
        text="The quick brown fox jumps over the lazy dog.",
        explanations=("Because the dog was asleep.",),
    )
    return encoder.row(example, ())


def score_probe(engine: Any, row: EncodedRow, world: World) -> dict[str, list[float] | list[int]]:
    """The probe's tokens, its per-token generation losses and its class logits; collective."""
    engine.eval()
    explanation = row.explanations[0]
    batch = collate([(row, explanation)], pad_token=explanation[-1])
    with torch.no_grad():
        output = engine(**batch.tensors(world.device))
    engine.train()
    return {
        "prompt": list(row.prompt),
        "explanation": list(explanation),
        "token_losses": output.generation_loss.tolist(),
        "class_logits": output.class_logits[0].tolist(),
    }
