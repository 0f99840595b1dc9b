"""Do the two losses pull the adapters apart? The angle between their gradients, for each LoRA matrix, at one step.

    cos = <g_generation, g_classification> / (|g_generation| |g_classification|)        of A, of B, in each layer

Measured on request (``train.interference_every``): at such a step every micro-batch runs twice, each time with one of
the two losses (the second with all other terms too), and hooks on the adapters add up the gradients of each pass. Their
sum is the step's gradient as always, so the update is that of any other step. Rows: ``interference.jsonl``; curves:
``interference/A``, ``interference/B``, means over layers.

Cost: a second forward and backward pass at these steps, and memory for two gradients of the adapters in fp32 on every
rank. Conflict of gradients between tasks: Yu 2020 (PCGrad), arXiv 2001.06782.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from clsgen_dist.engine.world import World
from clsgen_dist.io.json_lines import append_json_line

INTERFERENCE_FILE = "interference.jsonl"
PASSES = ("generation", "classification")
_ADAPTER = re.compile(r"\.(\d+)\.(.+)\.lora_([AB])\.")


@dataclass(frozen=True)
class AdapterAngle:
    """Of one LoRA matrix at one step."""

    layer: int
    module: str
    """Name of the linear layer, like ``self_attn.q_proj``."""
    matrix: str
    """``A`` or ``B``."""
    cosine: float
    """Of the angle between the two gradients; NaN where one is 0."""
    generation_norm: float
    classification_norm: float


class InterferenceProbe:
    """Adds up the adapters' gradients of each pass.

    Args:
        model: with LoRA adapters.
    """

    def __init__(self, model: nn.Module) -> None:
        self._adapters = {name: p for name, p in model.named_parameters() if _ADAPTER.search(name)}
        self._sums: dict[str, dict[str, Tensor]] = {name: {} for name in PASSES}

    @contextlib.contextmanager
    def collecting(self, which: str) -> Iterator[None]:
        """Inside, backward passes count for the loss ``which`` of :data:`PASSES`."""
        sums = self._sums[which]

        def add(name: str, gradient: Tensor) -> None:
            sums[name] = gradient.float() + sums.get(name, 0.0)

        handles = [
            parameter.register_hook(lambda gradient, name=name: add(name, gradient))
            for name, parameter in self._adapters.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def angles(self, world: World) -> list[AdapterAngle]:
        """Of the gradients of all ranks; collective. Empties the sums."""
        found = []
        for name, parameter in self._adapters.items():
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            both = [self._sums[which].pop(name, torch.zeros(shape, device=world.device)) for which in PASSES]
            pair = torch.stack([gradient.reshape(shape) for gradient in both])
            world.all_reduce(pair)
            generation, classification = pair.flatten(1).double()
            norms = float(generation.norm()) / world.size, float(classification.norm()) / world.size
            inner = float(generation @ classification) / world.size**2
            match = _ADAPTER.search(name)
            assert match
            cosine = inner / (norms[0] * norms[1]) if norms[0] and norms[1] else math.nan
            found.append(AdapterAngle(int(match[1]), match[2], match[3], cosine, *norms))
        return found


def mean_cosines(angles: list[AdapterAngle]) -> dict[str, float]:
    """Means over the layers, by matrix, for TensorBoard."""
    return {f"interference/{matrix}": _mean([a.cosine for a in angles if a.matrix == matrix]) for matrix in "AB"}


def write_angles(path: Path, step: int, angles: list[AdapterAngle]) -> None:
    """Add a step's angles to a file of JSON lines; null where one gradient is 0."""
    for angle in angles:
        cosine = angle.cosine if math.isfinite(angle.cosine) else None
        append_json_line(path, {"step": step, **asdict(angle), "cosine": cosine})


def _mean(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
