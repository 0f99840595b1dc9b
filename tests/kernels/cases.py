"""Inputs for the dual-head loss, a run of it, and the comparison with float64 truth."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from clsgen_kernels import ClassOptions, Execution, GenerationOptions, Ranks, VocabShards, dual_head_loss

# N tokens, n supervised, D hidden, V vocabulary, C classes, S rows

Case = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], tuple[torch.Tensor, ...]]
EVERYTHING = GenerationOptions(label_smoothing=0.1, z_loss=1e-3, softcap=5.0, logit_scale=0.3)
CLASSES = {
    "softmax": ClassOptions(class_weight=(1.0, 2.0, 0.5), focal_gamma=2.0),
    "sigmoid": ClassOptions("sigmoid"),
    "multilabel": ClassOptions("multilabel", (1.0, 2.0, 0.5), 1.5),
    "ordinal": ClassOptions("ordinal"),
    "soft": ClassOptions("soft", (1.0, 2.0, 0.5)),
}


class Alone(Ranks):
    """One rank, without a process group."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1


ALONE = VocabShards(Alone(), (0, 70))
"""All of 70 vocabulary rows on one rank."""


def make_case(
    n_tokens: int = 37,
    supervised: int = 23,
    width: int = 24,
    vocabulary: int = 507,
    classes: int = 3,
    rows: int = 5,
    scale: float = 1.0,
    kind: str = "softmax",
    bias: bool = False,
) -> Case:
    """Float64 tensors, indices and upstream gradients, alike from call to call."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    index = torch.randperm(n_tokens, generator=generator)
    tensors = {
        "hidden_ND": normal(n_tokens, width) * scale,
        "lm_weight_VD": normal(vocabulary, width),
        "head_weight_CD": normal(classes, width),
        "head_bias_C": normal(classes),
    }
    if bias:
        tensors["lm_bias_V"] = normal(vocabulary)
    top = {"softmax": classes, "ordinal": classes + 1}.get(kind, 2)
    label = torch.randint(0, top, (rows, classes) if kind == "multilabel" else (rows,), generator=generator)
    if kind == "soft":
        label = torch.rand(rows, classes, generator=generator, dtype=torch.float64).softmax(dim=1)
    label[::3] = -1
    indices = {
        "supervised_index_n": index[:supervised].sort().values,
        "target_n": torch.randint(0, vocabulary, (supervised,), generator=generator),
        # Some classification tokens are supervised as well: the last prompt token predicts the first of the reason.
        "class_index_S": index[supervised - min(2, supervised) :][:rows],
        "label_S": label,
    }
    if supervised:
        indices["target_n"][0] = vocabulary - 1
        indices["target_n"][-1] = 0
    if supervised > 3:
        indices["target_n"][2] = -100
    return tensors, indices, (normal(supervised), normal(rows, classes), normal(rows))


def cast(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors in a dtype; the classification head stays fp32 where that is wider."""
    head = torch.promote_types(dtype, torch.float32)
    return {k: v.to(head if k.startswith("head") else dtype) for k, v in tensors.items()}


def run(
    tensors: dict[str, torch.Tensor],
    indices: dict[str, torch.Tensor],
    upstream: tuple[torch.Tensor, ...],
    trained: tuple[str, ...] | None = None,
    generation: GenerationOptions | None = None,
    classification: ClassOptions | None = None,
    **options: Any,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Losses by name (with ``token_hit``), and gradients by name, of the sum weighed by ``upstream``.

    ``options`` are further arguments of ``dual_head_loss``, and fields of ``Execution``.
    """
    trained = tuple(tensors) if trained is None else trained
    leaves = {k: v.clone().requires_grad_(k in trained) for k, v in tensors.items()}
    if generation is not None:
        options["generation"] = generation
    if classification is not None:
        options["classification"] = classification
    options.setdefault("store_bytes", 0)  # recomputed where a test does not ask for stored logits
    how = {field.name: options.pop(field.name) for field in fields(Execution) if field.name in options}
    outputs = dual_head_loss(**leaves, **indices, **options, execution=Execution(**how))
    total = sum((output * weight.to(output.dtype)).sum() for output, weight in zip(outputs[:3], upstream, strict=True))
    assert isinstance(total, torch.Tensor)
    total.backward()
    return outputs._asdict(), {k: leaves[k].grad for k in trained}  # type: ignore[misc]


def errors(got: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest error of each tensor relative to the truth's largest value."""
    found = {}
    for name, expected in truth.items():
        assert got[name].shape == expected.shape, name
        if expected.numel():
            scale = expected.detach().double().abs().max().clamp(min=1e-2)
            found[name] = float((got[name].detach().double() - expected.detach().double()).abs().max() / scale)
    return found


def assert_close(got: dict[str, torch.Tensor], truth: dict[str, torch.Tensor], tolerance: float) -> None:
    """Every error is within the tolerance, and a number."""
    for name, error in errors(got, truth).items():
        assert error <= tolerance, f"{name}: relative error {error:.1e}, allowed {tolerance:.0e}"
