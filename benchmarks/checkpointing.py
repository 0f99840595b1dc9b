"""Activation checkpointing where most layers are frozen: transformers' own switch against ours.

    python benchmarks/checkpointing.py

A step of the demo's model (SmolLM2-135M, 4 rows of 256 tokens, fp32): seconds, and bytes kept for the backward pass.
transformers' switch recomputes every layer and makes the embeddings' output require a gradient, so that frozen layers
run backward too. Rounds are interleaved; medians are printed.
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
from clsgen_dist.model.smollm2 import smollm2_folder

CASES: dict[str, tuple[str, int | None]] = {
    "head alone": ("head", None),
    "2 upper layers": ("full", 2),
    "LoRA on 15 upper layers": ("lora", 15),
}


def prepare(finetune: str, top_layers: int | None, switch: str) -> Any:
    """A model in training mode with one of the switches on."""
    lm = load_backbone(
        open_backbone(str(smollm2_folder())), dtype=torch.float32, attention=register_per_sequence_attention()
    )
    model = build_model(
        lm, classes=2, label_tokens=None, finetune=finetune, top_layers=top_layers, lora_rank=8, lora_alpha=16,
        lora_dropout=0.0, head_dropout=0.0, loss_impl="auto", seed=0,
    )  # fmt: skip
    if switch == "transformers":
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    elif switch == "clsgen":
        checkpoint_activations(lm)
    return model.train()


def step(model: Any, inputs: dict[str, Any]) -> tuple[float, float]:
    """Seconds of a step, and megabytes kept between forward and backward."""
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
    print("| what learns | checkpointing | s/step | kept MB |")
    print("|---|---|--:|--:|")
    for name, (finetune, top_layers) in CASES.items():
        models = {switch: prepare(finetune, top_layers, switch) for switch in ("none", "transformers", "clsgen")}
        found: dict[str, list[tuple[float, float]]] = {switch: [] for switch in models}
        for _ in range(rounds + 1):
            for switch, model in models.items():
                found[switch].append(step(model, inputs))
        for switch, taken in found.items():
            seconds = statistics.median(s for s, _ in taken[1:])
            print(f"| {name} | {switch} | {seconds:.2f} | {taken[-1][1]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
