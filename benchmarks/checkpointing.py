"""Activation checkpointing of partly frozen models: transformers' implementation against ours.

    python benchmarks/checkpointing.py

A step of the demo's model (SmolLM2-135M, 4 rows of 256 tokens, fp32): seconds, and megabytes of activations kept for
the backward pass. transformers' implementation recomputes every layer and makes the output of the embeddings require
a gradient, so frozen layers run backward too. Rounds are interleaved; the table gives medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch

from clsgen_dist.data.pack import Sample, collate
from clsgen_dist.model.attention import register_per_sequence_attention
from clsgen_dist.model.backbone import build_model, checkpoint_activations, load_backbone, open_backbone
from clsgen_dist.model.classification_head import HeadSpec
from clsgen_dist.model.smollm2 import smollm2_folder

CASES: dict[str, tuple[str, int | None]] = {
    "head only": ("head", None),
    "top 2 layers": ("full", 2),
    "LoRA on the top 15 layers": ("lora", 15),
}


def prepare(finetune: str, top_layers: int | None, method: str) -> Any:
    """A model in training mode with one of the checkpointing methods: none, transformers, or clsgen."""
    lm = load_backbone(
        open_backbone(str(smollm2_folder())), dtype=torch.float32, attention=register_per_sequence_attention()
    )
    model = build_model(lm, head=HeadSpec(2), finetune=finetune, top_layers=top_layers, lora_rank=8, lora_alpha=16)
    if method == "transformers":
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    elif method == "clsgen":
        checkpoint_activations(lm)
    return model.train()


def step(model: Any, inputs: dict[str, Any]) -> tuple[float, float]:
    """Seconds of a step, and megabytes of activations kept between forward and backward."""
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    start = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(**inputs)
        loss = output.generation_loss.mean() + output.class_loss.mean()
    megabytes = kept / 1e6
    loss.backward()
    seconds = time.perf_counter() - start
    model.zero_grad()
    return seconds, megabytes


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    rng = np.random.default_rng(0)
    draw = lambda length: rng.integers(3, 40000, length).astype(np.int32)  # noqa: E731
    inputs = collate([Sample(draw(192), draw(64), i % 2) for i in range(4)]).inputs()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {rounds} rounds\n")
    print("| trained | checkpointing | s a step | activations kept, MB |")
    print("|---|---|--:|--:|")
    for name, (finetune, top_layers) in CASES.items():
        models = {method: prepare(finetune, top_layers, method) for method in ("none", "transformers", "clsgen")}
        results: dict[str, list[tuple[float, float]]] = {method: [] for method in models}
        for _ in range(rounds + 1):
            for method, model in models.items():
                results[method].append(step(model, inputs))
        for method, measured in results.items():
            seconds = statistics.median(s for s, _ in measured[1:])
            print(f"| {name} | {method} | {seconds:.2f} | {measured[-1][1]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
