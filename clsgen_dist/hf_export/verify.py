"""Verifies that an exported folder is the trained model: shapes, and the losses of a fixed text, the canary.

The folder is reloaded with plain transformers (adapters: with plain peft), and its losses and logits on the canary are
compared with those of the training engine at the checkpoint. If they differ, diagnostics are written: whether the
files equal a second merge, whether the loaded model equals the files, and whether a second forward pass gives the same.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clsgen_dist.errors import ModelError
from clsgen_dist.hf_export.adapters import WEIGHTS_FILE, base_name, peft_tensors
from clsgen_dist.hf_export.artifact import ModelCard, read_head
from clsgen_dist.model.backbone import Backbone, open_backbone
from clsgen_dist.model.weight_files import WeightFiles

logger = logging.getLogger(__name__)

_TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference of the canary's losses in nats, from rounding the merged weights to that dtype."""

_TIMES_ROUNDING = 3
"""Where a 16-bit model exceeds that: allowed difference, in multiples of what rounding does to this model's losses."""


class LogitsDifferError(ModelError):
    """The exported model does not compute what the trained one did."""


def verify_shapes(folder: Path) -> None:
    """ModelError unless the files have every parameter of the architecture, in its shape."""
    try:
        open_backbone(str(folder))
    except ModelError as error:
        raise ModelError(f"the export's tensors do not fit its architecture: {error}") from error


def verify_canary(folder: Path, canary: dict[str, Any], *, in_4bit: bool = False) -> None:
    """Reload with plain transformers; compare the canary's losses and class logits with the training engine's.

    How much 16-bit rounding moves a loss depends on the model: large logits round coarsely. If the export or the
    trained model is in 16 bits and they differ by more than usual, the export is computed in both precisions. If the
    backbone was held in 4 bits (``in_4bit``), how far quantising the export moves the values is measured alike.

    Raises:
        LogitsDifferError: they differ by more than rounding.
    """
    lm = _load(folder)
    difference = _difference(lm, folder, canary)
    dtypes = (lm.dtype, getattr(torch, canary["dtype"]))
    tolerance = max(_TOLERANCE.get(dtype, 5e-2) for dtype in dtypes)
    if difference > tolerance and dtypes != (torch.float32, torch.float32):
        tolerance = max(tolerance, _TIMES_ROUNDING * _rounding(lm, folder, canary, dtypes))
    if difference > tolerance and in_4bit:
        tolerance = max(tolerance, _TIMES_ROUNDING * _quantising(lm, folder, canary))
    if not difference <= tolerance:
        named = " and ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes}) + ["4 bits"] * in_4bit)
        raise LogitsDifferError(
            f"the export's logits differ from the trained model's by {difference:.2e}, expected at most "
            f"{tolerance:.0e} in {named}; the architecture may change its logits, or the merge failed: export again"
        )
    logger.info("verified by reloading: shapes, head fingerprint, logits (largest difference %.1e)", difference)


def write_evidence(
    path: Path,
    folder: Path,
    base: Backbone,
    again: Iterable[dict[str, Tensor]],
    canary: dict[str, Any],
    error: LogitsDifferError,
) -> None:
    """Write diagnostics of an export whose logits differ, in ``folder``, as JSON to ``path``.

    Args:
        path: file to write.
        folder: of the export.
        base: what it was made from.
        again: what its weight files should hold, merged or assembled a second time, by name.
        canary: what the training engine computed.
        error: how the logits differ.
    """
    from safetensors.torch import load_file

    if (adapters := folder / WEIGHTS_FILE).is_file():
        written, stored = load_file(adapters), base
        unlike_second_merge = [n for tensors in again for n, t in tensors.items() if not torch.equal(t, written[n])]
    else:
        written, stored = {}, open_backbone(str(folder))
        files = WeightFiles(folder)
        unlike_second_merge = [
            name
            for tensors in again
            for name, tensor in tensors.items()
            if not torch.equal(tensor, files.read([name])[name])
        ]
    lm = _load(folder)
    loaded = {name.replace(".base_layer.", "."): tensor for name, tensor in lm.state_dict().items()}
    assert stored.weights is not None
    unlike_files = [
        name
        for group in stored.weights.groups
        for name, tensor in stored.weights.to_parameters(group, stored.weights.files.read(group.names)).items()
        if not torch.equal(loaded[name], tensor.to(loaded[name].dtype))
    ]
    in_memory = peft_tensors(loaded)
    unlike_files += [name for name, tensor in written.items() if not torch.equal(in_memory[name], tensor)]
    threads = torch.get_num_threads()
    difference_again = [_difference(lm, folder, canary) for _ in range(2)]
    torch.set_num_threads(1)
    try:
        one_thread = _difference(lm, folder, canary)
    finally:
        torch.set_num_threads(threads)
    found = {
        "error": str(error),
        "written_unlike_second_merge": unlike_second_merge,
        "loaded_unlike_written": unlike_files,
        "difference_when_loaded_again": difference_again,
        "difference_with_one_thread": one_thread,
        "threads": threads,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "load_average": os.getloadavg(),
        "torch": torch.__version__,
        "backbone": base.path,
    }
    path.write_text(json.dumps(found, indent=2) + "\n")


def _load(folder: Path) -> Any:
    """The exported causal LM by plain transformers; adapters by peft, unmerged."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    # Not the base's, which transformers might refuse: nothing is generated here.
    options: dict[str, Any] = {"generation_config": GenerationConfig()}
    if not (folder / WEIGHTS_FILE).is_file():
        return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options).eval()
    from peft import PeftModel

    lm = AutoModelForCausalLM.from_pretrained(base_name(folder), trust_remote_code=False, **options)
    return PeftModel.from_pretrained(lm, str(folder)).get_base_model().eval()


def _rounding(lm: Any, folder: Path, canary: dict[str, Any], dtypes: tuple[torch.dtype, torch.dtype]) -> float:
    """Largest change of the canary's values, in nats, when the export is computed in 16 bits instead of fp32."""
    half = next(dtype for dtype in dtypes if dtype != torch.float32)
    stored = lm.dtype
    in_half, in_full = (_canary_values(lm.to(dtype), folder, canary) for dtype in (half, torch.float32))
    lm.to(stored)
    return (in_half - in_full).abs().max().item()


@torch.no_grad()
def _quantising(lm: Any, folder: Path, canary: dict[str, Any]) -> float:
    """Largest change of the canary's values, in nats, when linear maps but the LM head are rounded to 4 bits (NF4)."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    exact = _canary_values(lm, folder, canary)
    for name, module in lm.named_modules():
        quantised = isinstance(module, torch.nn.Linear) and ".lora_" not in name
        if quantised and module is not lm.get_output_embeddings():
            module.weight.data = dequantize_4bit(*quantize_4bit(module.weight.data, quant_type="nf4"))
    return (_canary_values(lm, folder, canary) - exact).abs().max().item()


def _difference(lm: Any, folder: Path, canary: dict[str, Any]) -> float:
    """Largest difference of the canary's token losses and class logits, in nats."""
    trained = torch.tensor([*canary["token_losses"], *canary["class_logits"]])
    return (trained - _canary_values(lm, folder, canary)).abs().max().item()


@torch.no_grad()
def _canary_values(lm: Any, folder: Path, canary: dict[str, Any]) -> torch.Tensor:
    """The canary's token losses and class logits ``[T + K]`` by plain transformers, fp32."""
    card = ModelCard.read(folder)
    weight_KD, bias_K = read_head(folder, card)
    last = len(canary["prompt"]) - 1
    inputs = {"input_ids": torch.tensor([canary["prompt"] + canary["explanation"]]), "use_cache": False}
    states_STD = lm.base_model(**inputs).last_hidden_state
    logits_STV = lm(**inputs).logits
    losses = F.cross_entropy(logits_STV[0, last:-1].float(), torch.tensor(canary["explanation"]), reduction="none")
    decided_at = -1 if card.decide == "after" else last
    class_logits = F.linear(states_STD[0, decided_at].float(), weight_KD, bias_K)
    return torch.cat([losses, class_logits])
